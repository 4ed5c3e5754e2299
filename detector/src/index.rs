//! From a word to the block it points into.
//!
//! Blocks lie in a few dense regions of a vast address space (the direct map, vmalloc space, modules), so
//! the index is a short list of regions, each with one entry a page: the first span that ends after the
//! page's start. A lookup is two compares, one load and a step or two.

const PAGE_SHIFT: u32 = 12;
/// Spans further apart than this are in different regions. A page without spans costs 4 bytes.
const REGION_GAP: u64 = 256 << 20;

/// A half-open range of addresses that belongs to a block. A block may have several, as per-CPU blocks do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span {
    /// First address.
    pub start: u64,
    /// First address after it.
    pub end: u64,
    /// The block's number.
    pub block: u32,
}

struct Region {
    start: u64,
    len: u64,
    /// For each page, the index of the first span that ends after the page's start.
    pages: Vec<u32>,
}

/// An immutable index over spans.
pub struct Index {
    spans: Vec<Span>,
    regions: Vec<Region>,
    low: u64,
    len: u64,
}

impl Index {
    /// Builds the index. Empty spans are dropped; of overlapping spans the one that starts first is found.
    pub fn new(mut spans: Vec<Span>) -> Index {
        spans.retain(|s| s.start < s.end);
        // Mostly runs that ascend, one for each slab, which a stable sort merges.
        spans.sort_by_key(|s| (s.start, s.end));
        let mut regions: Vec<Region> = Vec::new();
        let mut first = 0;
        for i in 0..spans.len() {
            let last = i + 1 == spans.len() || spans[i + 1].start - spans[i].end.min(spans[i + 1].start) > REGION_GAP;
            if last {
                regions.push(region(&spans, first, i + 1));
                first = i + 1;
            }
        }
        let low = spans.first().map_or(0, |s| s.start);
        let high = spans.iter().map(|s| s.end).max().unwrap_or(0);
        Index { spans, regions, low, len: high - low }
    }

    /// The block that `addr` points into, its first byte and its interior alike.
    #[inline]
    pub fn find(&self, addr: u64) -> Option<u32> {
        if addr.wrapping_sub(self.low) >= self.len {
            return None;
        }
        self.find_in_regions(addr)
    }

    fn find_in_regions(&self, addr: u64) -> Option<u32> {
        let region = self.regions.iter().find(|r| addr.wrapping_sub(r.start) < r.len)?;
        let page = ((addr - region.start) >> PAGE_SHIFT) as usize;
        let from = region.pages[page] as usize;
        self.spans[from..].iter().take_while(|s| s.start <= addr).find(|s| addr < s.end).map(|s| s.block)
    }
}

/// The region of `spans[first..end]`.
fn region(spans: &[Span], first: usize, end: usize) -> Region {
    let start = spans[first].start >> PAGE_SHIFT << PAGE_SHIFT;
    let high = spans[first..end].iter().map(|s| s.end).max().unwrap_or(start);
    let count = ((high - 1 - start) >> PAGE_SHIFT) as usize + 1;
    let mut pages = Vec::with_capacity(count);
    let mut at = first;
    for page in 0..count as u64 {
        let page_start = start + (page << PAGE_SHIFT);
        while at < end && spans[at].end <= page_start {
            at += 1;
        }
        pages.push(at as u32);
    }
    Region { start, len: high - start, pages }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn span(start: u64, len: u64, block: u32) -> Span {
        Span { start, end: start + len, block }
    }

    #[test]
    fn first_and_interior_bytes_but_not_one_past() {
        let base = 0xffff_8880_0000_0000;
        let index = Index::new(vec![span(base + 0x40, 32, 0), span(base + 0x60, 8192, 1), span(base + 0x4000, 8, 2)]);
        assert_eq!(index.find(base + 0x3f), None);
        assert_eq!(index.find(base + 0x40), Some(0));
        assert_eq!(index.find(base + 0x5f), Some(0));
        assert_eq!(index.find(base + 0x60), Some(1));
        assert_eq!(index.find(base + 0x205f), Some(1));
        assert_eq!(index.find(base + 0x2060), None);
        assert_eq!(index.find(base + 0x4007), Some(2));
        assert_eq!(index.find(base + 0x4008), None);
        assert_eq!(index.find(0), None);
        assert_eq!(index.find(u64::MAX), None);
    }

    #[test]
    fn distant_regions_need_no_memory_between() {
        let index = Index::new(vec![span(0x1000, 8, 7), span(0xffff_c900_0000_0000, 0x4000, 8)]);
        assert_eq!(index.regions.len(), 2);
        assert_eq!(index.find(0x1004), Some(7));
        assert_eq!(index.find(0xffff_c900_0000_3fff), Some(8));
        assert_eq!(index.find(0xffff_0000_0000_0000), None);
        assert_eq!(Index::new(vec![]).find(0), None);
    }

    #[test]
    fn agrees_with_a_linear_search() {
        // A multiplicative generator is random enough and needs no crate.
        let mut x = 1u64;
        let mut random = || {
            x = x.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            x >> 33
        };
        let mut at = 0x10_0000;
        let spans: Vec<Span> = (0..2000)
            .map(|i| {
                at += random() % 5000;
                let s = span(at, 1 + random() % 9000, i);
                at = s.end;
                s
            })
            .collect();
        let index = Index::new(spans.clone());
        for _ in 0..20_000 {
            let addr = 0x10_0000 + random() % (at - 0x10_0000 + 100);
            let naive = spans.iter().find(|s| (s.start..s.end).contains(&addr)).map(|s| s.block);
            assert_eq!(index.find(addr), naive);
        }
    }
}
