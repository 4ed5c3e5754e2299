//! Per-CPU memory (mm/percpu.c): where each CPU's copy lies, and which parts are handed out piecemeal.

use crate::Kernel;
use crate::memory::{GuestMemory, PAGE_SIZE, VirtAddr};
use std::ops::Range;

/// More CPUs and chunks than this are not believed.
const MAX_CPUS: u32 = 8192;
const MAX_CHUNKS: usize = 65_536;
/// Pages of one CPU in a chunk, at most.
const MAX_CHUNK_PAGES: u64 = 65_536;
/// PCPU_MIN_ALLOC_SIZE (include/linux/percpu.h): the bytes that a bit of a chunk's maps stands for.
const MIN_ALLOC: u64 = 4;

/// The layout of per-CPU memory.
#[derive(Debug, Clone, Default)]
pub struct PerCpu {
    /// `__per_cpu_offset` of each possible CPU: add it to a `__percpu` pointer or symbol.
    pub offsets: Vec<u64>,
    /// Virtual ranges from which per-CPU blocks are allocated, every CPU's: only live blocks in them hold
    /// anything.
    pub dynamic: Vec<Range<u64>>,
    /// Addresses of the words that tell where chunks lie (`pcpu_chunk.base_addr`), which is where a block may be.
    pub bases: Vec<VirtAddr>,
    /// Every block that the kernel counts as allocated: `__percpu` pointer and bytes. `None` where its maps cannot be
    /// read.
    pub allocated: Option<Vec<(u64, u64)>>,
}

/// Offsets in bytes of members of `struct pcpu_chunk` (mm/percpu-internal.h).
struct Chunk {
    list: u64,
    base_addr: u64,
    alloc_map: u64,
    bound_map: u64,
    start_offset: u64,
    end_offset: u64,
    nr_pages: u64,
}

impl Chunk {
    fn of(kernel: &Kernel) -> Option<Chunk> {
        let at = |name| kernel.offset_of("pcpu_chunk", name);
        Some(Chunk {
            list: at("list")?,
            base_addr: at("base_addr")?,
            alloc_map: at("alloc_map")?,
            bound_map: at("bound_map")?,
            start_offset: at("start_offset")?,
            end_offset: at("end_offset")?,
            nr_pages: at("nr_pages")?,
        })
    }
}

impl PerCpu {
    /// Reads the layout; what cannot be read is left empty.
    pub fn read(kernel: &Kernel, memory: &impl GuestMemory) -> PerCpu {
        let mut this = PerCpu { offsets: offsets(kernel, memory), ..PerCpu::default() };
        let chunks = chunks(kernel, memory);
        this.dynamic = chunks.as_ref().and_then(|c| this.ranges(kernel, memory, c)).unwrap_or_default();
        let base = kernel.offset_of("pcpu_chunk", "base_addr");
        this.bases = chunks.iter().flatten().filter_map(|c| Some(c.offset(base?))).collect();
        this.allocated = chunks.and_then(|c| allocated(kernel, memory, &c));
        this
    }

    /// Address of CPU `cpu`'s copy of a per-CPU symbol or pointer.
    pub fn address(&self, cpu: usize, pointer: u64) -> Option<VirtAddr> {
        Some(VirtAddr(pointer.wrapping_add(*self.offsets.get(cpu)?)))
    }

    /// Where in every CPU's memory the chunks lie.
    fn ranges(&self, kernel: &Kernel, memory: &impl GuestMemory, chunks: &[VirtAddr]) -> Option<Vec<Range<u64>>> {
        let variable = |name: &str| kernel.variable(memory, name);
        let unit_size = variable("pcpu_unit_size")? & 0xffff_ffff;
        let units = VirtAddr(variable("pcpu_unit_offsets")?);
        let mut unit = Vec::new();
        for cpu in 0..self.offsets.len() as u64 {
            unit.push(kernel.read_u64(memory, units.offset(8 * cpu)).ok()?);
        }
        let base_at = kernel.offset_of("pcpu_chunk", "base_addr")?;
        let first = VirtAddr(variable("pcpu_base_addr")?);
        // The first chunk starts with the static variables, which are the kernel's own.
        let static_size = kernel.symbol("__per_cpu_end")?.0.wrapping_sub(kernel.symbol("__per_cpu_start")?.0);
        let mut ranges: Vec<_> =
            unit.iter().map(|u| first.0.wrapping_add(*u)).map(|u| u + static_size..u + unit_size).collect();
        for chunk in chunks {
            let base = kernel.read_u64(memory, chunk.offset(base_at)).ok()?;
            // The first chunk's base is that of its dynamic part, within the first unit's range above.
            if !(first.0..first.0 + unit_size).contains(&base) {
                ranges.extend(unit.iter().map(|u| base.wrapping_add(*u)).map(|u| u..u.wrapping_add(unit_size)));
            }
        }
        ranges.retain(|r| r.start < r.end);
        Some(ranges)
    }
}

