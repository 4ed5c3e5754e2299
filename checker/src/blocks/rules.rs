//! Rules for blocks whose contents do not keep other objects alive: descriptors of vmap areas,
//! sheaves, and records of other leak tracers.

use super::{Block, Blocks};
use crate::allocations::Allocations;
use crate::blocks::allocation_sites;
use detector::objects::{Kind, Object};
use guest_symbols::Kernel;
use guest_symbols::memory::{PAGE_SIZE, StoppedMemory, VirtAddr};
use guest_symbols::slab;
use guest_symbols::vmap;
use std::cell::LazyCell;
use std::collections::{HashMap, HashSet};
use std::ops::Range;

/// Start of vmalloc space without KASLR (VMALLOC_START in Documentation/arch/x86/x86_64/mm.rst).
const VMALLOC_START: u64 = 0xffff_c900_0000_0000;

/// Vmalloc space.
struct Space {
    start: u64,
    /// Busy ranges, in ascending order.
    busy: Vec<Range<u64>>,
}

impl Space {
    fn new(start: Option<u64>, areas: &[vmap::Area]) -> Space {
        let mut busy: Vec<Range<u64>> = areas.iter().map(|area| area.start..area.end).collect();
        busy.sort_unstable_by_key(|area| area.start);
        Space { start: start.unwrap_or(VMALLOC_START), busy }
    }

    /// Whether these are the bounds of an area that is not busy.
    ///
    /// Other structs may come from the same cache, and the allocation was not seen. Only a free
    /// area holds two addresses of vmalloc space with no busy range between them.
    fn is_free_area(&self, bounds: Range<u64>) -> bool {
        let is_aligned = (bounds.start | bounds.end).is_multiple_of(PAGE_SIZE);
        let next = self.busy.partition_point(|area| area.end <= bounds.start);
        let is_free = self.busy.get(next).is_none_or(|area| bounds.end <= area.start);
        is_aligned && self.start <= bounds.start && bounds.start < bounds.end && is_free
    }
}

/// Virtual addresses of the sheaves (6.18 on) among the objects.
pub(super) fn sheaves(kernel: &Kernel, memory: &impl StoppedMemory, allocations: Allocations<'_>) -> Vec<VirtAddr> {
    let Some(cache) = kernel.offset_of("slab_sheaf", "cache") else { return Vec::new() };
    let caches = slab::caches(kernel, memory).unwrap_or_default();
    let mut is_sheaf_site = allocation_sites::sheaf_sites(kernel, allocations);
    let is_sheaf = |&&(addr, object): &&(u64, Object)| {
        matches!(object.kind(), Kind::Slab | Kind::Large) && is_sheaf_site(&object) && {
            let cache = kernel.read_u64(memory, VirtAddr(addr).offset(cache));
            cache.is_ok_and(|c| caches.contains(&VirtAddr(c)))
        }
    };
    allocations.objects.list().iter().filter(is_sheaf).map(|(addr, _)| VirtAddr(*addr)).collect()
}

