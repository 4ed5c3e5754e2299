//! What each page frame is used for, from its `struct page` (include/linux/mm_types.h, page-flags.h).

mod layout;
mod slabs;

use crate::allocators::kfence;
use crate::memory::{GuestMemory, PAGE_SIZE, PhysAddr, StoppedMemory, VirtAddr, u64_at};
use crate::nonsense::Nonsense;
use crate::{Kernel, free_pages};
use layout::{Layout, MAPPING_FLAGS};

pub use layout::Use;
pub use slabs::Slab;

/// `vmemmap_base` and `page_offset_base` of kernels without CONFIG_RANDOMIZE_MEMORY
/// (arch/x86/include/asm/pgtable_64_types.h, page_64_types.h).
const VMEMMAP_BASE: u64 = 0xffff_ea00_0000_0000;
const PAGE_OFFSET_BASE: u64 = 0xffff_8880_0000_0000;

/// MAX_PAGE_ORDER (include/linux/mmzone.h).
const MAX_ORDER: u64 = 10;

/// Where page descriptors and the direct map lie, which is decided in early boot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Maps {
    /// Virtual address of the descriptor of frame 0.
    pub vmemmap: VirtAddr,
    /// Virtual address of physical address 0.
    pub direct_map: u64,
}

impl Maps {
    /// Reads them.
    pub fn read(kernel: &Kernel, memory: &impl GuestMemory) -> Maps {
        Maps {
            vmemmap: VirtAddr(kernel.variable(memory, "vmemmap_base").unwrap_or(VMEMMAP_BASE)),
            direct_map: kernel.variable(memory, "page_offset_base").unwrap_or(PAGE_OFFSET_BASE),
        }
    }

    /// The direct-map address of the page that `page` is the descriptor of, whose size in bytes is `size`; or `page`
    /// itself, if it is below all descriptors.
    pub fn address_of(&self, page: u64, size: u64) -> u64 {
        match page.checked_sub(self.vmemmap.0) {
            Some(at) => self.direct_map.wrapping_add(at / size.max(1) * PAGE_SIZE),
            None => page,
        }
    }
}

/// Of `system_state` (include/linux/kernel.h), the last at which descriptors may be unwritten.
const SYSTEM_SCHEDULING: u64 = 1;

/// Whether the kernel has written all page descriptors. With CONFIG_DEFERRED_STRUCT_PAGE_INIT, as distributions have it, most
/// are written when all CPUs are up (page_alloc_init_late() in mm/mm_init.c, `deferred_pages` in mm/page_alloc.c; 4.2 to 7.3).
/// Nobody uses the frames of the others, and these hold what was there before: those of the kernel that ran before a reset.
fn are_written(kernel: &Kernel, memory: &impl GuestMemory) -> bool {
    let word = |name| kernel.variable(memory, name).map(|word| word & u64::from(u32::MAX));
    let deferred = word("deferred_pages").is_some_and(|enabled| enabled != 0);
    // It is never enabled again: later that is what was written over it.
    !(deferred && word("system_state").is_some_and(|state| state <= SYSTEM_SCHEDULING))
}

/// Why page frames could not be told apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PagesError {
    /// No BTF, or not the members needed.
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
    /// RAM ends at an address that no machine of this size has.
    #[error(
        "this machine has no memory for what {0} page frames are used for; check the guest with less RAM, or where there is more"
    )]
    NoRoom(usize),
}

