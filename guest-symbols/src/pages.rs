//! The use of each page frame, from its `struct page` (include/linux/mm_types.h, page-flags.h).

mod large;
mod layout;
mod slabs;
mod zspages;

use crate::allocators::kfence;
use crate::corruption::Corruption;
use crate::memory::{GuestMemory, PAGE_SIZE, PhysAddr, StoppedMemory, VirtAddr, u64_at};
use crate::{Kernel, free_pages, image_pages, kasan};
use layout::{Layout, MAPPING_FLAGS};

pub use layout::Use;
pub use slabs::Slab;

/// `vmemmap_base` and `page_offset_base` in kernels without CONFIG_RANDOMIZE_MEMORY
/// (arch/x86/include/asm/pgtable_64_types.h, page_64_types.h).
const VMEMMAP_BASE: u64 = 0xffff_ea00_0000_0000;
const PAGE_OFFSET_BASE: u64 = 0xffff_8880_0000_0000;

/// The most page descriptors that a `struct folio` covers (include/linux/mm_types.h). Later
/// descriptors only hold the address of the first.
const FOLIO_PAGES: u64 = 4;

/// MAX_PAGE_ORDER (include/linux/mmzone.h).
const MAX_ORDER: u64 = 10;

/// Virtual addresses of the page descriptors and of the direct map. Early boot sets them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Maps {
    /// Virtual address of the descriptor of frame 0.
    pub vmemmap: VirtAddr,
    /// Virtual address of physical address 0.
    pub direct_map: u64,
}

impl Maps {
    /// Reads both from the kernel's variables.
    pub fn read(kernel: &Kernel, memory: &impl GuestMemory) -> Maps {
        Maps {
            vmemmap: VirtAddr(kernel.variable(memory, "vmemmap_base").unwrap_or(VMEMMAP_BASE)),
            direct_map: kernel.variable(memory, "page_offset_base").unwrap_or(PAGE_OFFSET_BASE),
        }
    }

    /// The direct-map address of the page whose descriptor is at `page`. `size` is the size of a
    /// descriptor in bytes. Returns `page` itself if it is below all descriptors.
    pub fn address_of(&self, page: u64, size: u64) -> u64 {
        match page.checked_sub(self.vmemmap.0) {
            Some(at) => self.direct_map.wrapping_add(at / size.max(1) * PAGE_SIZE),
            None => page,
        }
    }
}

/// Values of `system_state` at which all descriptors are written (include/linux/kernel.h):
/// SYSTEM_RUNNING, and SYSTEM_FREEING_INITMEM where it exists. A kernel that panics while it boots
/// has SYSTEM_RESTART (emergency_restart()).
const RUNS: std::ops::RangeInclusive<u64> = 2..=3;

/// Whether the kernel has written all page descriptors.
///
/// With CONFIG_DEFERRED_STRUCT_PAGE_INIT, which distributions enable, most are written after all
/// CPUs are up (page_alloc_init_late() in mm/mm_init.c, `deferred_pages` in mm/page_alloc.c; 4.2 to
/// 7.3). The frames of unwritten descriptors are unused. Unwritten descriptors hold old memory,
/// such as the descriptors of the kernel before a reset.
fn are_written(kernel: &Kernel, memory: &impl GuestMemory) -> bool {
    let word = |name| kernel.variable(memory, name).map(|word| word & u64::from(u32::MAX));
    let deferred = word("deferred_pages").is_some_and(|enabled| enabled != 0);
    // The key is never enabled again. If it is set later, the kernel has overwritten it.
    !(deferred && word("system_state").is_some_and(|state| !RUNS.contains(&state)))
}

/// Why page frames could not be classified.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PagesError {
    /// There is no BTF, or it lacks a member that is needed.
    #[error(
        "the kernel's types do not describe struct page (CONFIG_DEBUG_INFO_BTF is off); {}; or pass symbols=PATH with its vmlinux",
        crate::config::how_to_set(&crate::config::TYPES)
    )]
    Layout,
    /// The array of page descriptors is not mapped yet.
    #[error(
        "the kernel has no page descriptors at {0:?}: it is too early in its boot, or the kernel has corrupted its memory"
    )]
    NoDescriptors(VirtAddr),
    /// The host has no memory for this number of page frames.
    #[error(
        "the host has no memory for the use of {0} page frames; check the guest with less RAM, or on a larger host"
    )]
    NoRoom(usize),
}

