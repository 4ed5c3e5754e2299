//! The kernel's records of vmalloc space (mm/vmalloc.c): busy `vmap_area`s and their `vm_struct`s.

use crate::Kernel;
use crate::corruption::{Corruption, Unreadable};
use crate::memory::{GuestMemory, PAGE_SIZE, VirtAddr};
use std::collections::HashSet;
use std::ops::Range;

/// The most areas or nodes that are read.
const MAX_AREAS: usize = 4_000_000;
const MAX_NODES: u64 = 4096;

/// VM_ALLOC in `vm_struct.flags`: the area of vmalloc(), not of vmap() or ioremap()
/// (include/linux/vmalloc.h).
const VM_ALLOC: u64 = 2;

/// A busy area.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Area {
    /// Address of the `vmap_area` itself.
    pub area: VirtAddr,
    /// First address of its space. `end` is one past the last, including the guard page.
    pub start: u64,
    /// See `start`.
    pub end: u64,
    /// Address of its `vm_struct`. 0 for vm_map_ram() blocks.
    pub vm: VirtAddr,
    /// Address and bytes of the block that vmalloc() returned. `None` for other kinds of areas.
    pub block: Option<(u64, u64)>,
}

/// Offsets in bytes of the members that are not references to the area's own block.
#[derive(Debug, Clone, Copy)]
pub struct Offsets {
    /// `vmap_area.vm`.
    pub vm: u64,
    /// `vm_struct.addr`.
    pub addr: u64,
}

impl Offsets {
    /// Reads them from BTF.
    pub fn read(kernel: &Kernel) -> Option<Offsets> {
        Some(Offsets { vm: kernel.offset_of("vmap_area", "vm")?, addr: kernel.offset_of("vm_struct", "addr")? })
    }
}

impl Area {
    /// The function that requested the area (`vm_struct.caller`).
    pub fn caller<'a>(&self, kernel: &'a Kernel, memory: &impl GuestMemory) -> Option<&'a str> {
        let at = self.vm.offset(kernel.offset_of("vm_struct", "caller")?);
        Some(kernel.symbols.resolve(kernel.read_u64(memory, at).ok()?)?.name)
    }
}

/// All busy areas, from the trees of every node (6.9 on) or from the single tree before.
///
/// # Errors
/// [`Unreadable`] if a tree is corrupted.
pub fn areas(kernel: &Kernel, memory: &impl GuestMemory) -> Result<Vec<Area>, Unreadable> {
    let mut areas = Vec::new();
    for root in roots(kernel, memory).ok_or(Unreadable::NotDescribed)? {
        walk(kernel, memory, root, &mut areas)?;
    }
    Ok(areas)
}

/// Addresses of the `rb_root`s.
fn roots(kernel: &Kernel, memory: &impl GuestMemory) -> Option<Vec<VirtAddr>> {
    let Some(nodes) = kernel.variable(memory, "vmap_nodes") else {
        return Some(vec![kernel.symbol("vmap_area_root")?]);
    };
    let count = kernel.variable(memory, "nr_vmap_nodes")? & 0xffff_ffff;
    let size = kernel.btf.as_ref()?.size_of("vmap_node")?;
    let root = kernel.offset_of("vmap_node", "busy.root")?;
    Some((0..count.min(MAX_NODES)).map(|node| VirtAddr(nodes).offset(node * size + root)).collect())
}

/// The areas that wait to be purged and are linked through the member that is otherwise their `vm`
/// (5.10). Empty if the link has its own member.
pub fn purged(kernel: &Kernel, memory: &impl GuestMemory) -> Vec<VirtAddr> {
    let offset = |name| kernel.offset_of("vmap_area", name);
    let (Some(link), Some(list)) = (offset("purge_list"), kernel.symbol("vmap_purge_list")) else { return Vec::new() };
    let mut areas = Vec::new();
    let mut seen = HashSet::new();
    let mut at = list;
    // The list consists of llist_nodes. An old list_head in its place leads back to the start.
    while let Ok(next) = kernel.read_u64(memory, at) {
        if next == 0 || next == list.0 || !seen.insert(next) || Some(link) != offset("vm") {
            break;
        }
        at = VirtAddr(next);
        areas.push(VirtAddr(next.wrapping_sub(link)));
    }
    areas
}

fn block(kernel: &Kernel, memory: &impl GuestMemory, area: &Area) -> Option<(u64, u64)> {
    let read = |name| kernel.read_u64(memory, area.vm.offset(kernel.offset_of("vm_struct", name)?)).ok();
    let (flags, addr) = (read("flags")?, read("addr")?);
    let whole = flags & VM_ALLOC != 0 && (area.start..area.end).contains(&addr);
    // The kernel sets `nr_pages` last, when the block is complete.
    let pages = kernel.read_u32(memory, area.vm.offset(kernel.offset_of("vm_struct", "nr_pages")?)).ok()?;
    (whole && pages != 0).then(|| (addr, u64::from(pages) * PAGE_SIZE))
}

/// Adds every area of the tree whose `rb_root` is at `root`.
///
/// In order, areas ascend and do not overlap. The kernel keeps this true at every instruction,
/// because others walk the tree while it changes (lib/rbtree.c). Each node is therefore visited
/// once.
fn walk(kernel: &Kernel, memory: &impl GuestMemory, root: VirtAddr, areas: &mut Vec<Area>) -> Result<(), Unreadable> {
    let fields = || {
        let field = |name| kernel.offset_of("vmap_area", name);
        let child = |name| Some(field("rb_node")? + kernel.offset_of("rb_node", name)?);
        Some([
            field("rb_node")?,
            field("va_start")?,
            field("va_end")?,
            field("vm")?,
            child("rb_left")?,
            child("rb_right")?,
        ])
    };
    let [node_at, start, end, vm, left, right] = fields().ok_or(Unreadable::NotDescribed)?;
    let read = |at: VirtAddr| kernel.read_u64(memory, at).map_err(|_| Corruption::Areas);
    // A node, and the bounds of its area.
    let mut todo: Vec<(u64, Range<u64>)> = vec![(read(root)?, 0..u64::MAX)];
    while let Some((node, within)) = todo.pop() {
        if node == 0 {
            continue;
        }
        let area = VirtAddr(node.wrapping_sub(node_at));
        let word = |at: u64| read(area.offset(at));
        let mut found = Area { area, start: word(start)?, end: word(end)?, vm: VirtAddr(word(vm)?), block: None };
        let fits = within.start <= found.start && found.start < found.end && found.end <= within.end;
        if !fits || areas.len() >= MAX_AREAS {
            return Err(Corruption::Areas.into());
        }
        found.block = block(kernel, memory, &found);
        areas.push(found);
        todo.push((word(left)?, within.start..found.start));
        todo.push((word(right)?, found.end..within.end));
    }
    Ok(())
}
