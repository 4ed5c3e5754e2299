//! Large kmallocs among the page frames (___kmalloc_large_node(), mm/slub.c).

use super::Pages;
use crate::memory::PAGE_SIZE;

impl Pages {
    /// Notes a kernel page if its page type shows a large kmalloc. `page` is its descriptor.
    pub(super) fn may_be_large(&mut self, pfn: u64, page: &[u8]) {
        if self.layout.is_large(page) {
            self.large.push(pfn);
        }
    }

    /// Large kmallocs: the direct-map address and bytes of each. Empty if no page type shows them
    /// (up to 6.17). They are compound pages (___kmalloc_large_node(), mm/slub.c).
    pub fn large(&self) -> impl Iterator<Item = (u64, u64)> + '_ {
        self.large.iter().map(|&pfn| {
            let tails = self.tails.get(pfn as usize + 1..).unwrap_or_default();
            let tails = tails.iter().zip(1..).take_while(|(tail, i)| **tail == *i).count() as u64;
            (self.direct_map.wrapping_add(pfn * PAGE_SIZE), (1 + tails) * PAGE_SIZE)
        })
    }
}
