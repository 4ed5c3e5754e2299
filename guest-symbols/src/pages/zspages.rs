//! Zspages, which hold the compressed data of zram and zswap (mm/zsmalloc.c, 5.10 to 7.3).
//!
//! A zspage is some single pages. `page.private` of each is the address of their `struct zspage`, a slab object, which has the
//! address of the first one's descriptor. That of the next page stands where other pages have `index` (`page.freelist`
//! in 5.10, `page.index` to 6.13, `zpdesc.next` after). The first page has PG_private.
//!
//! From 6.11 on a page type marks these pages. Before, `page.private` and `struct zspage` must agree. A page with a buffer head
//! (`buffer_head.b_page`) that left its file looks the same: its file data holds no references either.

use super::{Pages, Use};
use crate::memory::{PAGE_SIZE, PhysAddr, StoppedMemory, VirtAddr, u64_at};

/// Bytes of `struct zspage` that are looked at. `first_page` is its third word (5.10 to 7.3).
const ZSPAGE: usize = 64;

impl Pages {
    /// Notes the frame `pfn`, with descriptor `page`, if it may be of a zspage and no page type marks those.
    pub(super) fn may_be_zspage(&mut self, pfn: u64, page: &[u8]) {
        if self.layout.tells_zspages() {
            return;
        }
        let private = VirtAddr(u64_at(page, self.layout.private).unwrap_or(0));
        if private.0.is_multiple_of(8) && self.direct(private).is_some() {
            self.maybe_zspages.extend(u32::try_from(pfn));
        }
    }

    /// Marks the noted frames that are of zspages.
    pub(super) fn settle_zspages(&mut self, memory: &impl StoppedMemory) {
        for pfn in std::mem::take(&mut self.maybe_zspages) {
            let private = self.descriptor_word(memory, u64::from(pfn), self.layout.private);
            if private.is_some_and(|zspage| self.is_zspage(memory, VirtAddr(zspage))) {
                self.uses[pfn as usize] = Use::Zspage;
            }
        }
    }

    /// Whether a `struct zspage` is at this virtual address: its first page must refer back to it.
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
