//! The slabs among the page frames. `struct slab` overlays `struct page` (mm/slab.h).

use super::{Pages, Use};
use crate::memory::{PAGE_SIZE, PhysAddr, StoppedMemory, VirtAddr};

/// One slab, which is a page or a compound page.
#[derive(Debug, Clone, Copy)]
pub struct Slab {
    /// Physical address of its `struct slab`.
    pub descriptor: PhysAddr,
    /// Address of its first byte in the direct map.
    pub start: VirtAddr,
    /// Number of its pages.
    pub pages: u64,
}

impl Pages {
    /// The virtual address of the `kmem_cache` of a direct-map address. The address may be in a
    /// slab or in an object of KFENCE.
    pub fn slab_cache(&self, memory: &impl StoppedMemory, at: VirtAddr) -> Option<VirtAddr> {
        let pfn = self.direct(at)?.pfn();
        if self.usage(pfn) == Use::Kfence {
            return self.kfence.as_ref()?.object_at(at).map(|object| object.cache);
        }
        if self.usage(pfn) != Use::Slab {
            return None;
        }
        let head = pfn.checked_sub(u64::from(self.tails[pfn as usize]))?;
        let descriptor = self.descriptor_phys(head)?;
        memory.read_u64(PhysAddr(descriptor.0 + self.layout.slab_cache)).ok().map(VirtAddr)
    }

    /// Every slab.
    pub fn slabs(&self) -> impl Iterator<Item = Slab> + '_ {
        let heads = self.uses.iter().zip(&self.tails).enumerate();
        heads.filter(|(_, (u, tail))| **u == Use::Slab && **tail == 0).map(|(pfn, _)| Slab {
            descriptor: self.descriptor_phys(pfn as u64).unwrap_or(PhysAddr(u64::MAX)),
            start: VirtAddr(self.direct_map.wrapping_add(pfn as u64 * PAGE_SIZE)),
            pages: self.pages_from(pfn),
        })
    }

    /// Number of pages of the slab that starts at a frame.
    fn pages_from(&self, first: usize) -> u64 {
        let next = first + 1;
        let further = self.uses[next..].iter().zip(&self.tails[next..]).zip(1..);
        1 + further.take_while(|((u, tail), i)| **u == Use::Slab && u64::from(**tail) == *i).count() as u64
    }

    /// The slab that contains a direct-map address.
    pub fn slab_of(&self, at: VirtAddr) -> Option<Slab> {
        let pfn = self.direct(at)?.pfn();
        if self.usage(pfn) != Use::Slab {
            return None;
        }
        let head = pfn.checked_sub(u64::from(self.tails[pfn as usize]))?;
        Some(Slab {
            descriptor: self.descriptor_phys(head)?,
            start: VirtAddr(self.direct_map.wrapping_add(head * PAGE_SIZE)),
            pages: self.pages_from(head as usize),
        })
    }
}
