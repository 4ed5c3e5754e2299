//! Per-CPU memory (mm/percpu.c): the place of each CPU's copy, and the parts that blocks are
//! allocated from.

use crate::Kernel;
use crate::corruption::{self, Corruption};
use crate::memory::{GuestMemory, PAGE_SIZE, VirtAddr};
use std::collections::HashSet;
use std::ops::Range;

/// The most CPUs and chunks that are read.
const MAX_CPUS: u32 = 8192;
const MAX_CHUNKS: usize = 65_536;
/// The most pages of one CPU in a chunk.
const MAX_CHUNK_PAGES: u64 = 65_536;
/// The most bytes of a CPU's copy of a chunk, and of all copies.
const MAX_UNIT: u64 = 1 << 28;
const MAX_UNITS: u64 = 1 << 36;
/// PCPU_MIN_ALLOC_SIZE (include/linux/percpu.h): the bytes for each bit of a chunk's maps.
const MIN_ALLOC: u64 = 4;

/// The layout of per-CPU memory.
#[derive(Debug, Clone, Default)]
pub struct PerCpu {
    /// `__per_cpu_offset` of each possible CPU. Adding it to a `__percpu` pointer or symbol gives a
    /// virtual address.
    pub offsets: Vec<u64>,
    /// Virtual ranges from which per-CPU blocks are allocated, for every CPU. Only live blocks in
    /// them hold references.
    pub dynamic: Vec<Range<u64>>,
    /// Addresses of the words that hold the chunks' addresses (`pcpu_chunk.base_addr`). A block may
    /// have the same address as a chunk.
    pub bases: Vec<VirtAddr>,
    /// Every block that the kernel counts as allocated: `__percpu` pointer and bytes. `None` if the
    /// kernel's maps cannot be read.
    pub allocated: Option<Vec<(u64, u64)>>,
    /// Corruptions that were found.
    pub corruption: Vec<Corruption>,
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

    /// The part of a chunk's pages that belongs to it, in bytes from `base_addr`. The first chunks
    /// share pages with what lies before and behind them.
    fn own(&self, kernel: &Kernel, memory: &impl GuestMemory, chunk: VirtAddr) -> Option<Range<u64>> {
        let int = |at: u64| kernel.read_u32(memory, chunk.offset(at)).ok().map(u64::from);
        let size = int(self.nr_pages)?.min(MAX_CHUNK_PAGES) * PAGE_SIZE;
        Some(int(self.start_offset)?..size.saturating_sub(int(self.end_offset)?))
    }
}

impl PerCpu {
    /// Reads the layout. Parts that cannot be read stay empty.
    pub fn read(kernel: &Kernel, memory: &impl GuestMemory) -> PerCpu {
        let (offsets, corruption) = offsets(kernel, memory);
        let mut this = PerCpu { offsets, corruption: corruption.into_iter().collect(), ..PerCpu::default() };
        let Some((chunks, whole)) = chunks(kernel, memory) else { return this };
        let ranges = this.ranges(kernel, memory, &chunks);
        let base = kernel.offset_of("pcpu_chunk", "base_addr");
        this.bases = chunks.iter().filter_map(|c| Some(c.offset(base?))).collect();
        this.allocated = if whole { allocated(kernel, memory, &chunks) } else { None };
        if ranges.is_none() || this.allocated.is_none() {
            this.corruption.push(Corruption::Chunks);
        }
        this.dynamic = ranges.unwrap_or_default();
        this
    }

    /// Address of CPU `cpu`'s copy of a per-CPU symbol or pointer.
    pub fn address(&self, cpu: usize, pointer: u64) -> Option<VirtAddr> {
        Some(VirtAddr(pointer.wrapping_add(*self.offsets.get(cpu)?)))
    }

    /// Virtual ranges of the chunks in every CPU's memory.
    ///
    /// A unit is larger than what the first chunks use of it. The rest went back to the page
    /// allocator (pcpu_embed_first_chunk(), mm/percpu.c, 5.10 to 7.3).
    fn ranges(&self, kernel: &Kernel, memory: &impl GuestMemory, chunks: &[VirtAddr]) -> Option<Vec<Range<u64>>> {
        let variable = |name: &str| kernel.variable(memory, name);
        let unit_size = variable("pcpu_unit_size")? & 0xffff_ffff;
        let units = (chunks.len() + 1) as u64 * self.offsets.len() as u64;
        if unit_size > MAX_UNIT || units.saturating_mul(unit_size) > MAX_UNITS {
            return None;
        }
        let units = VirtAddr(variable("pcpu_unit_offsets")?);
        let mut unit = Vec::new();
        for cpu in 0..self.offsets.len() as u64 {
            unit.push(kernel.read_u64(memory, units.offset(8 * cpu)).ok()?);
        }
        let layout = Chunk::of(kernel)?;
        let mut ranges = Vec::new();
        for chunk in chunks {
            let base = kernel.read_u64(memory, chunk.offset(layout.base_addr)).ok()?;
            let own = layout.own(kernel, memory, *chunk)?;
            let own = own.start.min(unit_size)..own.end.min(unit_size);
            let of_cpu = |unit: &u64| base.wrapping_add(*unit);
            ranges.extend(unit.iter().map(of_cpu).map(|u| u.wrapping_add(own.start)..u.wrapping_add(own.end)));
        }
        ranges.retain(|r| r.start < r.end);
        Some(ranges)
    }
}

