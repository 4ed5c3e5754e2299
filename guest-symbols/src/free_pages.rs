//! Free pages whose descriptors do not show it: the pages on the CPUs' lists (`struct
//! per_cpu_pages`, mm/page_alloc.c).

use crate::Kernel;
use crate::memory::{GuestMemory, VirtAddr};
use crate::percpu;
use std::collections::HashSet;
use std::ops::Range;

/// The most nodes that are read.
const MAX_NODES: u64 = 1024;
/// Lists of one order: MIGRATE_PCPTYPES (include/linux/mmzone.h).
const TYPES: u64 = 3;
/// Orders with their own lists: 0 to PAGE_ALLOC_COSTLY_ORDER. The lists after these are for huge
/// pages.
const ORDERS: u64 = 4;
const HUGE_ORDER: u64 = 9;

/// Runs of free page frames on the CPUs' lists, and whether all lists could be read.
///
/// `pfn_of` gives the frame of a `struct page`. `frames` is the number of frames. `None` if BTF
/// does not describe the lists.
pub fn on_cpu_lists(
    kernel: &Kernel,
    memory: &impl GuestMemory,
    frames: usize,
    pfn_of: impl Fn(VirtAddr) -> u64,
) -> Option<(Vec<Range<u64>>, bool)> {
    let btf = kernel.btf.as_ref()?;
    let read = |at: VirtAddr| kernel.read_u64(memory, at).ok();
    let zones = btf.member("pglist_data", "node_zones")?;
    let (zone_size, zone_count) = (btf.size_of("zone")?, btf.array_len(zones.type_id)?);
    // Before 5.13 there was one set of lists, inside another struct.
    let sets = btf.offset_of("zone", "per_cpu_pageset").or_else(|| btf.offset_of("zone", "pageset"))?;
    let inner = btf.offset_of("per_cpu_pageset", "pcp").unwrap_or(0);
    let lists = btf.member("per_cpu_pages", "lists")?;
    let list_count = btf.array_len(lists.type_id)?;
    let link = btf.offset_of("page", "pcp_list").or_else(|| btf.offset_of("page", "lru"))?;
    let (cpus, _) = percpu::offsets(kernel, memory);
    let mut runs = Vec::new();
    // A page is on one list only, and once.
    let mut seen = vec![false; frames];
    let mut whole = true;
    let mut walked = HashSet::new();
    for node in nodes(kernel, memory)? {
        for zone in 0..zone_count {
            let Some(set) = read(node.offset(zones.offset() + zone * zone_size + sets)) else {
                whole = false;
                continue;
            };
            // Zones without memory have no lists. Before setup_per_cpu_pageset() all zones share
            // `boot_pageset`.
            if set == 0 || !walked.insert(set) {
                continue;
            }
            for cpu in &cpus {
                let pcp = VirtAddr(set.wrapping_add(*cpu)).offset(inner + lists.offset());
                for list in 0..list_count {
                    let order = if list < TYPES * ORDERS { list / TYPES } else { HUGE_ORDER };
                    let head = pcp.offset(16 * list);
                    let Some(mut at) = read(head).map(VirtAddr) else {
                        whole = false;
                        continue;
                    };
                    while at != head && at.0 != 0 {
                        let pfn = pfn_of(VirtAddr(at.0.wrapping_sub(link)));
                        let is_new = seen.get_mut(pfn as usize).is_some_and(|seen| !std::mem::replace(seen, true));
                        let Some(next) = read(at).filter(|_| is_new) else {
                            whole = false;
                            break;
                        };
                        runs.push(pfn..pfn.saturating_add(1 << order));
                        at = VirtAddr(next);
                    }
                }
            }
        }
    }
    Some((runs, whole))
}

/// Addresses of every `pglist_data`.
fn nodes(kernel: &Kernel, memory: &impl GuestMemory) -> Option<Vec<VirtAddr>> {
    let Some(array) = kernel.symbol("node_data") else {
        return kernel.symbol("contig_page_data").map(|node| vec![node]);
    };
    let count = kernel.variable(memory, "nr_node_ids").map_or(1, |n| (n & 0xffff_ffff).clamp(1, MAX_NODES));
    let node = |i| kernel.read_u64(memory, array.offset(8 * i)).ok();
    (0..count).map(node).filter(|n| *n != Some(0)).map(|n| n.map(VirtAddr)).collect()
}
