//! The size of a slab object, read from the kernel when it is allocated: from the descriptor of its
//! page (mm/slab.h, include/linux/mm_types.h; 5.10 to 7.3).

use guest_symbols::Kernel;
use guest_symbols::memory::{GuestMemory, PAGE_SIZE, PhysAddr, VirtAddr};
use guest_symbols::pages::Maps;
use std::sync::atomic::{AtomicU64, Ordering};

/// Most bytes of an object: KMALLOC_MAX_CACHE_SIZE is 8 KiB, and other caches may have larger ones.
const MAX_OBJECT: u64 = 64 << 10;
/// The largest order of a slab's pages that is looked for.
const MAX_ORDER: u32 = 6;

/// Where sizes are.
pub(super) struct SlabSizes {
    /// Bytes of a page descriptor.
    descriptor: u64,
    /// In a descriptor: the word whose lowest bit tells a tail page, and the cache.
    compound: u64,
    cache: u64,
    /// In a cache: the size of its objects.
    object_size: u64,
    /// The physical addresses of the pages of descriptors, plus 1; 0 if not known yet. They are
    /// mapped once, when memory is added.
    pages: Vec<AtomicU64>,
}

impl SlabSizes {
    /// Reads the offsets. `limit` is the physical address up to which objects are looked for.
    /// `None` if the kernel's types lack one.
    pub fn new(kernel: &Kernel, limit: u64) -> Option<SlabSizes> {
        let descriptor = kernel.btf.as_ref()?.size_of("page").filter(|size| *size > 0)?;
        let page = |member| kernel.offset_of("page", member);
        Some(SlabSizes {
            descriptor,
            compound: page("compound_head").or_else(|| page("compound_info"))?,
            cache: kernel.offset_of("slab", "slab_cache").or_else(|| page("slab_cache"))?,
            object_size: kernel.offset_of("kmem_cache", "object_size")?,
            pages: (0..=limit / PAGE_SIZE * descriptor / PAGE_SIZE).map(|_| AtomicU64::new(0)).collect(),
        })
    }

    /// The word at byte `offset` of all descriptors.
    fn word(&self, kernel: &Kernel, memory: &impl GuestMemory, offset: u64) -> Option<u64> {
        let (page, within) = (self.pages.get((offset / PAGE_SIZE) as usize)?, offset % PAGE_SIZE);
        let mut known = page.load(Ordering::Relaxed);
        if known == 0 {
            let at = Maps::read(kernel, memory).vmemmap.offset(offset - within);
            known = kernel.translate(memory, at).ok()?.phys.0 + 1;
            page.store(known, Ordering::Relaxed);
        }
        memory.read_u64(PhysAddr(known - 1 + within)).ok()
    }

    /// The size in bytes of the slab object at physical address `at`.
    pub fn size_of(&self, kernel: &Kernel, memory: &impl GuestMemory, at: u64) -> Option<u64> {
        let frame = at / PAGE_SIZE;
        // The pages of a slab are aligned to their size. The first one is no tail page.
        let head = (0..=MAX_ORDER).map(|order| frame & !((1 << order) - 1)).find(|head| {
            self.word(kernel, memory, head * self.descriptor + self.compound).is_some_and(|word| word & 1 == 0)
        })?;
        let cache = self.word(kernel, memory, head * self.descriptor + self.cache)?;
        let size = kernel.read_u32(memory, VirtAddr(cache).offset(self.object_size)).ok()?;
        Some(u64::from(size)).filter(|size| (1..=MAX_OBJECT).contains(size))
    }
}
