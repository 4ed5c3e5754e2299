//! The audit: the live map compared with the kernel's own allocator metadata. The slabs show which
//! of their objects are allocated.
//!
//! An unknown object is one that the kernel holds and the live map does not. It was allocated
//! before the first hook, or through a function that is not hooked. It may hold references, and is
//! never a leak. If the live map holds an object that the kernel has freed, its free was missed. It
//! is no longer an object.

use crate::allocations::Allocations;
use detector::objects::{Kind, Object};
use guest_symbols::Kernel;
use guest_symbols::slab_walk::Allocated;
use std::collections::BTreeMap;

/// The result of an audit. Both maps are empty if nothing is wrong.
#[derive(Debug, Default)]
pub struct Audit {
    /// Objects that the slabs count as allocated.
    pub allocated: u64,
    /// Objects that are allocated but not in the live map: their number, by cache.
    pub unknown: BTreeMap<String, u64>,
    /// Objects that are in the live map but free: their number, by the function that allocated
    /// them.
    pub freed: BTreeMap<String, u64>,
    /// Corrupted freelists.
    pub broken: u64,
    /// Blocks of vmalloc() that the kernel counts as allocated.
    pub vmalloc: u64,
    /// Per-CPU blocks that the kernel counts as allocated.
    pub percpu: u64,
}

impl Audit {
    /// Compares the slab objects of `ours` with the slabs.
    ///
    /// Calls `each` with every object that is allocated: its address, the number of its cache, and
    /// its index in the live map's list, if it has one. Objects that are not in the live map are
    /// skipped if `is_freed` is true for them.
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
                    if !objects[i].1.is_rcu_pending() {
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

    /// Counts an object that the kernel holds and the live map does not.
    pub(crate) fn unknown(&mut self, cache: &str) {
        *self.unknown.entry(cache.to_owned()).or_default() += 1;
    }

    /// Counts an object that the live map holds and the kernel does not. Objects that were passed
    /// to kfree_rcu() do not count. The kernel may free them through functions that are not hooked.
    pub(crate) fn freed(&mut self, kernel: &Kernel, ours: Allocations<'_>, object: &Object) {
        if !object.is_rcu_pending() {
            let caller = ours.caller(kernel, object.stack()).unwrap_or("?");
            *self.freed.entry(caller.to_owned()).or_default() += 1;
        }
    }

    /// How many objects are unknown, and how many are free.
    pub fn counts(&self) -> (u64, u64) {
        (self.unknown.values().sum(), self.freed.values().sum())
    }
}
