//! Sheaves: arrays of free objects that slab caches keep for each CPU and each node (mm/slub.c,
//! 6.18 on).
//!
//! A CPU has up to three (`slub_percpu_sheaves`: `main`, `spare`, `rcu_free`). A node's barn
//! (`node_barn`) has lists of full and of empty ones. The barn is in `kmem_cache_node` up to 7.0,
//! and in `kmem_cache.per_node[]` from 7.1 on.

use crate::Kernel;
use crate::corruption::circle;
use crate::memory::{GuestMemory, VirtAddr};
use crate::percpu::PerCpu;
use crate::slab;
use std::collections::HashSet;

/// The sheaves of a CPU.
const OF_CPU: [&str; 3] = ["main", "spare", "rcu_free"];
/// The lists of a barn.
const OF_BARN: [&str; 2] = ["sheaves_full", "sheaves_empty"];
/// MAX_NUMNODES with the largest CONFIG_NODES_SHIFT of x86-64.
const MAX_NODES: u64 = 1 << 10;
/// The most sheaves in a list of a barn that are read. The kernel keeps 10.
const MAX_LISTED: usize = 1 << 12;

/// Virtual addresses of all sheaves that caches keep, each once. Empty before 6.18.
pub fn all(kernel: &Kernel, memory: &impl GuestMemory, percpu: &PerCpu) -> Vec<VirtAddr> {
    let mut found = Vec::new();
    let Some(cpu_sheaves) = kernel.offset_of("kmem_cache", "cpu_sheaves") else { return found };
    let read = |at: VirtAddr| kernel.read_u64(memory, at).ok().filter(|&word| word != 0);
    let of_cpu: Vec<u64> = OF_CPU.iter().filter_map(|name| kernel.offset_of("slub_percpu_sheaves", name)).collect();
    let lists: Vec<u64> = OF_BARN.iter().filter_map(|name| kernel.offset_of("node_barn", name)).collect();
    let link = kernel.offset_of("slab_sheaf", "barn_list").unwrap_or(0);
    for cache in slab::caches(kernel, memory).unwrap_or_default() {
        if let Some(pointer) = read(cache.offset(cpu_sheaves)) {
            for at in (0..percpu.offsets.len()).filter_map(|cpu| percpu.address(cpu, pointer)) {
                found.extend(of_cpu.iter().filter_map(|offset| read(at.offset(*offset))).map(VirtAddr));
            }
        }
        for barn in barns(kernel, memory, cache) {
            for list in &lists {
                let (nodes, _) = circle(kernel, memory, barn.offset(*list), MAX_LISTED);
                found.extend(nodes.iter().map(|node| VirtAddr(node.0.wrapping_sub(link))));
            }
        }
    }
    let mut seen = HashSet::new();
    found.retain(|sheaf| seen.insert(*sheaf));
    found
}

/// The barns of a cache.
fn barns(kernel: &Kernel, memory: &impl GuestMemory, cache: VirtAddr) -> Vec<VirtAddr> {
    let Some(btf) = kernel.btf.as_ref() else { return Vec::new() };
    let read = |at: VirtAddr| kernel.read_u64(memory, at).ok().filter(|&word| word != 0).map(VirtAddr);
    // Without CONFIG_NUMA there is one node and no such variable.
    let nodes = kernel.variable(memory, "nr_node_ids").map_or(1, |nodes| nodes & 0xffff_ffff).min(MAX_NODES);
    if let (Some(array), Some(size), Some(barn)) = (
        btf.offset_of("kmem_cache", "per_node"),
        btf.size_of("kmem_cache_per_node_ptrs"),
        btf.offset_of("kmem_cache_per_node_ptrs", "barn"),
    ) {
        return (0..nodes).filter_map(|node| read(cache.offset(array + node * size + barn))).collect();
    }
    let (Some(array), Some(barn)) = (btf.offset_of("kmem_cache", "node"), btf.offset_of("kmem_cache_node", "barn"))
    else {
        return Vec::new();
    };
    (0..nodes).filter_map(|node| read(read(cache.offset(array + 8 * node))?.offset(barn))).collect()
}
