//! Freed objects that their slabs still count as allocated.
//!
//! They are in KASAN's quarantine (mm/kasan/quarantine.c, 5.10 to 7.3). Or CONFIG_SLUB_RCU_DEBUG
//! keeps them for a grace period (mm/slub.c, 6.12 on).

use super::{Allocated, IN_THE_MAKING, Walk};
use crate::corruption::Corruption;
use crate::kasan::Quarantine;
use crate::memory::{PAGE_SIZE, PhysAddr, StoppedMemory, VirtAddr};
use crate::percpu::PerCpu;
use crate::{Kernel, kasan};
use std::collections::HashSet;

/// The function that frees such an object after its grace period.
const AFTER_GRACE_PERIOD: &str = "slab_free_after_rcu_debug";
/// The largest objects in bytes that may be a `struct rcu_delayed_free`, which has three words.
const MAX_DELAYED_FREE: u64 = 64;

impl<M: StoppedMemory> Walk<'_, M> {
    /// Adds the objects in quarantine to the free objects.
    pub(super) fn read_quarantine(&mut self, percpu: &PerCpu) {
        let Some(quarantine) = Quarantine::of(self.kernel, percpu) else { return };
        let (mut invalid, mut seen) = (0, HashSet::new());
        for list in &quarantine.lists {
            invalid += u64::from(!self.read_quarantined(&quarantine, *list, &mut seen));
        }
        // A CPU that is stopped while it adds an object may have linked it in part.
        if invalid > IN_THE_MAKING * percpu.offsets.len() as u64 {
            self.out.corruption.push(Corruption::Quarantine(invalid));
        }
    }

    /// Adds the objects of a list to the free objects. Returns whether the list could be followed
    /// to its end. An object in `seen` is a fault, because no object is in two lists.
    fn read_quarantined(&mut self, quarantine: &Quarantine, list: VirtAddr, seen: &mut HashSet<u64>) -> bool {
        let (Some(mut node), Some(tail)) =
            (self.word(list.offset(quarantine.head)), self.word(list.offset(quarantine.tail)))
        else {
            return false;
        };
        while node != 0 {
            let object = self.quarantined(quarantine, node).filter(|_| seen.insert(node));
            let Some(object) = object else { return false };
            self.free.push(object);
            if node == tail {
                break;
            }
            // The node is the pointer to the next node.
            match self.word(VirtAddr(node)) {
                Some(next) => node = next,
                None => return false,
            }
        }
        true
    }

    /// The object that contains a node of the quarantine, if it is a slab object.
    fn quarantined(&mut self, quarantine: &Quarantine, node: u64) -> Option<u64> {
        let slab = self.pages.slab_of(VirtAddr(node))?;
        let cache = PhysAddr(slab.descriptor.0.wrapping_add(self.pages.slab_cache_offset()));
        let cache = self.memory.read_u64(cache).ok()?;
        self.learn(cache);
        let (_, links) = self.links.get(&cache)?.as_ref()?;
        let free_meta = self.kernel.read_u32(self.memory, VirtAddr(cache).offset(quarantine.free_meta)).ok()?;
        let object = node.wrapping_sub(quarantine.link).wrapping_sub(free_meta.into());
        let slots = links.slots(&slab, slab.pages * PAGE_SIZE / links.cache.stride);
        slots.of(object).map(|_| object)
    }
}

impl Allocated {
    /// Returns a predicate: whether an object whose allocation was not seen was freed, although the
    /// slabs count it.
    ///
    /// Such objects wait for a grace period, or KASAN's shadow marks them as freed. Some of these
    /// have just left the quarantine, and are in a list on a stack. KASAN also marks objects in a
    /// mempool's reserve as freed. The predicate is therefore not valid for objects whose
    /// allocation was seen.
    pub fn is_freed<'a>(&self, kernel: &'a Kernel, memory: &'a impl StoppedMemory) -> impl Fn(u64) -> bool + 'a {
        let delayed = self.delayed(kernel, memory).unwrap_or_default();
        let has_sanitizer = kasan::is_built_in(kernel);
        move |object| delayed.contains(&object) || has_sanitizer && kasan::is_freed(kernel, memory, VirtAddr(object))
    }

    /// Objects that wait for a grace period.
    fn delayed(&self, kernel: &Kernel, memory: &impl StoppedMemory) -> Option<HashSet<u64>> {
        let of = |member| kernel.offset_of("rcu_delayed_free", member);
        let function = kernel.symbol(AFTER_GRACE_PERIOD)?.0;
        let (func, object) = (of("head.func")?, of("object")?);
        let size = kernel.btf.as_ref()?.size_of("rcu_delayed_free")?;
        let may_be: Vec<bool> =
            self.caches.iter().map(|cache| (size..=MAX_DELAYED_FREE).contains(&cache.object_size)).collect();
        let word = |at: u64, offset| kernel.read_u64(memory, VirtAddr(at).offset(offset)).ok();
        let records = self
            .objects
            .iter()
            .filter(|(at, cache)| may_be.get(*cache as usize) == Some(&true) && word(*at, func) == Some(function));
        Some(records.filter_map(|(at, _)| word(*at, object)).collect())
    }
}