/// The use of every page frame at one time.
pub struct Pages {
    uses: Vec<Use>,
    /// Distance in frames from each page to the head of its compound page.
    tails: Vec<u16>,
    layout: Layout,
    vmemmap: VirtAddr,
    direct_map: u64,
    /// Runs of descriptors: first frame, number of frames, and physical address of the first
    /// descriptor. Ascending.
    runs: Vec<(u64, u64, PhysAddr)>,
    /// Whether the kernel has written all descriptors.
    pub whole: bool,
    /// KFENCE's pool.
    pub kfence: Option<kfence::Pool>,
    /// Number of descriptors that contradict themselves.
    contradictory: u64,
    /// Frames that may belong to zspages, if no page type shows that. Only used while descriptors
    /// are read.
    maybe_zspages: Vec<u32>,
    /// First frames of large kmallocs, if a page type shows them (6.18 on). Ascending.
    large: Vec<u64>,
    /// Corruptions that were found.
    pub corruption: Vec<Corruption>,
}

impl Pages {
    /// Reads every page descriptor.
    ///
    /// # Errors
    /// [`PagesError`].
    pub fn read(kernel: &Kernel, memory: &impl StoppedMemory) -> Result<Pages, PagesError> {
        let layout = Layout::of(kernel).ok_or(PagesError::Layout)?;
        let Maps { vmemmap, direct_map } = Maps::read(kernel, memory);
        let frames = memory.ranges().last().map_or(0, |r| r.end / PAGE_SIZE) as usize;
        // vec! aborts the process if memory is short, so the size is tried first.
        if Vec::<u16>::new().try_reserve_exact(frames).is_err() {
            return Err(PagesError::NoRoom(frames));
        }
        let mut pages = Pages {
            uses: vec![Use::Absent; frames],
            tails: vec![0; frames],
            layout,
            vmemmap,
            direct_map,
            runs: Vec::new(),
            whole: are_written(kernel, memory),
            kfence: kfence::Pool::read(kernel, memory),
            contradictory: 0,
            maybe_zspages: Vec::new(),
            large: Vec::new(),
            corruption: Vec::new(),
        };
        let mut seen = false;
        for range in memory.ranges() {
            pages.read_range(kernel, memory, range.start / PAGE_SIZE, range.end / PAGE_SIZE, &mut seen);
        }
        if !seen {
            return Err(PagesError::NoDescriptors(vmemmap));
        }
        if pages.contradictory > 0 && pages.whole {
            pages.corruption.push(Corruption::Descriptors(pages.contradictory));
        }
        pages.settle_zspages(memory);
        pages.settle_idle(kernel, memory);
        pages.mark_images(kernel, memory);
        pages.mark_descriptors(kernel, memory);
        pages.mark_kfence();
        pages.mark_shadow(kernel, memory);
        Ok(pages)
    }

    /// Classifies idle pages. Those on the CPUs' lists are free. The others belong to the block
    /// before them, whose content counts.
    fn settle_idle(&mut self, kernel: &Kernel, memory: &impl StoppedMemory) {
        let (vmemmap, size) = (self.vmemmap.0, self.layout.size);
        let pfn_of = |page: VirtAddr| page.0.wrapping_sub(vmemmap) / size;
        let free = free_pages::on_cpu_lists(kernel, memory, self.uses.len(), pfn_of);
        let free = free.map(|(free, whole)| {
            self.corruption.extend((!whole).then_some(Corruption::FreePages));
            free
        });
        let rest = if free.is_some() { Use::Kernel } else { Use::Free };
        for pfn in free.into_iter().flatten().flatten() {
            match self.uses.get_mut(pfn as usize) {
                Some(u) if *u == Use::Idle => *u = Use::Free,
                _ => {}
            }
        }
        self.uses.iter_mut().filter(|u| **u == Use::Idle).for_each(|u| *u = rest);
    }

    /// Marks the pages that hibernation has allocated.
    fn mark_images(&mut self, kernel: &Kernel, memory: &impl StoppedMemory) {
        image_pages::for_each(kernel, memory, self.uses.len() as u64, |pfn| match self.uses.get_mut(pfn as usize) {
            Some(u) if *u == Use::Kernel => *u = Use::Image,
            _ => {}
        });
    }

