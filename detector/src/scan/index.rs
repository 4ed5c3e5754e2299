//! Finds the block that a word points into.
//!
//! Blocks lie in a few dense regions of a large address space: the direct map, vmalloc space,
//! modules. The index is a short list of regions. A region has one entry per page: the number of
//! spans in the page, and the first of them. The position of a span in its page follows from the
//! address, since objects of a slab have equal sizes. A lookup costs two comparisons and mostly two
//! loads.

use std::ops::Range;

const PAGE_SHIFT: u32 = 12;
const PAGE_SIZE: u64 = 1 << PAGE_SHIFT;
/// Spans with a larger gap, in bytes, are in different regions. A page without spans costs 8 bytes
/// of address space. It costs no memory if its neighbours have no spans either.
const REGION_GAP: u64 = 256 << 20;
/// Most pages of all regions: 512 GiB of addresses. Spans beyond this bound are left out. No real
/// guest has them.
const MAX_PAGES: u64 = 1 << 27;
const MAX_REGIONS: usize = 64;
/// Longer spans are split.
const MAX_LEN: u64 = 1 << 31;

/// A half-open range of addresses that belongs to a block. A per-CPU block has several.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span {
    /// The first address.
    pub start: u64,
    /// The first address behind the range.
    pub end: u64,
    /// The number of the block.
    pub block: u32,
}

/// A span as the index stores it. Stored spans do not overlap.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Entry {
    start: u64,
    len: u32,
    block: u32,
}

impl Entry {
    #[inline]
    fn end(&self) -> u64 {
        self.start.saturating_add(self.len.into())
    }
}

struct Region {
    start: u64,
    len: u64,
    /// For each page, the first span that overlaps it. The upper half holds the number of such
    /// spans.
    pages: Vec<u64>,
}

/// The spans that overlap a page: the first one and their number.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Place {
    first: u32,
    count: u32,
}

impl Place {
    /// The position of the span that contains `addr`, if all spans have one size and fill the page.
    #[inline]
    fn expected(self, addr: u64) -> usize {
        ((addr % PAGE_SIZE * u64::from(self.count)) >> PAGE_SHIFT) as usize
    }
}

/// An immutable index over spans.
pub struct Index {
    entries: Vec<Entry>,
    /// The region with the most spans comes first.
    regions: Vec<Region>,
    /// The first address of all spans.
    low: u64,
    len: u64,
    /// Whether spans overlapped.
    overlaps: bool,
    /// Whether spans were left out because they are too far from all others.
    cut: bool,
}

impl Index {
    /// Builds the index and drops empty spans. Of overlapping spans, a lookup finds the one that
    /// starts first. Ascending spans are taken as they come. Only the spans behind the first one
    /// out of order are sorted.
    pub fn new(spans: impl IntoIterator<Item = Span>) -> Index {
        let spans = spans.into_iter();
        let mut entries: Vec<Entry> = Vec::with_capacity(spans.size_hint().0);
        let mut late: Vec<Entry> = Vec::new();
        let mut end = 0;
        // `for_each` is faster than a loop here, since the iterator may be a chain.
        spans.for_each(|span| {
            let mut start = span.start;
            while start < span.end {
                let len = (span.end - start).min(MAX_LEN);
                let entry = Entry { start, len: len as u32, block: span.block };
                start += len;
                if end <= entry.start {
                    entries.push(entry);
                    end = start;
                } else {
                    // All later spans are late, too.
                    end = u64::MAX;
                    late.push(entry);
                }
            }
        });
        // A stable sort merges ascending runs, which these mostly are.
        late.sort_by_key(|e| (e.start, e.len));
        merge(&mut entries, late);
        let overlaps = cut_overlaps(&mut entries);
        let mut runs: Vec<Range<usize>> = Vec::new();
        let mut first = 0;
        for i in 0..entries.len() {
            let last = i + 1 == entries.len() || entries[i + 1].start - entries[i].end() > REGION_GAP;
            if last {
                runs.push(first..i + 1);
                first = i + 1;
            }
        }
        runs.sort_by_key(|run| std::cmp::Reverse(run.len()));
        let mut room = MAX_PAGES;
        let mut regions = Vec::new();
        for run in &runs {
            let pages = (entries[run.end - 1].end() - entries[run.start].start) / PAGE_SIZE;
            if pages <= room && regions.len() < MAX_REGIONS {
                room -= pages;
                regions.push(region(&entries, run.start, run.end));
            }
        }
        let cut = regions.len() < runs.len();
        let low = entries.first().map_or(0, |e| e.start);
        let len = entries.last().map_or(0, |e| e.end()) - low;
        Index { entries, low, len, regions, overlaps, cut }
    }

    /// The block that contains `addr`.
    #[inline]
    pub fn find(&self, addr: u64) -> Option<u32> {
        if !self.may_find(addr) {
            return None;
        }
        self.find_at(self.place(addr)?, addr)
    }

    /// Whether an address lies between the first and the last span.
    #[inline]
    pub(crate) fn may_find(&self, addr: u64) -> bool {
        addr.wrapping_sub(self.low) < self.len
    }

    /// The spans in the page of `addr`, or `None` if there are none.
    #[inline]
    pub(crate) fn place(&self, addr: u64) -> Option<Place> {
        let region = self.regions.iter().find(|r| addr.wrapping_sub(r.start) < r.len)?;
        let page = *region.pages.get(((addr - region.start) >> PAGE_SHIFT) as usize)?;
        (page != 0).then_some(Place { first: page as u32, count: (page >> 32) as u32 })
    }

