//! Blocks whose contents are not what refers to an object: what describes vmap areas, sheaves, and other tracers of leaks.

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

/// Where vmalloc space begins without KASLR (VMALLOC_START of Documentation/arch/x86/x86_64/mm.rst).
const VMALLOC_START: u64 = 0xffff_c900_0000_0000;

/// Vmalloc space.
struct Space {
    start: u64,
    /// What is busy of it, ascending.
    busy: Vec<Range<u64>>,
}

impl Space {
    fn new(start: Option<u64>, areas: &[vmap::Area]) -> Space {
        let mut busy: Vec<Range<u64>> = areas.iter().map(|area| area.start..area.end).collect();
        busy.sort_unstable_by_key(|area| area.start);
        Space { start: start.unwrap_or(VMALLOC_START), busy }
    }

    /// Whether these are the bounds of an area that is not busy. It may come from a cache that others use too, and who has it was
    /// not seen: but for such an area, nobody has two addresses of vmalloc space with nothing in use between them.
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
    /// A vm_struct and a vmap_area describe their area, which does not make it referenced. But who holds
    /// the vm_struct holds the area (kmemleak's excess_ref).
    pub(super) fn apply_vmap_rules(&mut self, kernel: &Kernel, areas: Option<&[vmap::Area]>) {
        let (Some(areas), Some(offsets)) = (areas, vmap::Offsets::read(kernel)) else {
            log::warn!("the kernel's vmap areas cannot be read: leaked vmalloc blocks may be missed");
            return;
        };
        // Areas that are free, pooled or about to be have bounds too, which touch other areas' blocks, and
        // what was once their vm_struct.
        let purged: HashSet<u64> = vmap::purged(kernel, self.memory).into_iter().map(|a| a.0).collect();
        let vmap_area_cache = kernel.variable(self.memory, "vmap_area_cachep").map(VirtAddr);
        let mut is_vmap_area_site = allocation_sites::vmap_area_sites(kernel, self.allocations);
        // Nearly always the allocation of each was seen.
        let space = LazyCell::new(|| Space::new(kernel.variable(self.memory, "vmalloc_base"), areas));
        for &(i, _) in self.odd_objects.iter().filter(|(_, cache)| Some(*cache) == vmap_area_cache) {
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
                // Areas of per-CPU chunks and the like hold many blocks.
                let own = self.addresses.find(area.start);
                let own = own.filter(|own| self.blocks[*own as usize].kind == Kind::Vmalloc);
                self.rules.set_weak(block);
                self.rules.set_next(block, own);
            }
        }
    }

    /// The first two words of a block, which are an area's bounds if it is one.
    fn bounds(&self, kernel: &Kernel, block: &Block) -> Range<u64> {
        let word = |at| kernel.read_u64(self.memory, VirtAddr(block.addr).offset(at)).unwrap_or(0);
        word(0)..word(8)
    }

    /// A sheaf is an array of free objects, and what it has given out still stands in it.
    pub(super) fn apply_sheaf_rules(&mut self, kernel: &Kernel, sheaves: &[VirtAddr]) {
        let Some(objects) = kernel.offset_of("slab_sheaf", "objects") else { return };
        for block in sheaves.iter().filter_map(|s| self.addresses.find(s.0)) {
            let size = self.blocks[block as usize].size;
            self.skip.push(block, objects..size);
        }
    }

    /// A kernel with kmemleak in it has an address of every object in kmemleak's own ones, and debugobjects does
    /// the like. These caches are the ones that kmemleak does not look into (SLAB_NOLEAKTRACE).
    pub(super) fn apply_leak_tracer_rules(&mut self, kernel: &Kernel, caches: &HashMap<VirtAddr, bool>) {
        // What kmemleak has done with waits for a grace period: a link in the chain of everything that waits.
        let link = kernel.offset_of("kmemleak_object", "flags").zip(kernel.offset_of("kmemleak_object", "rcu.next"));
        for (i, cache) in &self.odd_objects {
            let (b, Some(is_kmemleak)) = (&self.blocks[*i as usize], caches.get(cache)) else { continue };
            let link = link.filter(|(flags, _)| {
                // OBJECT_ALLOCATED, mm/kmemleak.c
                *is_kmemleak && kernel.read_u32(self.memory, VirtAddr(b.addr + flags)).is_ok_and(|f| f & 1 == 0)
            });
            // Without a link, there is nothing between the two.
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
