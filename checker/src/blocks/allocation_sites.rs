//! Objects for which there are rules, told by the function that allocated them or by their cache.

use crate::allocations::Allocations;
use detector::objects::Object;
use guest_symbols::Kernel;
use guest_symbols::memory::{StoppedMemory, VirtAddr};
use guest_symbols::slab::{self, Cache};
use std::collections::HashMap;

/// Functions that allocate `struct vmap_area` (mm/vmalloc.c, 5.10 to 7.3), whose first two words are the
/// bounds of an area and no pointers: kmemleak_scan_area() says so there.
const VMAP_AREA_SITES: [&str; 6] =
    ["alloc_vmap_area", "adjust_va_to_fit_type", "va_clip", "va_alloc", "preload_this_cpu_lock", "pcpu_get_vm_areas"];

/// Whether an object of the cache that vmap areas come from is a vmap area.
pub fn vmap_area_sites<'a>(kernel: &'a Kernel, allocations: Allocations<'a>) -> impl FnMut(&Object) -> bool + 'a {
    allocations.by_caller(kernel, |name| VMAP_AREA_SITES.contains(&name))
}

/// Whether an object that refers to a slab cache where a sheaf does is a sheaf (mm/slub.c, 6.18 on).
pub fn sheaf_sites<'a>(kernel: &'a Kernel, allocations: Allocations<'a>) -> impl FnMut(&Object) -> bool + 'a {
    allocations.by_caller(kernel, |name| {
        name.contains("sheaf")
            || name.contains("sheaves")
            || name.starts_with("__pcs_")
            || ["kmem_cache_init", "do_kmem_cache_create", "__kmem_cache_create"].contains(&name)
    })
}

/// Functions that allocate the stack of a new task (kernel/fork.c, 5.10 to 7.3), as they are inlined into each other.
const STACK_SITES: [&str; 4] =
    ["alloc_thread_stack_node", "alloc_thread_stack_node_from_cache", "dup_task_struct", "copy_process"];

/// Whether a vmalloc block is the stack of a task.
pub fn stack_sites<'a>(kernel: &'a Kernel, allocations: Allocations<'a>) -> impl FnMut(&Object) -> bool + 'a {
    allocations.by_caller(kernel, |name| STACK_SITES.contains(&name))
}

/// The caches that kmemleak does not look into (SLAB_NOLEAKTRACE), each with whether it is the one of its own objects.
pub fn untraced_caches(kernel: &Kernel, memory: &impl StoppedMemory) -> HashMap<VirtAddr, bool> {
    let mut caches = HashMap::new();
    let Some(flags) = kernel.offset_of("kmem_cache", "flags") else { return caches };
    // A number of the kernel's configuration from 6.9 on, and always the same before.
    let bit = kernel.btf.as_ref().and_then(|b| b.enumerator("_slab_flag_bits", "_SLAB_NOLEAKTRACE"));
    let flag = bit.map_or(0x0080_0000, |bit| 1u32.checked_shl(bit as u32).unwrap_or(0));
    for at in slab::caches(kernel, memory).unwrap_or_default() {
        if kernel.read_u32(memory, at.offset(flags)).is_ok_and(|f| f & flag != 0) {
            caches.insert(at, Cache::read(kernel, memory, at).is_some_and(|c| c.name == "kmemleak_object"));
        }
    }
    caches
}