    /// As [`Index::find`], for an address whose page was looked up.
    #[inline]
    pub(crate) fn find_at(&self, place: Place, addr: u64) -> Option<u32> {
        let entries = self.entries.get(place.first as usize..)?.get(..place.count as usize)?;
        let mut at = place.expected(addr);
        let entry = loop {
            let entry = entries.get(at)?;
            match entry.start {
                start if start > addr => at = at.checked_sub(1)?,
                _ if entries.get(at + 1).is_some_and(|next| next.start <= addr) => at += 1,
                _ => break entry,
            }
        };
        (addr - entry.start < entry.len.into()).then_some(entry.block)
    }

    /// The entry that [`Index::find_at`] reads first, for a hint to the CPU's cache.
    #[inline]
    pub(crate) fn expected(&self, place: Place, addr: u64) -> Option<&Entry> {
        self.entries.get(place.first as usize + place.expected(addr))
    }

    /// Whether spans overlapped. Some addresses of a span then lead to another block.
    pub fn overlaps(&self) -> bool {
        self.overlaps
    }

    /// Whether spans were left out because they are too far from all others.
    pub fn is_cut(&self) -> bool {
        self.cut
    }

    /// The address ranges of the regions, those with most spans first.
    pub fn ranges(&self) -> impl Iterator<Item = Range<u64>> + '_ {
        self.regions.iter().map(|r| r.start..r.start + r.len)
    }
}

/// Merges `late` into `entries`. Both are sorted. There are few late entries, so the entries
/// between two of them move together.
fn merge(entries: &mut Vec<Entry>, late: Vec<Entry>) {
    let mut from = entries.len();
    entries.extend_from_slice(&late);
    let mut to = entries.len();
    for entry in late.into_iter().rev() {
        // Of equal entries, the earlier ones stay first.
        let at = entries[..from].partition_point(|e| (e.start, e.len) <= (entry.start, entry.len));
        to -= from - at;
        entries.copy_within(at..from, to);
        from = at;
        to -= 1;
        entries[to] = entry;
    }
}

/// Cuts from each span what an earlier span covers. Returns whether anything was cut.
fn cut_overlaps(entries: &mut Vec<Entry>) -> bool {
    let mut end = 0;
    let overlap = |e: &Entry| {
        let overlaps = e.start < end;
        end = end.max(e.end());
        overlaps
    };
    if !entries.iter().any(overlap) {
        return false;
    }
    let mut end = 0;
    entries.retain_mut(|e| {
        let start = e.start.max(end);
        let rest = e.end().saturating_sub(start);
        end = end.max(e.end());
        (e.start, e.len) = (start, rest as u32);
        rest > 0
    });
    true
}

/// Builds the region of `entries[first..end]`.
fn region(entries: &[Entry], first: usize, end: usize) -> Region {
    let start = entries[first].start >> PAGE_SHIFT << PAGE_SHIFT;
    let len = entries[end - 1].end() - start;
    // Zeroed pages from the system use no memory until they are written.
    let mut pages = vec![0u64; ((len - 1) >> PAGE_SHIFT) as usize + 1];
    for (i, entry) in entries[first..end].iter().enumerate() {
        let last = (entry.start - start + u64::from(entry.len) - 1) >> PAGE_SHIFT;
        for page in &mut pages[((entry.start - start) >> PAGE_SHIFT) as usize..=last as usize] {
            *page = if *page == 0 { (1 << 32) | (first + i) as u64 } else { *page + (1 << 32) };
        }
    }
    Region { start, len, pages }
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
        const SPANS: u32 = if cfg!(miri) { 50 } else { 2000 };
        // A linear congruential generator is random enough and needs no crate.
        let mut x = 1u64;
        let mut random = || {
            x = x.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            x >> 33
        };
        let mut at = 0x10_0000;
        let spans: Vec<Span> = (0..SPANS)
            .map(|i| {
                at += random() % 5000;
                let s = span(at, 1 + random() % 9000, i);
                at = s.end;
                s
            })
            .collect();
        let index = Index::new(spans.clone());
        for _ in 0..10 * SPANS {
            let addr = 0x10_0000 + random() % (at - 0x10_0000 + 100);
            let naive = spans.iter().find(|s| (s.start..s.end).contains(&addr)).map(|s| s.block);
            assert_eq!(index.find(addr), naive);
        }
    }

    #[test]
    fn of_spans_that_overlap_the_one_that_starts_first_is_found() {
        let mut x = 7u64;
        let mut random = || {
            x = x.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            x >> 33
        };
        for _ in 0..if cfg!(miri) { 2 } else { 50 } {
            let spans: Vec<Span> = (0..60).map(|i| span(0x10_0000 + random() % 20_000, random() % 3000, i)).collect();
            let index = Index::new(spans.clone());
            assert!(index.overlaps());
            let mut sorted = spans;
            sorted.sort_by_key(|s| (s.start, s.end));
            for _ in 0..if cfg!(miri) { 50 } else { 2000 } {
                let addr = 0x10_0000 + random() % 24_000;
                let naive = sorted.iter().find(|s| (s.start..s.end).contains(&addr)).map(|s| s.block);
                assert_eq!(index.find(addr), naive);
            }
        }
        assert!(!Index::new([span(8, 8, 0), span(16, 8, 1), span(0, 8, 2)]).overlaps());
    }
}