    fn read_range(&mut self, kernel: &Kernel, memory: &impl StoppedMemory, first: u64, end: u64, seen: &mut bool) {
        let size = self.layout.size;
        let tables = kernel.page_tables(memory);
        let mut last = (Use::Absent, 0u16);
        // One past the last page of the latest free block.
        let mut free_to = 0;
        let mut pfn = first;
        while pfn < end {
            let at = self.descriptor(pfn);
            let Ok(t) = tables.translate(memory, at) else {
                // A hole in vmemmap is a section (128 MiB), or at least one page of descriptors.
                pfn += ((PAGE_SIZE - at.0 % PAGE_SIZE) / size).max(1);
                continue;
            };
            *seen = true;
            let first = pfn;
            let count = (t.len / size).max(1).min(end - pfn);
            let run = memory.run(t.phys, (count * size) as usize);
            let mut descriptors = run.chunks_exact(size as usize);
            while let Some(page) = descriptors.next() {
                // The descriptor after the first one of a huge page is in the same run.
                let second = run.get(((pfn - first + 1) * size) as usize..).unwrap_or_default();
                last = match self.layout.classify(page, second) {
                    Some(kind) => (kind, 0),
                    None => (last.0, last.1.saturating_add(1)),
                };
                self.uses[pfn as usize] = last.0;
                self.tails[pfn as usize] = last.1;
                self.contradictory += u64::from(last.1 == 0 && self.is_contradictory(kernel, memory, pfn, page));
                if last == (Use::Kernel, 0) {
                    self.may_be_zspage(pfn, page);
                    self.may_be_large(pfn, page);
                }
                pfn += 1;
                // Only the first page of a buddy block has an order. Pages that a balloon holds are
                // also free (PG_offline), but have a pointer in `private`.
                if last == (Use::Free, 0) && self.layout.is_buddy(page) {
                    let order = u64_at(page, self.layout.private).unwrap_or(0);
                    free_to = pfn - 1 + (1 << order.min(MAX_ORDER));
                }
                if pfn < free_to {
                    // All pages of a free block are free. A block may be gigabytes in size.
                    let rest = (free_to - pfn).min(descriptors.len() as u64);
                    self.uses[pfn as usize..(pfn + rest) as usize].fill(Use::Free);
                    pfn += rest;
                    if rest > 0 {
                        descriptors.nth(rest as usize - 1);
                    }
                }
            }
            self.runs.push((first, pfn - first, t.phys));
            if run.len() < size as usize {
                // A page of an image may be absent. The next page may be there.
                pfn += ((PAGE_SIZE - t.phys.0 % PAGE_SIZE) / size).clamp(1, count);
            }
        }
    }

    /// Whether the descriptor of a page that is no tail contradicts itself.
    ///
    /// It may belong to a mapping that does not exist (`page.mapping` is a `struct address_space`
    /// or `struct anon_vma`). Or its free block may be too large or not aligned to its size.
    fn is_contradictory(&self, kernel: &Kernel, memory: &impl StoppedMemory, pfn: u64, page: &[u8]) -> bool {
        let word = |at| u64_at(page, at).unwrap_or(0);
        match self.uses[pfn as usize] {
            Use::Cache | Use::Anonymous => {
                let mapping = VirtAddr(word(self.layout.mapping) & !MAPPING_FLAGS);
                self.direct(mapping).is_none() && kernel.translate(memory, mapping).is_err()
            }
            Use::Free if self.layout.is_buddy(page) => {
                let order = word(self.layout.private);
                order > MAX_ORDER || !pfn.is_multiple_of(1 << order)
            }
            _ => false,
        }
    }

    /// Marks the pages of KFENCE's pool, whose descriptors show them as slab or reserved. A pool
    /// that is not in RAM is dropped.
    fn mark_kfence(&mut self) {
        let Some(range) = self.kfence.as_ref().map(|pool| pool.range.clone()) else { return };
        let frame = |at: u64| (at.wrapping_sub(self.direct_map) / PAGE_SIZE) as usize;
        match self.uses.get_mut(frame(range.start)..frame(range.end)) {
            Some(uses) => uses.fill(Use::Kfence),
            None => self.kfence = None,
        }
    }

    /// Excludes the memory of the descriptors from ordinary kernel memory, because descriptors of
    /// free pages hold stale pointers. [`Pages::descriptors`] gives the descriptors of pages in
    /// use.
    fn mark_descriptors(&mut self, kernel: &Kernel, memory: &impl StoppedMemory) {
        let tables = kernel.page_tables(memory);
        for range in memory.ranges() {
            let mut at = VirtAddr(self.descriptor(range.start / PAGE_SIZE).0 & !(PAGE_SIZE - 1));
            let end = self.descriptor(range.end / PAGE_SIZE);
            while at < end {
                let Ok(t) = tables.translate(memory, at) else {
                    at = at.offset(PAGE_SIZE);
                    continue;
                };
                let len = t.len.min((end.0 - at.0).next_multiple_of(PAGE_SIZE));
                for pfn in t.phys.pfn()..t.phys.pfn() + len / PAGE_SIZE {
                    if let Some(u) = self.uses.get_mut(pfn as usize) {
                        *u = Use::Table;
                    }
                }
                at = at.offset(len);
            }
        }
    }

    /// Excludes KASAN's shadow, which is an eighth of the kernel's memory and holds no pointers.
    fn mark_shadow(&mut self, kernel: &Kernel, memory: &impl StoppedMemory) {
        if !kasan::is_built_in(kernel) {
            return;
        }
        let (end, uses) = (self.end(), &mut self.uses);
        kasan::shadow_frames(kernel, memory, end, &mut |frames| {
            let frames = uses[frames.start as usize..frames.end as usize].iter_mut();
            frames.filter(|u| matches!(u, Use::Kernel | Use::Reserved)).for_each(|u| *u = Use::Table);
        });
    }

