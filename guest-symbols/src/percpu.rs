//! Per-CPU memory (mm/percpu.c): where each CPU's copy lies, and which parts are handed out piecemeal.

use crate::Kernel;
use crate::memory::{GuestMemory, VirtAddr};
use std::ops::Range;

/// More CPUs and chunks than this are not believed.
const MAX_CPUS: u32 = 8192;
const MAX_CHUNKS: usize = 65_536;

/// The layout of per-CPU memory.
#[derive(Debug, Clone, Default)]
pub struct PerCpu {
    /// `__per_cpu_offset` of each possible CPU: add it to a `__percpu` pointer or symbol.
    pub offsets: Vec<u64>,
    /// Virtual ranges from which per-CPU blocks are allocated, every CPU's: only live blocks in them hold
    /// anything.
    pub dynamic: Vec<Range<u64>>,
}

impl PerCpu {
    /// Reads the layout; what cannot be read is left empty.
    pub fn read(kernel: &Kernel, memory: &impl GuestMemory) -> PerCpu {
        let mut this = PerCpu { offsets: offsets(kernel, memory), dynamic: Vec::new() };
        this.dynamic = this.chunks(kernel, memory).unwrap_or_default();
        this
    }

    /// Address of CPU `cpu`'s copy of a per-CPU symbol or pointer.
    pub fn address(&self, cpu: usize, pointer: u64) -> Option<VirtAddr> {
        Some(VirtAddr(pointer.wrapping_add(*self.offsets.get(cpu)?)))
    }

    fn chunks(&self, kernel: &Kernel, memory: &impl GuestMemory) -> Option<Vec<Range<u64>>> {
        let variable = |name: &str| kernel.variable(memory, name);
        let unit_size = variable("pcpu_unit_size")? & 0xffff_ffff;
        let units = VirtAddr(variable("pcpu_unit_offsets")?);
        let mut unit = Vec::new();
        for cpu in 0..self.offsets.len() as u64 {
            unit.push(kernel.read_u64(memory, units.offset(8 * cpu)).ok()?);
        }
        let slots = (variable("pcpu_nr_slots")? & 0xffff_ffff).min(256);
        let lists = VirtAddr(variable("pcpu_chunk_lists")?);
        let base_at = kernel.offset_of("pcpu_chunk", "base_addr")?;
        let list_at = kernel.offset_of("pcpu_chunk", "list")?;
        let first = VirtAddr(variable("pcpu_base_addr")?);
        // The first chunk starts with the static variables, which are the kernel's own.
        let static_size = kernel.symbol("__per_cpu_end")?.0.wrapping_sub(kernel.symbol("__per_cpu_start")?.0);
        let mut ranges: Vec<_> =
            unit.iter().map(|u| first.0.wrapping_add(*u)).map(|u| u + static_size..u + unit_size).collect();
        let mut chunks = 0;
        for slot in 0..slots {
            let head = lists.offset(16 * slot);
            let mut at = VirtAddr(kernel.read_u64(memory, head).ok()?);
            while at != head && chunks < MAX_CHUNKS {
                chunks += 1;
                let chunk = VirtAddr(at.0.wrapping_sub(list_at));
                let base = kernel.read_u64(memory, chunk.offset(base_at)).ok()?;
                // The first chunk's base is that of its dynamic part, within the first unit's range above.
                if !(first.0..first.0 + unit_size).contains(&base) {
                    ranges.extend(unit.iter().map(|u| base.wrapping_add(*u)).map(|u| u..u.wrapping_add(unit_size)));
                }
                at = VirtAddr(kernel.read_u64(memory, at).ok()?);
            }
        }
        ranges.retain(|r| r.start < r.end);
        Some(ranges)
    }
}

fn offsets(kernel: &Kernel, memory: &impl GuestMemory) -> Vec<u64> {
    let Some(at) = kernel.symbol("__per_cpu_offset") else { return Vec::new() };
    let count = kernel.variable(memory, "nr_cpu_ids").map_or(1, |n| (n as u32).clamp(1, MAX_CPUS));
    (0..count.into()).filter_map(|cpu| kernel.read_u64(memory, at.offset(8 * cpu)).ok()).collect()
}
