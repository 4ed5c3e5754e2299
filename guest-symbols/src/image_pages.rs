//! Pages that hibernation has allocated: copies of other pages, and records of where they belong.
//!
//! They exist while an image is made, written or restored. Copies of slabs hold the same pointers
//! as their originals. Only bitmaps of frames refer to the copies. The kernel marks each such page
//! in two `struct memory_bitmap` (kernel/power/snapshot.c, 5.10 to 7.3). swsusp_free() frees the
//! pages that are marked in both.

use crate::Kernel;
use crate::corruption::circle;
use crate::memory::{GuestMemory, PAGE_SIZE, VirtAddr};
use std::collections::HashMap;

/// The two bitmaps.
const MAPS: [&str; 2] = ["forbidden_pages_map", "free_pages_map"];
/// The most zones of a bitmap that are read. Each is a range of one of the machine's zones.
const MAX_ZONES: usize = 1 << 8;
/// Bits in one leaf of a bitmap (BM_BITS_PER_BLOCK).
const BITS: u64 = PAGE_SIZE * 8;

/// The bits of each leaf, by its first frame.
type Leaves = HashMap<u64, Vec<u8>>;

/// Calls `each` with the frame number of every page below `frames` that hibernation has allocated.
/// There are none if the kernel does not hibernate, or its types are not known.
pub(crate) fn for_each(kernel: &Kernel, memory: &impl GuestMemory, frames: u64, mut each: impl FnMut(u64)) {
    let [Some(forbidden), Some(free)] = MAPS.map(|name| leaves(kernel, memory, name, frames)) else { return };
    for (first, bits) in &forbidden {
        let Some(others) = free.get(first) else { continue };
        for (byte, (a, b)) in (0..).zip(bits.iter().zip(others)) {
            let both = a & b;
            (0..8).filter(|bit| both >> bit & 1 != 0).for_each(|bit| each(first + 8 * byte + bit));
        }
    }
}

/// The leaves of the bitmap that variable `name` points to, as far as they can be read.
fn leaves(kernel: &Kernel, memory: &impl GuestMemory, name: &str, frames: u64) -> Option<Leaves> {
    let map = VirtAddr(kernel.variable(memory, name).filter(|&map| map != 0)?);
    let zone_field = |field| kernel.offset_of("mem_zone_bm_rtree", field);
    let node_field = |field| kernel.offset_of("rtree_node", field);
    let (links, zone_leaves, start_pfn) = (zone_field("list")?, zone_field("leaves")?, zone_field("start_pfn")?);
    let (node_links, data) = (node_field("list")?, node_field("data")?);
    let read = |at: VirtAddr| kernel.read_u64(memory, at).ok();
    let most = (frames / BITS + 1) as usize;
    let mut found = Leaves::new();
    let (zones, _) = circle(kernel, memory, map.offset(kernel.offset_of("memory_bitmap", "zones")?), MAX_ZONES);
    for zone in zones {
        let zone = VirtAddr(zone.0.wrapping_sub(links));
        let Some(start) = read(zone.offset(start_pfn)).filter(|start| *start < frames) else { continue };
        let (nodes, _) = circle(kernel, memory, zone.offset(zone_leaves), most);
        for (number, node) in (0..).zip(nodes) {
            let Some(at) = read(VirtAddr(node.0.wrapping_sub(node_links).wrapping_add(data))) else { break };
            let mut bits = vec![0; PAGE_SIZE as usize];
            if kernel.read(memory, VirtAddr(at), &mut bits).is_err() {
                break;
            }
            found.insert(start + number * BITS, bits);
        }
    }
    Some(found)
}
