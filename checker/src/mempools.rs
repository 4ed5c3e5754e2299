//! Elements that a mempool has handed out.
//!
//! A mempool keeps its reserve in an array of pointers (`mempool_t.elements`, mm/mempool.c, 5.10 to
//! 7.3). It hands out the last element and only lowers its count (remove_element()). The pointer
//! stays in the array.
//!
//! The array is recognized by its allocation site, but the count is in the pool. Pools are
//! variables, or parts of objects of all kinds, so they are not enumerated. The scan meets the pool
//! when it meets the pointer to the array.

use crate::blocks::Blocks;
use detector::objects::Kind;
use detector::scan::Surroundings;
use guest_symbols::Kernel;
use guest_symbols::memory::{PAGE_SIZE, PhysAddr, StoppedMemory, VirtAddr};
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// Functions that allocate the array of a new pool (5.10 to 7.3). mempool_resize() makes arrays
/// that no pool refers to for a while, so these arrays have no rule.
const SITES: [&str; 1] = ["mempool_init_node"];
/// The struct of a pool: `mempool_s` to 6.18, and `mempool` since.
const POOLS: [&str; 2] = ["mempool_s", "mempool"];
/// The count of an array whose pool was not met: all of its words count.
const UNKNOWN: u64 = u64::MAX;

/// Offsets of members of the struct of a pool.
#[derive(Clone, Copy)]
struct Layout {
    min_nr: u64,
    curr_nr: u64,
    elements: u64,
    alloc: u64,
    free: u64,
    /// Bytes from the start of the struct that hold all of these.
    size: u64,
}

impl Layout {
    fn read(kernel: &Kernel) -> Option<Layout> {
        let name = POOLS.iter().find(|name| kernel.offset_of(name, "elements").is_some())?;
        let at = |member| kernel.offset_of(name, member);
        let (min_nr, curr_nr, elements) = (at("min_nr")?, at("curr_nr")?, at("elements")?);
        let (alloc, free) = (at("alloc")?, at("free")?);
        let last = [min_nr, curr_nr, elements, alloc, free].into_iter().max()?;
        Some(Layout { min_nr, curr_nr, elements, alloc, free, size: last.saturating_add(8) })
    }
}

/// The array of a pool.
struct Array {
    block: u32,
    /// Its virtual range.
    place: Range<u64>,
    /// Its guest physical address.
    at: u64,
    /// The number of elements in the reserve, or [`UNKNOWN`].
    reserve: AtomicU64,
    /// Whether a word that is not in a pool points to it.
    elsewhere: AtomicBool,
}

/// What the words around a pointer to an array are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Owner {
    /// A pool with so many elements in its reserve.
    Pool(u64),
    /// They are not all on one page, so they are not read.
    Cut,
    /// Something else.
    Other,
}

/// A set of page numbers modulo its size. Nearly every word is settled by it.
#[derive(Default)]
struct PageFilter([u64; 8]);

impl PageFilter {
    fn add(&mut self, addresses: &Range<u64>) {
        let pages = addresses.start / PAGE_SIZE..=addresses.end.saturating_sub(1) / PAGE_SIZE;
        // After that many pages the numbers repeat.
        for page in pages.take(64 * self.0.len()) {
            self.0[(page / 64 % 8) as usize] |= 1 << (page % 64);
        }
    }

    fn may_contain(&self, address: u64) -> bool {
        let page = address / PAGE_SIZE;
        self.0[(page / 64 % 8) as usize] >> (page % 64) & 1 != 0
    }
}

/// The arrays of all pools.
pub(crate) struct Mempools<'a, M> {
    memory: &'a M,
    layout: Option<Layout>,
    /// By ascending virtual address. The direct map is linear, so physical addresses ascend too.
    arrays: Vec<Array>,
    /// Their virtual and physical pages.
    pages: PageFilter,
}

