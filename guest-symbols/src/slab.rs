//! Slab caches: `struct kmem_cache` (mm/slab.h).

use crate::Kernel;
use crate::corruption;
use crate::memory::{GuestMemory, VirtAddr};

/// The most caches that are read.
const MAX_CACHES: usize = 65_536;
/// `sizeof(void *)`.
const WORD: u64 = 8;

/// Addresses of all caches: the list `slab_caches`, up to the first corrupted entry. `None` if the
/// kernel has no such list.
pub fn caches(kernel: &Kernel, memory: &impl GuestMemory) -> Option<Vec<VirtAddr>> {
    Some(cache_list(kernel, memory)?.0)
}

/// The same as [`caches`], and whether the list is complete.
pub(crate) fn cache_list(kernel: &Kernel, memory: &impl GuestMemory) -> Option<(Vec<VirtAddr>, bool)> {
    let list = kernel.offset_of("kmem_cache", "list")?;
    let (nodes, whole) = corruption::circle(kernel, memory, kernel.symbol("slab_caches")?, MAX_CACHES);
    Some((nodes.iter().map(|node| VirtAddr(node.0.wrapping_sub(list))).collect(), whole))
}

/// The parts of a cache that are needed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cache {
    /// Its `name`. Merged caches share the name of the first.
    pub name: String,
    /// `object_size` in bytes. kmemleak reports it as the size.
    pub object_size: u64,
    /// `size` in bytes: the distance from one object to the next.
    pub stride: u64,
    /// Bytes from the start of a slot to its object. This is the left red zone of SLAB_RED_ZONE
    /// (`red_left_pad`).
    pub left_pad: u64,
}

impl Cache {
    /// Reads the cache at `at`. `None` if it cannot be read or is not plausible.
    pub fn read(kernel: &Kernel, memory: &impl GuestMemory, at: VirtAddr) -> Option<Cache> {
        let field = |name| kernel.offset_of("kmem_cache", name).map(|o| at.offset(o));
        let size = |name| kernel.read_u32(memory, field(name)?).ok().map(u64::from);
        let name = VirtAddr(kernel.read_u64(memory, field("name")?).ok()?);
        let cache = Cache {
            name: kernel.read_string(memory, name, 64),
            object_size: size("object_size")?,
            stride: size("size")?,
            left_pad: size("red_left_pad").unwrap_or(0),
        };
        // calculate_sizes(), mm/slub.c: objects are aligned to words, and a red zone of a word may
        // follow.
        let inuse = size("inuse").is_none_or(|inuse| {
            let least = cache.object_size.next_multiple_of(WORD);
            (least..=least + WORD).contains(&inuse)
        });
        // The kernel's own caches hold objects of up to 8 KiB (KMALLOC_MAX_CACHE_SIZE). Other code
        // may create caches for larger ones.
        let plausible = cache.object_size > 0
            && cache.object_size <= cache.stride
            && cache.stride <= 4 << 20
            && cache.stride.is_multiple_of(WORD);
        (plausible && inuse).then_some(cache)
    }
}
