//! Zspages, which hold the compressed data of zram and zswap (mm/zsmalloc.c, 5.10 to 7.3).
//!
//! A zspage consists of single pages. `page.private` of each is the address of their `struct
//! zspage`, a slab object. That object holds the address of the first page's descriptor. In each
//! page the address of the next descriptor is where other pages have `index`. It is `page.freelist`
//! in 5.10, `page.index` up to 6.13, and `zpdesc.next` after. The first page has PG_private.
//!
//! From 6.11 on a page type marks these pages. Before, `page.private` and `struct zspage` must
//! agree. A page with a buffer head that left its file looks the same (`buffer_head.b_page`). Its
//! file data holds no references either.

use super::{Pages, Use};
use crate::memory::{PAGE_SIZE, PhysAddr, StoppedMemory, VirtAddr, u64_at};

/// Bytes of `struct zspage` that are read. `first_page` is its third word (5.10 to 7.3).
const ZSPAGE: usize = 64;

impl Pages {
    /// Notes a kernel page as a candidate if no page type shows zspages. `page` is its descriptor.
    pub(super) fn may_be_zspage(&mut self, pfn: u64, page: &[u8]) {
        if self.layout.tells_zspages() {
            return;
        }
        let private = VirtAddr(u64_at(page, self.layout.private).unwrap_or(0));
        if private.0.is_multiple_of(8) && self.direct(private).is_some() {
            self.maybe_zspages.extend(u32::try_from(pfn));
        }
    }

    /// Classifies the candidates. A page is a zspage if the first page has the same `struct
    /// zspage`.
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
        // The object may be smaller and the last of its page.
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

    /// The word at offset `at` in the descriptor of a frame.
    fn descriptor_word(&self, memory: &impl StoppedMemory, pfn: u64, at: usize) -> Option<u64> {
        memory.read_u64(PhysAddr(self.descriptor_phys(pfn)?.0 + at as u64)).ok()
    }

    /// The frame whose descriptor is at this virtual address.
    fn frame_of(&self, descriptor: u64) -> Option<u64> {
        let at = descriptor.checked_sub(self.vmemmap.0)?;
        let pfn = at / self.layout.size;
        (at.is_multiple_of(self.layout.size) && pfn < self.end()).then_some(pfn)
    }

    /// The next frame of a zspage. `page` is the descriptor of one of its pages.
    pub(super) fn next_of_zspage(&self, page: &[u8]) -> Option<u64> {
        self.frame_of(u64_at(page, self.layout.index?)?)
    }
}
