//! KASAN, the kernel's address sanitizer (CONFIG_KASAN_GENERIC; mm/kasan and
//! arch/x86/include/asm/kasan.h, 5.10 to 7.3).
//!
//! Its shadow memory has one byte for each 8 bytes of the kernel's address space. Its quarantine
//! holds freed objects.

use crate::Kernel;
use crate::memory::{GuestMemory, VirtAddr};
use crate::percpu::PerCpu;
use std::ops::Range;

/// KASAN_SHADOW_OFFSET (arch/x86/Kconfig). With KASAN_SHADOW_SCALE_SHIFT, the shadow of address A
/// is at `(A >> 3) + OFFSET`.
const OFFSET: u64 = 0xdfff_fc00_0000_0000;
const SCALE: u32 = 3;

/// Shadow bytes of freed slab objects: KASAN_SLAB_FREE and KASAN_SLAB_FREE_META (mm/kasan/kasan.h).
/// Up to 6.1 the second had other names, but the same value.
const FREED: [u8; 2] = [0xfb, 0xfa];

/// The most batches of quarantined objects that are read. There are 1,024, or 4 for each CPU.
const MAX_BATCHES: u64 = 65_536;

/// Whether the kernel was built with KASAN.
pub fn is_built_in(kernel: &Kernel) -> bool {
    kernel.symbol("kasan_early_shadow_page").is_some()
}

/// Virtual address of the shadow byte of virtual address `at`.
fn shadow_of(at: VirtAddr) -> VirtAddr {
    VirtAddr((at.0 >> SCALE).wrapping_add(OFFSET))
}

/// Virtual range of the shadow. Empty if the kernel has none.
pub fn shadow_of_kernel(kernel: &Kernel, memory: &impl GuestMemory) -> Range<u64> {
    if is_built_in(kernel) { shadow(kernel.page_tables(memory).levels) } else { 0..0 }
}

/// The shadow's range with page tables of `levels` levels.
fn shadow(levels: u32) -> Range<u64> {
    let lowest = u64::MAX << (12 + 9 * levels - 1);
    shadow_of(VirtAddr(lowest)).0..OFFSET.wrapping_add(1 << (64 - SCALE))
}

/// Whether the shadow marks the slab object at `object` as freed.
pub fn is_freed(kernel: &Kernel, memory: &impl GuestMemory, object: VirtAddr) -> bool {
    let mut byte = [0];
    kernel.read(memory, shadow_of(object), &mut byte).is_ok() && FREED.contains(&byte[0])
}

/// Calls `each` with every run of page frames that hold the shadow or its page tables. `end` is one
/// past the highest frame.
pub fn shadow_frames(kernel: &Kernel, memory: &impl GuestMemory, end: u64, each: &mut dyn FnMut(Range<u64>)) {
    let tables = kernel.page_tables(memory);
    let shadow = shadow(tables.levels);
    // The difference in mapping counts between a frame and the frame before it. One entry may map a
    // million frames, and there may be a million entries.
    let mut more = vec![0i32; end as usize + 1];
    let mut read = vec![false; end as usize];
    // The shadow of unused memory is mapped to the same few tables many times.
    let is_new = |frame: u64| read.get_mut(frame as usize).is_some_and(|read| !std::mem::replace(read, true));
    // A top-level entry may also map other memory, below the shadow or above it.
    let entry = 1u64 << (12 + 9 * (tables.levels - 1));
    let wanted = |at: VirtAddr| at.0 < shadow.end && shadow.start < at.0.saturating_add(entry);
    let root = tables.root.pfn();
    tables.frames(memory, wanted, is_new, &mut |at, frames| {
        if at.map_or(frames.start != root, |at| shadow.contains(&at.0)) {
            more[frames.start.min(end) as usize] += 1;
            more[frames.end.min(end) as usize] -= 1;
        }
    });
    let (mut mapped, mut first) = (0, None);
    for (pfn, more) in (0..).zip(more) {
        mapped += more;
        match first {
            None if mapped > 0 => first = Some(pfn),
            Some(start) if mapped == 0 => {
                each(start..pfn);
                first = None;
            }
            _ => {}
        }
    }
}

/// The lists of the quarantine, and member offsets in bytes.
pub(crate) struct Quarantine {
    /// Virtual addresses of every `struct qlist_head`.
    pub(crate) lists: Vec<VirtAddr>,
    /// Offsets of the first and the last node in a `qlist_head`.
    pub(crate) head: u64,
    pub(crate) tail: u64,
    /// Offset of the node in a `kasan_free_meta`.
    pub(crate) link: u64,
    /// Offset in `kmem_cache` of the offset of an object's `kasan_free_meta`, an int.
    pub(crate) free_meta: u64,
}

impl Quarantine {
    /// `None` if the kernel has no quarantine.
    pub(crate) fn of(kernel: &Kernel, percpu: &PerCpu) -> Option<Quarantine> {
        let size = kernel.btf.as_ref()?.size_of("qlist_head").filter(|size| *size > 0)?;
        let mut lists = Vec::new();
        let batches = kernel.symbol("global_quarantine")?;
        let count = kernel.symbols.resolve(batches.0)?.size / size;
        lists.extend((0..count.min(MAX_BATCHES)).map(|i| batches.offset(i * size)));
        // Later kernels have this list. In most of them a lock precedes it in its struct.
        let shrink = kernel.offset_of("cpu_shrink_qlist", "qlist").unwrap_or(0);
        for (name, within) in [("cpu_quarantine", 0), ("shrink_qlist", shrink)] {
            let Some(variable) = kernel.symbol(name) else { continue };
            lists.extend((0..percpu.offsets.len()).filter_map(|cpu| percpu.address(cpu, variable.0 + within)));
        }
        Some(Quarantine {
            lists,
            head: kernel.offset_of("qlist_head", "head")?,
            tail: kernel.offset_of("qlist_head", "tail")?,
            link: kernel.offset_of("kasan_free_meta", "quarantine_link")?,
            free_meta: kernel.offset_of("kmem_cache", "kasan_info.free_meta_offset")?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// KASAN_SHADOW_START and KASAN_SHADOW_END of arch/x86/include/asm/kasan.h. With 4 levels they
    /// are those of Documentation/arch/x86/x86_64/mm.rst, which rounds the start of 5 levels down.
    #[test]
    fn the_shadow_lies_where_the_kernel_has_it() {
        assert_eq!(shadow(4), 0xffff_ec00_0000_0000..0xffff_fc00_0000_0000);
        assert_eq!(shadow(5), 0xffdf_fc00_0000_0000..0xffff_fc00_0000_0000);
        assert_eq!(shadow_of(VirtAddr(0xffff_8880_0000_0000)), VirtAddr(0xffff_ed10_0000_0000));
    }
}