/// The use of every page frame, at one moment.
pub struct Pages {
    uses: Vec<Use>,
    /// Frames back to the compound page's head.
    tails: Vec<u16>,
    layout: Layout,
    vmemmap: VirtAddr,
    direct_map: u64,
    /// Where descriptors lie: first frame, how many, and the physical address of the first's. Ascending.
    runs: Vec<(u64, u64, PhysAddr)>,
    /// Whether the kernel has written all descriptors.
    pub whole: bool,
    /// KFENCE's pool.
    pub kfence: Option<kfence::Pool>,
    /// Descriptors that contradict themselves.
    odd: u64,
    /// What makes no sense.
    pub nonsense: Vec<Nonsense>,
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
        // Asked for first, since vec! ends the process where there is not as much.
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
            odd: 0,
            nonsense: Vec::new(),
        };
        let mut seen = false;
        for range in memory.ranges() {
            pages.read_range(kernel, memory, range.start / PAGE_SIZE, range.end / PAGE_SIZE, &mut seen);
        }
        if !seen {
            return Err(PagesError::NoDescriptors(vmemmap));
        }
        if pages.odd > 0 && pages.whole {
            pages.nonsense.push(Nonsense::Descriptors(pages.odd));
        }
        pages.settle_idle(kernel, memory);
        pages.mark_descriptors(kernel, memory);
        pages.mark_kfence();
        Ok(pages)
    }

    /// Idle pages on CPUs' lists are free; the others belong to the block before them, whose content counts.
    fn settle_idle(&mut self, kernel: &Kernel, memory: &impl StoppedMemory) {
        let (vmemmap, size) = (self.vmemmap.0, self.layout.size);
        let pfn_of = |page: VirtAddr| page.0.wrapping_sub(vmemmap) / size;
        let free = free_pages::on_cpu_lists(kernel, memory, self.uses.len(), pfn_of);
        let free = free.map(|(free, whole)| {
            self.nonsense.extend((!whole).then_some(Nonsense::FreePages));
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

    fn read_range(&mut self, kernel: &Kernel, memory: &impl StoppedMemory, first: u64, end: u64, seen: &mut bool) {
        let size = self.layout.size;
        let tables = kernel.page_tables(memory);
        let mut last = (Use::Absent, 0u16);
        // One past the last page of the free block that began last.
        let mut free_to = 0;
        let mut pfn = first;
        while pfn < end {
            let at = self.descriptor(pfn);
            let Ok(t) = tables.translate(memory, at) else {
                // A hole in vmemmap is a section (128 MiB) or at least a page of descriptors.
                pfn += ((PAGE_SIZE - at.0 % PAGE_SIZE) / size).max(1);
                continue;
            };
            *seen = true;
            let first = pfn;
            let count = (t.len / size).max(1).min(end - pfn);
            let run = memory.run(t.phys, (count * size) as usize);
            let mut descriptors = run.chunks_exact(size as usize);
            while let Some(page) = descriptors.next() {
                last = match self.layout.classify(page) {
                    Some(kind) => (kind, 0),
                    None => (last.0, last.1.saturating_add(1)),
                };
                self.uses[pfn as usize] = last.0;
                self.tails[pfn as usize] = last.1;
                self.odd += u64::from(last.1 == 0 && self.is_odd(kernel, memory, pfn, page));
                pfn += 1;
                // Only there: what a balloon holds is free too (PG_offline), and has a pointer in `private`.
                if last == (Use::Free, 0) && self.layout.is_buddy(page) {
                    let order = u64_at(page, self.layout.private).unwrap_or(0);
                    free_to = pfn - 1 + (1 << order.min(MAX_ORDER));
                }
                if pfn < free_to {
                    // What is in a free block is free. There may be gigabytes of it.
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
                pfn += count;
            }
        }
    }

    /// Whether a descriptor, which is no compound page's tail, says what cannot be: a page of somebody's mapping of which there is
    /// none (`page.mapping` is a `struct address_space` or `struct anon_vma`), or a free block that is too large or not aligned to its size.
    fn is_odd(&self, kernel: &Kernel, memory: &impl StoppedMemory, pfn: u64, page: &[u8]) -> bool {
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

    /// The descriptors of KFENCE's pool say slab or reserved.
    fn mark_kfence(&mut self) {
        let Some(range) = self.kfence.as_ref().map(|pool| pool.range.clone()) else { return };
        let frame = |at: u64| at.wrapping_sub(self.direct_map) / PAGE_SIZE;
        let (first, end) = (frame(range.start), frame(range.end));
        if let Some(uses) = self.uses.get_mut(first as usize..end as usize) {
            uses.fill(Use::Kfence);
        }
    }

    /// The memory of the descriptors themselves is not to be read as kernel memory: those of free pages hold
    /// stale pointers. [`Pages::descriptors`] gives the others.
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

    /// How many runs of descriptors there are.
    pub fn descriptor_runs(&self) -> usize {
        self.runs.len()
    }

    /// Calls `each` with what may be references, and its address, in the descriptor of every page of a run that is in use, but
    /// for those of frames that `leave_out` names.
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
            if !matches!(self.usage(pfn), Use::Free | Use::Absent) && !leave_out(pfn) {
                self.descriptor_references(pfn, PhysAddr(phys.0 + i as u64 * size), page, &mut each);
            }
        }
    }

    /// As [`Pages::descriptors`], of one frame.
    pub fn descriptor_of(&self, memory: &impl StoppedMemory, pfn: u64, mut each: impl FnMut(PhysAddr, &[u8])) {
        if let Some(at) = self.descriptor_phys(pfn)
            && let Some(page) = memory.slice(at, self.layout.size as usize)
        {
            self.descriptor_references(pfn, at, page, &mut each);
        }
    }

    fn descriptor_references(&self, pfn: u64, at: PhysAddr, page: &[u8], each: &mut impl FnMut(PhysAddr, &[u8])) {
        let (before, after) = match self.usage(pfn) {
            // The pool's refer to `kfence_metadata`.
            Use::Free | Use::Absent | Use::Kfence => return,
            // A slab's is the head's alone; in the others an older slab's freelist may still stand.
            Use::Slab if self.tails[pfn as usize] != 0 => return,
            // What was a slab's freelist may still stand in `index`.
            Use::Kernel => match self.layout.index.filter(|index| index + 8 <= page.len()) {
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

    /// Whether a frame is a further one of a compound page.
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

    /// Physical address of a direct-map address, or `None` where it is not one of RAM.
    pub fn direct(&self, at: VirtAddr) -> Option<PhysAddr> {
        let phys = at.0.wrapping_sub(self.direct_map);
        (phys / PAGE_SIZE < self.end()).then_some(PhysAddr(phys))
    }
}
