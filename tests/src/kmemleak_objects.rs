//! Reads all objects of a guest's kmemleak from guest memory, with their stacks from the stack
//! depot. It supports Linux 6.12 (mm/kmemleak.c, lib/stackdepot.c). The guest's BTF describes the
//! types.

use guest_symbols::memory::{GuestMemory, VirtAddr};
use guest_symbols::{Kernel, MemoryError};
use std::ops::Range;

/// `DEPOT_STACK_ALIGN` (include/linux/stackdepot.h).
const ALIGN: u32 = 4;
/// Most objects. More are a sign of a cycle.
const MAX_OBJECTS: usize = 16 << 20;
/// `OBJECT_ALLOCATED` (mm/kmemleak.c).
const ALLOCATED: u32 = 1;

/// An object that kmemleak tracks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Object {
    /// Virtual address, or `__percpu` pointer.
    pub address: u64,
    /// Size in bytes.
    pub size: u64,
    /// The pid that kmemleak recorded.
    pub pid: u32,
    /// Jiffies at allocation.
    pub jiffies: u64,
    /// The stack, innermost frame first. Empty if kmemleak could not record one yet.
    pub stack: Vec<u64>,
}

/// Reads all allocated objects.
///
/// # Panics
/// If the kernel has no kmemleak, or another version of it.
pub fn read(kernel: &Kernel, memory: &impl GuestMemory) -> Vec<Object> {
    try_read(kernel, memory).unwrap_or_else(|why| panic!("kmemleak's objects: {why}"))
}

fn try_read(kernel: &Kernel, memory: &impl GuestMemory) -> Result<Vec<Object>, MemoryError> {
    let field = |name: &str, path: &str| {
        kernel.offset_of(name, path).unwrap_or_else(|| panic!("no {name}.{path} in the kernel's types"))
    };
    let object = |path| field("kmemleak_object", path);
    let symbol = |name: &str| kernel.symbol(name).unwrap_or_else(|| panic!("no {name}"));
    let link = object("object_list");
    let depot = Depot {
        pools: symbol("stack_pools"),
        pool: bits(kernel, "pool_index_plus_1"),
        offset: bits(kernel, "offset"),
        size: field("stack_record", "size"),
        entries: field("stack_record", "entries"),
    };
    let word = |at: VirtAddr| kernel.read_u64(memory, at);
    let half = |at: VirtAddr| kernel.read_u32(memory, at);
    let head = symbol("object_list");
    let mut node = VirtAddr(word(head)?);
    let mut objects = Vec::new();
    while node != head {
        assert!(objects.len() < MAX_OBJECTS, "object_list has no end");
        let at = VirtAddr(node.0.wrapping_sub(link));
        if half(at.offset(object("flags")))? & ALLOCATED != 0 {
            objects.push(Object {
                address: word(at.offset(object("pointer")))?,
                size: word(at.offset(object("size")))?,
                pid: half(at.offset(object("pid")))?,
                jiffies: word(at.offset(object("jiffies")))?,
                stack: depot.stack(kernel, memory, half(at.offset(object("trace_handle")))?)?,
            });
        }
        node = VirtAddr(word(node)?);
    }
    Ok(objects)
}

/// The shift and width of a field of `union handle_parts`.
fn bits(kernel: &Kernel, name: &str) -> (u64, u32) {
    let member = kernel.btf.as_ref().and_then(|btf| btf.member("handle_parts", name));
    member.and_then(|m| Some((m.bit_offset, m.bits?))).unwrap_or_else(|| panic!("no handle_parts.{name}"))
}

struct Depot {
    pools: VirtAddr,
    pool: (u64, u32),
    offset: (u64, u32),
    size: u64,
    entries: u64,
}

impl Depot {
    /// As depot_fetch_stack() does.
    fn stack(&self, kernel: &Kernel, memory: &impl GuestMemory, handle: u32) -> Result<Vec<u64>, MemoryError> {
        let part = |(shift, width): (u64, u32)| u64::from((handle >> shift) & ((1 << width) - 1));
        if handle == 0 {
            return Ok(Vec::new());
        }
        let pool = kernel.read_u64(memory, self.pools.offset(8 * (part(self.pool) - 1)))?;
        let record = VirtAddr(pool).offset(part(self.offset) << ALIGN);
        let frames = kernel.read_u32(memory, record.offset(self.size))?;
        (0..u64::from(frames)).map(|i| kernel.read_u64(memory, record.offset(self.entries + 8 * i))).collect()
    }
}

/// Code at which the stack depot cuts a stack (filter_irq_stacks(), kernel/stacktrace.c).
pub fn interrupt_entries(kernel: &Kernel) -> Vec<Range<u64>> {
    let at = |name: String| kernel.symbol(&name).unwrap_or_else(|| panic!("no {name}")).0;
    ["irqentry", "softirqentry"].map(|what| at(format!("__{what}_text_start"))..at(format!("__{what}_text_end"))).into()
}