/// Addresses of every `struct pcpu_chunk`, including the one for modules' variables
/// (`pcpu_reserved_chunk`), and whether the list is complete. `None` if the kernel has none yet, or
/// BTF does not describe them.
fn chunks(kernel: &Kernel, memory: &impl GuestMemory) -> Option<(Vec<VirtAddr>, bool)> {
    let slots = (kernel.variable(memory, "pcpu_nr_slots")? & 0xffff_ffff).min(256);
    let lists = kernel.variable(memory, "pcpu_chunk_lists").filter(|&at| at != 0).map(VirtAddr)?;
    let list_at = Chunk::of(kernel)?.list;
    let (mut chunks, mut all_whole) = (Vec::new(), slots != 0);
    for slot in 0..slots {
        let (nodes, whole) = corruption::circle(kernel, memory, lists.offset(16 * slot), MAX_CHUNKS);
        chunks.extend(nodes.iter().map(|node| VirtAddr(node.0.wrapping_sub(list_at))));
        all_whole &= whole;
    }
    // A chunk is in one list only.
    let mut seen = HashSet::new();
    chunks.retain(|chunk| seen.insert(*chunk));
    let reserved = kernel.variable(memory, "pcpu_reserved_chunk").filter(|&at| at != 0);
    chunks.extend(reserved.map(VirtAddr));
    let all_whole = all_whole && chunks.len() < MAX_CHUNKS;
    Some((chunks, all_whole))
}

/// Every block of the chunks. A block starts where both maps have a bit. It ends at the next bit of
/// the bound map (pcpu_alloc_area(), mm/percpu.c).
fn allocated(kernel: &Kernel, memory: &impl GuestMemory, chunks: &[VirtAddr]) -> Option<Vec<(u64, u64)>> {
    let layout = Chunk::of(kernel)?;
    // Like static variables, `__percpu` pointers count from the first chunk's start
    // (__addr_to_pcpu_ptr).
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
        // Parts that do not belong to a chunk are marked as allocated in its map.
        let own = layout.own(kernel, memory, *chunk)?;
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

/// `__per_cpu_offset` of each possible CPU, compared with the values it was computed from
/// (setup_per_cpu_areas(), arch/x86/kernel/setup_percpu.c, 5.10 to 7.3).
pub(crate) fn offsets(kernel: &Kernel, memory: &impl GuestMemory) -> (Vec<u64>, Option<Corruption>) {
    let Some(at) = kernel.symbol("__per_cpu_offset") else { return (Vec::new(), None) };
    let mut corruption = None;
    let mut count = kernel.variable(memory, "nr_cpu_ids").map_or(1, |n| (n as u32).clamp(1, MAX_CPUS)).into();
    let read = |at: VirtAddr, cpu: u64| kernel.read_u64(memory, at.offset(8 * cpu)).ok();
    // Before the kernel sets it, there are no units either.
    let units = kernel.variable(memory, "pcpu_unit_offsets").filter(|&at| at != 0).map(VirtAddr);
    let possible = possible_cpus(kernel, memory).filter(|_| units.is_some());
    if let Some(possible) = &possible {
        // The same as in setup_nr_cpu_ids(), kernel/smp.c.
        let last = possible.iter().rposition(|&is| is).map_or(0, |last| last as u64 + 1);
        if last != count {
            corruption = Some(Corruption::Cpus("nr_cpu_ids is not the number of possible ones"));
            count = last.clamp(1, count);
        }
    }
    let mut offsets: Vec<u64> = (0..count).filter_map(|cpu| read(at, cpu)).collect();
    let from_units = || {
        let start = kernel.symbol("__per_cpu_start")?.0;
        let delta = kernel.variable(memory, "pcpu_base_addr")?.wrapping_sub(start);
        let offset = |cpu| Some(read(units?, cpu)?.wrapping_add(delta));
        (0..count).map(offset).collect::<Option<Vec<u64>>>()
    };
    if let (Some(possible), Some(expected)) = (&possible, from_units()) {
        let is_other =
            |(cpu, offset): (usize, &u64)| possible.get(cpu) == Some(&true) && expected.get(cpu) != Some(offset);
        if offsets.iter().enumerate().any(is_other) {
            corruption = Some(Corruption::Cpus("__per_cpu_offset is not where the CPUs' memory was set up"));
        }
    }
    // Copies at the same address are listed once.
    let mut seen = HashSet::new();
    offsets.retain(|offset| seen.insert(*offset));
    (offsets, corruption)
}

/// Whether each CPU is possible (`cpu_possible_mask`).
fn possible_cpus(kernel: &Kernel, memory: &impl GuestMemory) -> Option<Vec<bool>> {
    let at = kernel.symbol("__cpu_possible_mask")?;
    let size = kernel.symbols.resolve(at.0)?.size.clamp(8, u64::from(MAX_CPUS) / 8);
    let mut bytes = vec![0; size as usize & !7];
    kernel.read(memory, at, &mut bytes).ok()?;
    Some(bytes.iter().flat_map(|byte| (0..8).map(move |bit| byte >> bit & 1 != 0)).collect())
}
