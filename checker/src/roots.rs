//! Roots: memory that the kernel owns and that is no tracked object.
//!
//! These are page-allocator pages, the image's data, memblock allocations, static per-CPU
//! variables, and the descriptors of pages in use.

use crate::blocks::Blocks;
use detector::bits::Bits;
use detector::objects::Kind;
use detector::scan::Marker;
use guest_symbols::Kernel;
use guest_symbols::memory::{PAGE_SIZE, PhysAddr, StoppedMemory, VirtAddr};
use guest_symbols::pages::{Pages, Use};
use std::ops::Range;

/// Variables of kmemleak that hold addresses of objects without keeping them alive. They are the
/// lowest and highest address, and kmemleak's own objects from before the slab allocator is ready.
/// Its objects in slabs have rules as blocks.
const LEAK_TRACER: [&str; 5] = ["mem_pool", "min_addr", "max_addr", "min_percpu_addr", "max_percpu_addr"];

/// Most pages of roots in one unit of the scan.
const RUN: u64 = 512;

/// Scans every root. Returns how many pages of live vmalloc blocks are not mapped.
pub fn scan<M: StoppedMemory>(
    kernel: &Kernel,
    memory: &M,
    pages: &Pages,
    blocks: &Blocks<'_, M>,
    marker: &mut Marker,
) -> u64 {
    let mut part = Part::all(pages);
    part.leave_out_read_only(kernel);
    part.leave_out_leak_tracer(kernel);
    let unmapped = part.leave_out_blocks(pages, blocks);
    for range in &blocks.percpu.dynamic {
        part.leave_out(blocks, VirtAddr(range.start), range.end - range.start);
    }
    for range in &blocks.stale_ranges {
        blocks.runs(VirtAddr(range.start), range.end - range.start, &mut |phys, n| {
            part.holes.push(phys.0..phys.0.saturating_add(n))
        });
    }
    let runs = part.runs();
    marker.roots(runs.len(), &|i, each| {
        let len = (runs[i].end - runs[i].start) as usize;
        memory.pieces(PhysAddr(runs[i].start), len, &mut |at, bytes| each(at.0, bytes));
    });
    let tracked = Bits::new(pages.end() as usize);
    for (first, count) in blocks.blocks.iter().filter_map(|b| blocks.frames(b)) {
        for pfn in first..first.saturating_add(count).min(pages.end()) {
            tracked.set(pfn as u32);
        }
    }
    marker.roots(pages.descriptor_runs(), &|i, each| {
        pages.descriptors(memory, i, |pfn| tracked.get(pfn as u32), |at, page| each(at.0, page));
    });
    unmapped
}

/// The part of each page frame that is root memory. A page may start with static per-CPU variables
/// and end with dynamic ones.
struct Part {
    /// Bytes from the start of each page that are root memory.
    keep: Vec<u16>,
    /// Physical ranges within root pages that are not root memory.
    holes: Vec<Range<u64>>,
}

impl Part {
    fn all(pages: &Pages) -> Part {
        let whole = |of: &Use| if matches!(of, Use::Kernel | Use::Reserved) { PAGE_SIZE as u16 } else { 0 };
        Part { keep: pages.uses().iter().map(whole).collect(), holes: Vec::new() }
    }

    fn cut(&mut self, phys: PhysAddr, len: u64) {
        let mut at = phys.0;
        let end = phys.0.saturating_add(len).min(self.keep.len() as u64 * PAGE_SIZE);
        while at < end {
            let within = at % PAGE_SIZE;
            if let Some(keep) = self.keep.get_mut((at / PAGE_SIZE) as usize) {
                *keep = (*keep).min(within as u16);
            }
            at += PAGE_SIZE - within;
        }
    }

    fn leave_out<M: StoppedMemory>(&mut self, blocks: &Blocks<'_, M>, start: VirtAddr, len: u64) {
        blocks.runs(start, len, &mut |phys, n| self.cut(phys, n));
    }

