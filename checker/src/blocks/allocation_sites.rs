//! Objects that have rules, recognized by their allocation site or their slab cache.

use crate::allocations::Allocations;
use detector::objects::Object;
use guest_symbols::Kernel;
use guest_symbols::memory::{StoppedMemory, VirtAddr};
use guest_symbols::slab::{self, Cache};
use std::collections::HashMap;

/// Functions that allocate `struct vmap_area` (mm/vmalloc.c, 5.10 to 7.3).
///
/// Its first two words are the bounds of an area and not pointers. The kernel calls
/// kmemleak_scan_area() there for that reason.
const VMAP_AREA_SITES: [&str; 6] =
    ["alloc_vmap_area", "adjust_va_to_fit_type", "va_clip", "va_alloc", "preload_this_cpu_lock", "pcpu_get_vm_areas"];

/// Returns a predicate: whether an object of the cache of vmap areas is a vmap area.
pub fn vmap_area_sites<'a>(kernel: &'a Kernel, allocations: Allocations<'a>) -> impl FnMut(&Object) -> bool + 'a {
    allocations.by_caller(kernel, |name| VMAP_AREA_SITES.contains(&name))
}

/// Returns a predicate: whether an object that holds a slab cache's address where a sheaf does is a
/// sheaf (mm/slub.c, 6.18 on).
pub fn sheaf_sites<'a>(kernel: &'a Kernel, allocations: Allocations<'a>) -> impl FnMut(&Object) -> bool + 'a {
    allocations.by_caller(kernel, |name| {
        name.contains("sheaf")
            || name.contains("sheaves")
            || name.starts_with("__pcs_")
            || ["kmem_cache_init", "do_kmem_cache_create", "__kmem_cache_create"].contains(&name)
    })
}

/// Functions that allocate the stack of a new task (kernel/fork.c, 5.10 to 7.3). The compiler may
/// inline one into another.
const STACK_SITES: [&str; 4] =
    ["alloc_thread_stack_node", "alloc_thread_stack_node_from_cache", "dup_task_struct", "copy_process"];

/// Returns a predicate: whether a vmalloc block is the stack of a task.
pub fn stack_sites<'a>(kernel: &'a Kernel, allocations: Allocations<'a>) -> impl FnMut(&Object) -> bool + 'a {
    allocations.by_caller(kernel, |name| STACK_SITES.contains(&name))
}

/// Functions that ask for the area of a task's stack, as `vm_struct.caller` names them. Those above
/// are inlined into them, or pass their own caller on.
const STACK_CALLERS: [&str; 2] = ["kernel_clone", "fork_idle"];

/// Whether `vm_struct.caller` of an area says that it is the stack of a task.
pub fn is_stack_caller(function: &str) -> bool {
    STACK_CALLERS.contains(&function) || STACK_SITES.contains(&function)
}

/// The caches that kmemleak does not scan (SLAB_NOLEAKTRACE). The value is whether the cache holds
/// kmemleak's own objects.
pub fn untraced_caches(kernel: &Kernel, memory: &impl StoppedMemory) -> HashMap<VirtAddr, bool> {
    let mut caches = HashMap::new();
    let Some(flags) = kernel.offset_of("kmem_cache", "flags") else { return caches };
    // The bit depends on the configuration from 6.9 on. Before that it is a constant.
    let bit = kernel.btf.as_ref().and_then(|b| b.enumerator("_slab_flag_bits", "_SLAB_NOLEAKTRACE"));
    let flag = bit.map_or(0x0080_0000, |bit| 1u32.checked_shl(bit as u32).unwrap_or(0));
    for at in slab::caches(kernel, memory).unwrap_or_default() {
        if kernel.read_u32(memory, at.offset(flags)).is_ok_and(|f| f & flag != 0) {
            caches.insert(at, Cache::read(kernel, memory, at).is_some_and(|c| c.name == "kmemleak_object"));
        }
    }
    caches
}