    /// Virtual address of the `struct page` of a frame.
    fn descriptor(&self, pfn: u64) -> VirtAddr {
        self.vmemmap.offset(pfn * self.layout.size)
    }

    fn descriptor_phys(&self, pfn: u64) -> Option<PhysAddr> {
        let (first, count, phys) = self.runs[..self.runs.partition_point(|r| r.0 <= pfn)].last()?;
        (pfn - first < *count).then(|| PhysAddr(phys.0 + (pfn - first) * self.layout.size))
    }

    /// Byte offset of `slab_cache` in a slab's descriptor.
    pub fn slab_cache_offset(&self) -> u64 {
        self.layout.slab_cache
    }

    /// Number of runs of descriptors.
    pub fn descriptor_runs(&self) -> usize {
        self.runs.len()
    }

    /// Calls `each` with the possible references in the descriptors of a run, and their physical
    /// addresses. Only pages in use count, except frames for which `leave_out` is true.
    pub fn descriptors(
        &self,
        memory: &impl StoppedMemory,
        run: usize,
        leave_out: impl Fn(u64) -> bool,
        mut each: impl FnMut(PhysAddr, &[u8]),
    ) {
        let size = self.layout.size;
        let (first, count, phys) = self.runs[run];
        let run = memory.run(phys, (count * size) as usize);
        for (i, page) in run.chunks_exact(size as usize).enumerate() {
            let pfn = first + i as u64;
            let is_used = match self.usage(pfn) {
                Use::Free | Use::Absent => false,
                // A huge page may have a quarter of a million of them, which only lead to the
                // first.
                Use::Huge => u64::from(self.tails[pfn as usize]) < FOLIO_PAGES,
                _ => true,
            };
            if is_used && !leave_out(pfn) {
                self.descriptor_references(pfn, PhysAddr(phys.0 + i as u64 * size), page, &mut each);
            }
        }
    }

    /// The same as [`Pages::descriptors`] for one frame.
    pub fn descriptor_of(&self, memory: &impl StoppedMemory, pfn: u64, mut each: impl FnMut(PhysAddr, &[u8])) {
        if let Some(at) = self.descriptor_phys(pfn)
            && let Some(page) = memory.slice(at, self.layout.size as usize)
        {
            self.descriptor_references(pfn, at, page, &mut each);
        }
    }

    fn descriptor_references(&self, pfn: u64, at: PhysAddr, page: &[u8], each: &mut impl FnMut(PhysAddr, &[u8])) {
        let (before, after) = match self.usage(pfn) {
            // Descriptors of the pool refer to `kfence_metadata`.
            Use::Free | Use::Absent | Use::Kfence => return,
            // Only the head's descriptor belongs to the slab. The others may hold the freelist of
            // an older slab.
            Use::Slab if self.tails[pfn as usize] != 0 => return,
            // `index` is here the next page's descriptor, or a handle.
            Use::Zspage if self.next_of_zspage(page).is_some() => (page, &page[..0]),
            // `index` may still hold the freelist of a former slab.
            Use::Kernel | Use::Table | Use::Zspage => match self.layout.index.filter(|index| index + 8 <= page.len()) {
                Some(index) => (&page[..index], &page[index + 8..]),
                None => (page, &page[..0]),
            },
            _ => (page, &page[..0]),
        };
        each(at, before);
        each(PhysAddr(at.0 + (page.len() - after.len()) as u64), after);
    }

    /// Virtual addresses of the descriptors of `count` frames from `pfn` on.
    pub fn descriptor_range(&self, pfn: u64, count: u64) -> std::ops::Range<u64> {
        self.descriptor(pfn).0..self.descriptor(pfn + count).0
    }

    /// Whether a frame is a tail page of a compound page.
    pub fn is_tail(&self, pfn: u64) -> bool {
        self.tails.get(pfn as usize).is_some_and(|&t| t != 0)
    }

    /// The use of a frame.
    pub fn usage(&self, pfn: u64) -> Use {
        self.uses.get(pfn as usize).copied().unwrap_or_default()
    }

    /// The use of every frame.
    pub fn uses(&self) -> &[Use] {
        &self.uses
    }

    /// One past the highest frame.
    pub fn end(&self) -> u64 {
        self.uses.len() as u64
    }

    /// Physical address of a direct-map address. `None` if it is not in RAM.
    pub fn direct(&self, at: VirtAddr) -> Option<PhysAddr> {
        let phys = at.0.wrapping_sub(self.direct_map);
        (phys / PAGE_SIZE < self.end()).then_some(PhysAddr(phys))
    }
}
