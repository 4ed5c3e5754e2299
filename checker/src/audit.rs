//! The live map held against the kernel's own books: which slab objects the slabs count as allocated.
//!
//! An object the kernel holds and we do not know was allocated before the first hook or through a function
//! that is not hooked; it may hold references, and is never a leak. One that we hold and the kernel has freed is a free that was
//! missed; it is no object any more.

use crate::allocations::Allocations;
use detector::objects::{Kind, Object};
use guest_symbols::Kernel;
use guest_symbols::slab_walk::Allocated;
use std::collections::BTreeMap;

/// The result of an audit. Empty maps are what it should find.
#[derive(Debug, Default)]
pub struct Audit {
    /// Objects that the slabs count as allocated.
    pub allocated: u64,
    /// Allocated, but not in the live map: how many, by cache.
    pub unknown: BTreeMap<String, u64>,
    /// In the live map, but free: how many, by the function that allocated them.
    pub freed: BTreeMap<String, u64>,
    /// Freelists that make no sense.
    pub broken: u64,
    /// Blocks that the kernel counts as allocated besides slab objects: of vmalloc(), and per-CPU ones.
    pub blocks: (u64, u64),
}

impl Audit {
    /// Compares `ours`, as far as it is slab objects, with what the slabs count. Calls `each` with every
    /// object that is one: address, the number of its cache, and its place in the live map's list, if it has one.
    /// Objects that are not in the live map are none if they were freed.
    pub(crate) fn compare(
        kernel: &Kernel,
        ours: Allocations<'_>,
        allocated: &Allocated,
        is_freed: impl Fn(u64) -> bool,
        each: &mut impl FnMut(u64, u32, Option<usize>),
    ) -> Audit {
        let mut audit =
            Audit { allocated: allocated.objects.len() as u64, broken: allocated.broken, ..Audit::default() };
        let (allocations, objects) = (ours, ours.objects.list());
        let is_ours = |i: &usize| objects[*i].1.kind() == Kind::Slab;
        let mut ours = (0..objects.len()).filter(is_ours);
        let mut next = ours.next();
        for &(addr, cache) in &allocated.objects {
            let mut at = next.map(|i| objects[i].0);
            while let Some(i) = next.filter(|_| at.is_some_and(|at| at < addr)) {
                audit.freed(kernel, allocations, &objects[i].1);
                next = ours.next();
                at = next.map(|i| objects[i].0);
            }
            match next.filter(|_| at == Some(addr)) {
                Some(i) => {
                    next = ours.next();
                    if !objects[i].1.is_dying() {
                        each(addr, cache, Some(i));
                    }
                }
                None if is_freed(addr) => audit.allocated -= 1,
                None => {
                    audit.unknown(&allocated.caches[cache as usize].name);
                    each(addr, cache, None);
                }
            }
        }
        next.into_iter().chain(ours).for_each(|i| audit.freed(kernel, allocations, &objects[i].1));
        audit
    }

    /// Counts an object that the kernel holds and we do not know.
    pub(crate) fn unknown(&mut self, cache: &str) {
        *self.unknown.entry(cache.to_owned()).or_default() += 1;
    }

    /// Counts an object that we hold and the kernel does not; what kfree_rcu() was given may be freed where we
    /// do not look.
    pub(crate) fn freed(&mut self, kernel: &Kernel, ours: Allocations<'_>, object: &Object) {
        if !object.is_dying() {
            let caller = ours.caller(kernel, object.stack()).unwrap_or("?");
            *self.freed.entry(caller.to_owned()).or_default() += 1;
        }
    }

    /// How many are unknown, and how many free.
    pub fn counts(&self) -> (u64, u64) {
        (self.unknown.values().sum(), self.freed.values().sum())
    }
}