impl<M: StoppedMemory> Blocks<'_, M> {
    /// Words of vm_struct and vmap_area that describe an area do not make it referenced. But a
    /// reference to the vm_struct also keeps the area alive (kmemleak's excess_ref).
    pub(super) fn apply_vmap_rules(&mut self, kernel: &Kernel, areas: Option<&[vmap::Area]>) {
        let (Some(areas), Some(offsets)) = (areas, vmap::Offsets::read(kernel)) else {
            log::warn!("the kernel's vmap areas cannot be read: leaked vmalloc blocks may be missed");
            return;
        };
        // Areas that are free, pooled or about to be freed have bounds too. Those bounds may be
        // addresses of other areas' blocks. Areas about to be freed may also keep a pointer to
        // their former vm_struct.
        let purged: HashSet<u64> = vmap::purged(kernel, self.memory).into_iter().map(|a| a.0).collect();
        let vmap_area_cache = kernel.variable(self.memory, "vmap_area_cachep").map(VirtAddr);
        let mut is_vmap_area_site = allocation_sites::vmap_area_sites(kernel, self.allocations);
        // This is rarely needed, because the allocation of nearly every area was seen.
        let space = LazyCell::new(|| Space::new(kernel.variable(self.memory, "vmalloc_base"), areas));
        for &(i, _) in self.special_objects.iter().filter(|(_, cache)| Some(*cache) == vmap_area_cache) {
            let b = &self.blocks[i as usize];
            let is_area = match b.seen() {
                true => is_vmap_area_site(self.object(b)),
                false => space.is_free_area(self.bounds(kernel, b)),
            };
            if is_area {
                let vm = if purged.contains(&b.addr) { 0 } else { 8 };
                self.skip.extend(i, [0..16, offsets.vm..offsets.vm + vm]);
            }
        }
        for area in areas {
            if let Some(block) = self.addresses.find(area.area.0) {
                let at = area.area.0 - self.blocks[block as usize].addr;
                self.skip.extend(block, [at..at + 16, at + offsets.vm..at + offsets.vm + 8]);
            }
            if let Some(block) = self.addresses.find(area.vm.0) {
                let at = area.vm.0 - self.blocks[block as usize].addr;
                self.skip.push(block, at + offsets.addr..at + offsets.addr + 8);
                // Areas of per-CPU chunks, for example, hold many blocks.
                let own = self.addresses.find(area.start);
                let own = own.filter(|own| self.blocks[*own as usize].kind == Kind::Vmalloc);
                self.rules.set_weak(block);
                self.rules.set_next(block, own);
            }
        }
    }

    /// The first two words of a block. They are the bounds if the block is an area.
    fn bounds(&self, kernel: &Kernel, block: &Block) -> Range<u64> {
        let word = |at| kernel.read_u64(self.memory, VirtAddr(block.addr).offset(at)).unwrap_or(0);
        word(0)..word(8)
    }

    /// A sheaf is an array of free objects. Pointers to objects that it has handed out stay in it.
    pub(super) fn apply_sheaf_rules(&mut self, kernel: &Kernel, sheaves: &[VirtAddr]) {
        let Some(objects) = kernel.offset_of("slab_sheaf", "objects") else { return };
        for block in sheaves.iter().filter_map(|s| self.addresses.find(s.0)) {
            let size = self.blocks[block as usize].size;
            self.skip.push(block, objects..size);
        }
    }

    /// kmemleak's own objects hold the address of every object, and so do those of debugobjects.
    /// kmemleak does not scan the caches that they come from (SLAB_NOLEAKTRACE).
    pub(super) fn apply_leak_tracer_rules(&mut self, kernel: &Kernel, caches: &HashMap<VirtAddr, bool>) {
        // A kmemleak object that is no longer used waits for a grace period. Its rcu_head then
        // links it to other objects that wait.
        let link = kernel.offset_of("kmemleak_object", "flags").zip(kernel.offset_of("kmemleak_object", "rcu.next"));
        for (i, cache) in &self.special_objects {
            let (b, Some(is_kmemleak)) = (&self.blocks[*i as usize], caches.get(cache)) else { continue };
            let link = link.filter(|(flags, _)| {
                // OBJECT_ALLOCATED, mm/kmemleak.c
                *is_kmemleak && kernel.read_u32(self.memory, VirtAddr(b.addr + flags)).is_ok_and(|f| f & 1 == 0)
            });
            // Without a link, both ranges together cover the whole block.
            let end = link.map_or(b.size, |(_, next)| next);
            self.rules.set_weak(*i);
            self.skip.extend(*i, [0..end, (end + 8).min(b.size)..b.size]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_area_is_free_between_busy_ones() {
        let area = |start, end| vmap::Area { area: VirtAddr(0), start, end, vm: VirtAddr(0), block: None };
        let at = |page: u64| VMALLOC_START + page * PAGE_SIZE;
        let space = Space::new(None, &[area(at(8), at(10)), area(at(2), at(4))]);
        for free in [at(0)..at(2), at(4)..at(8), at(5)..at(6), at(10)..at(99)] {
            assert!(space.is_free_area(free.clone()), "{free:x?}");
        }
        let words = [at(0)..at(3), at(3)..at(5), at(4)..at(9), at(8)..at(10), at(0)..at(99)];
        let others = [at(6)..at(6), at(7)..at(6), at(4) + 8..at(5), at(4)..at(5) + 1, at(0) - PAGE_SIZE..at(1), 0..0];
        for other in words.into_iter().chain(others) {
            assert!(!space.is_free_area(other.clone()), "{other:x?}");
        }
    }
}