impl<'a, M: StoppedMemory> Mempools<'a, M> {
    pub(crate) fn of(kernel: &Kernel, blocks: &Blocks<'a, M>) -> Self {
        let layout = Layout::read(kernel);
        let mut is_array = blocks.allocations.by_caller(kernel, |name| SITES.contains(&name));
        let array = |addr: u64| {
            let block = blocks.addresses.find(addr)?;
            let size = blocks.blocks[block as usize].size;
            let at = blocks.pages.direct(VirtAddr(addr))?.0;
            let place = addr..addr.saturating_add(size);
            Some(Array { block, place, at, reserve: AtomicU64::new(UNKNOWN), elsewhere: AtomicBool::new(false) })
        };
        let objects = blocks.allocations.objects.list().iter().filter(|_| layout.is_some());
        let objects = objects.filter(|(_, o)| matches!(o.kind(), Kind::Slab | Kind::Large) && is_array(o));
        let mut arrays: Vec<Array> = objects.filter_map(|(addr, _)| array(*addr)).collect();
        arrays.sort_unstable_by_key(|array| array.place.start);
        let mut pages = PageFilter::default();
        for array in &arrays {
            pages.add(&array.place);
            pages.add(&(array.at..array.at.saturating_add(array.place.end - array.place.start)));
        }
        Mempools { memory: blocks.memory, layout, arrays, pages }
    }

    /// The arrays that only words outside of pools point to, as block numbers. A pool may be just
    /// being made. Call it after everything is marked.
    pub(crate) fn without_a_pool(&self) -> impl Iterator<Item = u32> + '_ {
        self.arrays.iter().filter(|array| array.elsewhere.load(Ordering::Relaxed)).map(|array| array.block)
    }

    /// The array that a virtual address lies in.
    fn pointed_to(&self, word: u64) -> Option<&Array> {
        let next = self.arrays.partition_point(|array| array.place.start <= word);
        self.arrays.get(next.checked_sub(1)?).filter(|array| array.place.contains(&word))
    }

    /// The array that a guest physical address lies in, and the index of the element there.
    fn around(&self, at: u64) -> Option<(&Array, u64)> {
        let next = self.arrays.partition_point(|array| array.at <= at);
        let array = self.arrays.get(next.checked_sub(1)?)?;
        let inside = at - array.at;
        (inside < array.place.end - array.place.start).then_some((array, inside / 8))
    }

    /// Whether the word at guest physical address `at`, which points into the array, is a pool's.
    fn owner(&self, layout: Layout, array: &Array, word: u64, at: u64) -> Owner {
        if word != array.place.start {
            return Owner::Other;
        }
        let Some(pool) = at.checked_sub(layout.elements) else { return Owner::Cut };
        // Virtual memory is contiguous within a page only.
        if pool / PAGE_SIZE != pool.saturating_add(layout.size - 1) / PAGE_SIZE {
            return Owner::Cut;
        }
        let word = |offset: u64| self.memory.read_u64(PhysAddr(pool + offset)).unwrap_or(0);
        // Both are of type int.
        let (least, reserve) = (word(layout.min_nr) & 0xffff_ffff, word(layout.curr_nr) & 0xffff_ffff);
        // A pool may have no minimum, and an array of one element then.
        let fits = reserve <= least.max(1) && least.max(1) <= (array.place.end - array.place.start) / 8;
        let is_pool = fits && [layout.alloc, layout.free].iter().all(|at| VirtAddr(word(*at)).is_kernel());
        if is_pool { Owner::Pool(reserve) } else { Owner::Other }
    }
}

impl<M: StoppedMemory> Surroundings for Mempools<'_, M> {
    fn is_stale(&self, word: u64, at: u64) -> bool {
        if !self.pages.may_contain(word) && !self.pages.may_contain(at) {
            return false;
        }
        let Some(layout) = self.layout else { return false };
        if let Some(array) = self.pointed_to(word) {
            match self.owner(layout, array, word, at) {
                // The array is read after this.
                Owner::Pool(reserve) => array.reserve.store(reserve, Ordering::Relaxed),
                Owner::Cut => {}
                Owner::Other => {
                    array.elsewhere.store(true, Ordering::Relaxed);
                    return true;
                }
            }
        }
        self.around(at).is_some_and(|(array, index)| index >= array.reserve.load(Ordering::Relaxed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_filter_has_every_page_of_a_range() {
        let mut filter = PageFilter::default();
        filter.add(&(0xffff_8880_0123_4ff8..0xffff_8880_0123_6008));
        for address in [0xffff_8880_0123_4000, 0xffff_8880_0123_5fff, 0xffff_8880_0123_6000] {
            assert!(filter.may_contain(address), "{address:#x}");
        }
        assert!(!filter.may_contain(0xffff_8880_0123_3fff) && !filter.may_contain(0xffff_8880_0123_7000));
        assert_eq!(filter.0.iter().map(|word| word.count_ones()).sum::<u32>(), 3);
    }
}
