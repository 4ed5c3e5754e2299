//! Zspages, which hold the compressed data of zram and zswap (mm/zsmalloc.c, 5.10 to 7.3).
//!
//! A zspage is some single pages. `page.private` of each is the address of their `struct zspage`, a slab object, which has the
//! address of the first one's descriptor. That of the next page stands where other pages have `index` (`page.freelist`
//! in 5.10, `page.index` to 6.13, `zpdesc.next` after). The first page has PG_private.

use super::{Pages, Use};
use crate::memory::{PAGE_SIZE, PhysAddr, StoppedMemory, VirtAddr, u64_at};

/// `struct zspage` has no more bytes (40 to 56 in 5.10 to 7.3 without lockdep), and `first_page` is among the first three words.
const ZSPAGE: usize = 64;

impl Pages {
    /// Notes a page of the kernel's own, whose descriptor is `page`, if it may be one of a zspage and no page type tells.
    pub(super) fn may_be_zspage(&mut self, pfn: u64, page: &[u8]) {
        if self.layout.tells_zspages() {
            return;
        }
        let private = VirtAddr(u64_at(page, self.layout.private).unwrap_or(0));
        if private.0.is_multiple_of(8) && self.direct(private).is_some() {
            self.maybe_zspages.extend(u32::try_from(pfn));
        }
    }

    /// Tells which of the pages that were noted are of zspages: those for whose `struct zspage` the first page says the same.
    pub(super) fn settle_zspages(&mut self, memory: &impl StoppedMemory) {
        for pfn in std::mem::take(&mut self.maybe_zspages) {
            let private = self.descriptor_word(memory, u64::from(pfn), self.layout.private);
            if private.is_some_and(|zspage| self.is_zspage(memory, VirtAddr(zspage))) {
                self.uses[pfn as usize] = Use::Zspage;
            }
        }
    }

    /// Whether there is a `struct zspage` at an address.
    fn is_zspage(&self, memory: &impl StoppedMemory, at: VirtAddr) -> bool {
        let Some(phys) = self.direct(at).filter(|phys| self.usage(phys.pfn()) == Use::Slab) else { return false };
        // It may be the last object of its page, and smaller.
        let len = ZSPAGE.min((PAGE_SIZE - phys.0 % PAGE_SIZE) as usize);
        let words = memory.slice(phys, len).unwrap_or_default();
        words.as_chunks::<8>().0.iter().any(|word| {
            let Some(first) = self.frame_of(u64::from_le_bytes(*word)) else { return false };
            self.descriptor_word(memory, first, self.layout.private) == Some(at.0)
                && self
                    .descriptor_word(memory, first, self.layout.flags)
                    .is_some_and(|flags| flags & self.layout.has_private != 0)
        })
    }

    /// The word at an offset in the descriptor of a frame.
    fn descriptor_word(&self, memory: &impl StoppedMemory, pfn: u64, at: usize) -> Option<u64> {
        memory.read_u64(PhysAddr(self.descriptor_phys(pfn)?.0 + at as u64)).ok()
    }

    /// The frame whose descriptor is at this virtual address.
    fn frame_of(&self, descriptor: u64) -> Option<u64> {
        let at = descriptor.checked_sub(self.vmemmap.0)?;
        let pfn = at / self.layout.size;
        (at.is_multiple_of(self.layout.size) && pfn < self.end()).then_some(pfn)
    }

    /// The frame that follows in a zspage, by the descriptor `page` of one of its pages.
    pub(super) fn next_of_zspage(&self, page: &[u8]) -> Option<u64> {
        self.frame_of(u64_at(page, self.layout.index?)?)
    }
}