    /// Leaves out text and read-only data. They hold no pointers to allocated objects, except data
    /// that is written only during boot. They hold many words that look like per-CPU pointers:
    /// offsets, sizes, BTF.
    fn leave_out_read_only(&mut self, kernel: &Kernel) {
        let mut leave_out = |from: &str, to: &str| {
            if let (Some(start), Some(end)) = (kernel.symbol(from), kernel.symbol(to)) {
                let Some(start) = start.0.checked_next_multiple_of(PAGE_SIZE).map(VirtAddr) else { return };
                self.cut(kernel.image_phys(start), (end.0 & !(PAGE_SIZE - 1)).saturating_sub(start.0));
            }
        };
        leave_out("_stext", "_etext");
        leave_out("__start_rodata", "__start_ro_after_init");
        leave_out("__end_ro_after_init", "__end_rodata");
    }

    /// Leaves out the variables in [`LEAK_TRACER`].
    fn leave_out_leak_tracer(&mut self, kernel: &Kernel) {
        if kernel.symbol("kmemleak_scan").is_none() {
            return;
        }
        for at in LEAK_TRACER.iter().filter_map(|name| kernel.symbol(name)) {
            let start = kernel.image_phys(at).0;
            self.holes.extend(kernel.symbols.resolve(at.0).map(|r| start..start.saturating_add(r.size)));
        }
    }

    /// Leaves out pages of tracked objects. They are scanned only if the object is reachable.
    ///
    /// Returns how many pages of vmalloc blocks are not mapped, or are mapped to frames that are
    /// free. The kernel maps these pages before it hands out the block, and until after the call of
    /// vfree().
    fn leave_out_blocks<M: StoppedMemory>(&mut self, pages: &Pages, blocks: &Blocks<'_, M>) -> u64 {
        let mut unmapped = 0;
        let is_used = |pfn: u64| !matches!(pages.usage(pfn), Use::Absent | Use::Free | Use::Slab);
        for b in &blocks.blocks {
            let size = b.size.next_multiple_of(PAGE_SIZE);
            match b.kind {
                Kind::Slab | Kind::Percpu => {}
                Kind::Large | Kind::Pages => self.leave_out(blocks, VirtAddr(b.addr), size),
                Kind::Vmalloc => {
                    let mut mapped = 0;
                    blocks.runs(VirtAddr(b.addr), size, &mut |phys, n| {
                        self.cut(phys, n);
                        mapped += (phys.pfn()..phys.pfn() + n / PAGE_SIZE).filter(|pfn| is_used(*pfn)).count() as u64;
                    });
                    unmapped += if b.seen() { (size / PAGE_SIZE).saturating_sub(mapped) } else { 0 };
                }
            }
        }
        unmapped
    }

    /// The physical ranges that are left, each at most [`RUN`] pages long.
    fn runs(&mut self) -> Vec<Range<u64>> {
        self.holes.sort_unstable_by_key(|h| h.start);
        let mut runs = Vec::new();
        let mut frames = (0..).zip(&self.keep).filter(|(_, keep)| **keep > 0).peekable();
        while let Some((first, &keep)) = frames.next() {
            let start = first * PAGE_SIZE;
            let mut end = start + u64::from(keep);
            while end.is_multiple_of(PAGE_SIZE)
                && end - start < RUN * PAGE_SIZE
                && let Some((_, _)) = frames.next_if(|(pfn, keep)| pfn * PAGE_SIZE == end && **keep == PAGE_SIZE as u16)
            {
                end += PAGE_SIZE;
            }
            self.without_holes(start..end, &mut runs);
        }
        runs
    }

    /// Adds a physical range without the holes in it.
    fn without_holes(&self, run: Range<u64>, runs: &mut Vec<Range<u64>>) {
        let mut at = run.start;
        let first = self.holes.partition_point(|h| h.end <= at);
        for hole in self.holes[first..].iter().take_while(|h| h.start < run.end) {
            if at < hole.start {
                runs.push(at..hole.start);
            }
            at = at.max(hole.end);
        }
        if at < run.end {
            runs.push(at..run.end);
        }
    }
}
