//! The kernel's own record of vmalloc space (mm/vmalloc.c): busy `vmap_area`s and their `vm_struct`s.

use crate::Kernel;
use crate::memory::{GuestMemory, PAGE_SIZE, VirtAddr};

/// More areas or nodes than this are not believed.
const MAX_AREAS: usize = 4_000_000;
const MAX_NODES: u64 = 4096;

/// VM_ALLOC of `vm_struct.flags`: vmalloc's own, not vmap's or ioremap's (include/linux/vmalloc.h).
const VM_ALLOC: u64 = 2;

/// A busy area.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Area {
    /// Address of the `vmap_area` itself.
    pub area: VirtAddr,
    /// First address of the space it describes, and one past the last, with its guard page.
    pub start: u64,
    /// See `start`.
    pub end: u64,
    /// Address of its `vm_struct`; 0 for vm_map_ram() blocks.
    pub vm: VirtAddr,
    /// The block that vmalloc() gave out here, and its bytes; `None` for other kinds of areas.
    pub block: Option<(u64, u64)>,
}

/// Offsets in bytes of the members that are no references to the area's own block.
#[derive(Debug, Clone, Copy)]
pub struct Offsets {
    /// `vmap_area.vm`.
    pub vm: u64,
    /// `vm_struct.addr`.
    pub addr: u64,
}

impl Offsets {
    /// From BTF.
    pub fn read(kernel: &Kernel) -> Option<Offsets> {
        Some(Offsets { vm: kernel.offset_of("vmap_area", "vm")?, addr: kernel.offset_of("vm_struct", "addr")? })
    }
}

impl Area {
    /// The function that asked for the area (`vm_struct.caller`).
    pub fn caller<'a>(&self, kernel: &'a Kernel, memory: &impl GuestMemory) -> Option<&'a str> {
        let at = self.vm.offset(kernel.offset_of("vm_struct", "caller")?);
        Some(kernel.symbols.resolve(kernel.read_u64(memory, at).ok()?)?.name)
    }
}

/// All busy areas; from the trees of every node (6.9 on) or the one tree before.
pub fn areas(kernel: &Kernel, memory: &impl GuestMemory) -> Option<Vec<Area>> {
    let mut areas = Vec::new();
    if let Some(nodes) = kernel.variable(memory, "vmap_nodes") {
        let count = kernel.variable(memory, "nr_vmap_nodes")? & 0xffff_ffff;
        let size = kernel.btf.as_ref()?.size_of("vmap_node")?;
        let root = kernel.offset_of("vmap_node", "busy.root")?;
        for node in 0..count.min(MAX_NODES) {
            walk(kernel, memory, VirtAddr(nodes).offset(node * size + root), &mut areas)?;
        }
    } else {
        walk(kernel, memory, kernel.symbol("vmap_area_root")?, &mut areas)?;
    }
    Some(areas)
}

/// The areas that wait to be purged and are chained through the member that is their `vm` otherwise (5.10). Empty where
/// the chain has a member of its own.
pub fn purged(kernel: &Kernel, memory: &impl GuestMemory) -> Vec<VirtAddr> {
    let offset = |name| kernel.offset_of("vmap_area", name);
    let (Some(link), Some(list)) = (offset("purge_list"), kernel.symbol("vmap_purge_list")) else { return Vec::new() };
    let mut areas = Vec::new();
    let mut at = list;
    // A chain of llist_nodes; an old list_head in its place leads back to the start.
    while let Ok(next) = kernel.read_u64(memory, at) {
        if next == 0 || next == list.0 || areas.len() >= MAX_AREAS || Some(link) != offset("vm") {
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
    // `nr_pages` is set last, by which time the block is whole.
    let pages = kernel.read_u32(memory, area.vm.offset(kernel.offset_of("vm_struct", "nr_pages")?)).ok()?;
    (whole && pages != 0).then(|| (addr, u64::from(pages) * PAGE_SIZE))
}

/// Every area of the tree whose `rb_root` is at `root`.
fn walk(kernel: &Kernel, memory: &impl GuestMemory, root: VirtAddr, areas: &mut Vec<Area>) -> Option<()> {
    let field = |name| kernel.offset_of("vmap_area", name);
    let (node_at, start, end, vm) = (field("rb_node")?, field("va_start")?, field("va_end")?, field("vm")?);
    let (left, right) = (kernel.offset_of("rb_node", "rb_left")?, kernel.offset_of("rb_node", "rb_right")?);
    let mut todo = vec![kernel.read_u64(memory, root).ok()?];
    while let Some(node) = todo.pop() {
        if node == 0 {
            continue;
        }
        if areas.len() >= MAX_AREAS {
            return None;
        }
        let area = VirtAddr(node.wrapping_sub(node_at));
        let read = |o| kernel.read_u64(memory, area.offset(o)).ok();
        let mut found = Area { area, start: read(start)?, end: read(end)?, vm: VirtAddr(read(vm)?), block: None };
        found.block = block(kernel, memory, &found);
        areas.push(found);
        todo.push(read(node_at + left)?);
        todo.push(read(node_at + right)?);
    }
    Some(())
}