/// Addresses of every `struct pcpu_chunk`, that for modules' variables (`pcpu_reserved_chunk`) too.
fn chunks(kernel: &Kernel, memory: &impl GuestMemory) -> Option<Vec<VirtAddr>> {
    let slots = (kernel.variable(memory, "pcpu_nr_slots")? & 0xffff_ffff).min(256);
    let lists = VirtAddr(kernel.variable(memory, "pcpu_chunk_lists")?);
    let list_at = Chunk::of(kernel)?.list;
    let mut chunks = Vec::new();
    for slot in 0..slots {
        let head = lists.offset(16 * slot);
        let mut at = VirtAddr(kernel.read_u64(memory, head).ok()?);
        while at != head && chunks.len() < MAX_CHUNKS {
            chunks.push(VirtAddr(at.0.wrapping_sub(list_at)));
            at = VirtAddr(kernel.read_u64(memory, at).ok()?);
        }
    }
    let reserved = kernel.variable(memory, "pcpu_reserved_chunk").filter(|&at| at != 0);
    chunks.extend(reserved.map(VirtAddr));
    Some(chunks)
}

/// Every block of the chunks: from where both maps have a bit to the next bit of the map of bounds
/// (pcpu_alloc_area(), mm/percpu.c).
fn allocated(kernel: &Kernel, memory: &impl GuestMemory, chunks: &[VirtAddr]) -> Option<Vec<(u64, u64)>> {
    let layout = Chunk::of(kernel)?;
    // `__percpu` pointers are counted from the first chunk's start as static variables are (__addr_to_pcpu_ptr).
    let to_pointer = kernel.symbol("__per_cpu_start")?.0.wrapping_sub(kernel.variable(memory, "pcpu_base_addr")?);
    let mut blocks = Vec::new();
    for chunk in chunks {
        let word = |at: u64| kernel.read_u64(memory, chunk.offset(at)).ok();
        let int = |at: u64| kernel.read_u32(memory, chunk.offset(at)).ok().map(u64::from);
        let size = int(layout.nr_pages)?.min(MAX_CHUNK_PAGES) * PAGE_SIZE;
        let map = |at: u64, bits: u64| {
            let mut bytes = vec![0; bits.div_ceil(64) as usize * 8];
            kernel.read(memory, VirtAddr(word(at)?), &mut bytes).ok()?;
            Some(move |bit: u64| bytes.get(bit as usize / 8).is_some_and(|b| b >> (bit % 8) & 1 != 0))
        };
        // The parts of a chunk that are not its own are hidden as if they were allocated.
        let own = int(layout.start_offset)?..size.saturating_sub(int(layout.end_offset)?);
        let is_allocated = map(layout.alloc_map, size / MIN_ALLOC)?;
        let is_bound = map(layout.bound_map, size / MIN_ALLOC + 1)?;
        let base = word(layout.base_addr)?.wrapping_add(to_pointer);
        let mut start = None;
        for bit in own.start / MIN_ALLOC..=own.end / MIN_ALLOC {
            if !is_bound(bit) && bit != own.end / MIN_ALLOC {
                continue;
            }
            if let Some(start) = start {
                blocks.push((base.wrapping_add(start * MIN_ALLOC), (bit - start) * MIN_ALLOC));
            }
            start = is_allocated(bit).then_some(bit);
        }
    }
    Some(blocks)
}

/// `__per_cpu_offset` of each possible CPU.
pub(crate) fn offsets(kernel: &Kernel, memory: &impl GuestMemory) -> Vec<u64> {
    let Some(at) = kernel.symbol("__per_cpu_offset") else { return Vec::new() };
    let count = kernel.variable(memory, "nr_cpu_ids").map_or(1, |n| (n as u32).clamp(1, MAX_CPUS));
    (0..count.into()).filter_map(|cpu| kernel.read_u64(memory, at.offset(8 * cpu)).ok()).collect()
}
