//! Memory that the kernel's debug options use for their own records.
//!
//! The kernel also works without these options. An object that only their records refer to is
//! therefore a leak.
//!
//! Options that allocate their records from their own slab cache (DEBUG_OBJECTS, kmemleak) have
//! rules for blocks.

use crate::blocks::Blocks;
use guest_symbols::Kernel;
use guest_symbols::memory::{PAGE_SIZE, StoppedMemory, VirtAddr};
use std::ops::Range;

/// Tables of lockdep (kernel/locking/lockdep.c, 5.10 to 7.3): the variable, and the struct of its
/// elements.
///
/// Keys and names of lock classes may be in objects, and so may registered keys. All other pointers
/// in the tables lead to these tables or to code.
const LOCK_TABLES: [(&str, &str); 5] = [
    ("lock_classes", "lock_class"),
    ("lock_keys_hash", "hlist_head"),
    ("list_entries", "lock_list"),
    ("lock_chains", "lock_chain"),
    ("stack_trace", ""),
];
/// A variable with fewer elements is a different variable with the same name.
const MIN_ELEMENTS: u64 = 512;

/// Pools of the stack depot (lib/stackdepot.c): the variable from 6.3 on, and the variable before.
///
/// The pools hold addresses of code and of other pools. DEPOT_POOL_ORDER is 2 in all versions,
/// which makes pools of [`STACK_POOL`] bytes.
const STACK_POOLS: [&str; 2] = ["stack_pools", "stack_slabs"];
const STACK_POOL: u64 = 4 * PAGE_SIZE;
/// The most pools that are read. DEPOT_POOLS_CAP is 8,192.
const MAX_POOLS: u64 = 65_536;

/// Page frames of a section (SECTION_SIZE_BITS of arch/x86/include/asm/sparsemem.h is 27).
const SECTION_FRAMES: u64 = 1 << (27 - 12);
/// The bit of `mem_section.page_ext` of a section that is being removed (PAGE_EXT_INVALID,
/// mm/page_ext.c, 6.0 on).
const INVALID: u64 = 1;
/// The largest size in bytes of a page's `struct page_ext` that is accepted.
const MAX_PAGE_EXT: u64 = 4096;

/// Virtual ranges that hold no references.
pub(crate) fn ranges<M: StoppedMemory>(kernel: &Kernel, blocks: &Blocks<'_, M>) -> Vec<Range<u64>> {
    let mut ranges = lock_tables(kernel);
    ranges.extend(registered_keys(kernel, blocks));
    ranges.extend(stack_pools(kernel, blocks));
    ranges.extend(page_extensions(kernel, blocks).unwrap_or_default());
    ranges
}

/// The virtual range of a variable of the image. The range may include padding up to the next
/// variable.
fn variable(kernel: &Kernel, name: &str) -> Option<Range<u64>> {
    let at = kernel.symbol(name)?.0;
    Some(at..at.saturating_add(kernel.symbols.resolve(at)?.size))
}

fn lock_tables(kernel: &Kernel) -> Vec<Range<u64>> {
    let is_whole = |range: &Range<u64>, element| {
        let size = kernel.btf.as_ref().and_then(|btf| btf.size_of(element)).unwrap_or(8);
        (range.end - range.start) / size.max(1) >= MIN_ELEMENTS
    };
    if kernel.symbol("lock_classes").is_none() {
        return Vec::new();
    }
    let tables = LOCK_TABLES.iter().filter_map(|(name, element)| Some((variable(kernel, name)?, element)));
    tables.filter(|(range, element)| is_whole(range, element)).map(|(range, _)| range).collect()
}

/// The links of keys that objects have registered (lockdep_register_key(), 5.1 on). Each link is
/// the address of the next key, which is in another object.
fn registered_keys<M: StoppedMemory>(kernel: &Kernel, blocks: &Blocks<'_, M>) -> Vec<Range<u64>> {
    let mut ranges = Vec::new();
    let (Some(table), Some(next)) = (variable(kernel, "lock_keys_hash"), kernel.offset_of("hlist_node", "next")) else {
        return ranges;
    };
    // Each key has its own address. More keys than this mean a circular list.
    let most = blocks.blocks.len() + 1;
    for head in table.step_by(8) {
        let mut at = kernel.read_u64(blocks.memory, VirtAddr(head)).unwrap_or(0);
        while at != 0 && ranges.len() < most {
            ranges.push(at..at.saturating_add(16));
            at = kernel.read_u64(blocks.memory, VirtAddr(at).offset(next)).unwrap_or(0);
        }
    }
    ranges
}

fn stack_pools<M: StoppedMemory>(kernel: &Kernel, blocks: &Blocks<'_, M>) -> Vec<Range<u64>> {
    let Some(table) = STACK_POOLS.iter().find_map(|name| variable(kernel, name)) else { return Vec::new() };
    let pool = |at| kernel.read_u64(blocks.memory, VirtAddr(at)).ok().filter(|&pool| pool != 0);
    // The table may be shorter than its symbol's range. The words after it are not aligned to pages
    // or not mapped.
    let pools = table.step_by(8).take(MAX_POOLS as usize).map_while(pool);
    pools.filter(|pool| pool.is_multiple_of(PAGE_SIZE)).map(|pool| pool..pool.saturating_add(STACK_POOL)).collect()
}

/// The records that page_owner and similar options keep for each page. They are numbers (`struct
/// page_ext`, mm/page_ext.c, SPARSEMEM).
fn page_extensions<M: StoppedMemory>(kernel: &Kernel, blocks: &Blocks<'_, M>) -> Option<Vec<Range<u64>>> {
    let size = kernel.variable(blocks.memory, "page_ext_size").filter(|size| (1..=MAX_PAGE_EXT).contains(size))?;
    let section_size = kernel.btf.as_ref()?.size_of("mem_section")?.clamp(8, PAGE_SIZE);
    let page_ext = kernel.offset_of("mem_section", "page_ext")?;
    let roots = VirtAddr(kernel.variable(blocks.memory, "mem_section")?);
    let read = |at: VirtAddr| kernel.read_u64(blocks.memory, at).ok().filter(|&word| word != 0);
    // SECTIONS_PER_ROOT with CONFIG_SPARSEMEM_EXTREME, include/linux/mmzone.h.
    let of_root = PAGE_SIZE / section_size;
    let section = |n: u64| {
        let root = VirtAddr(read(roots.offset(8 * (n / of_root)))?);
        let base = read(root.offset(n % of_root * section_size).offset(page_ext))?;
        // The kernel stores the address minus the offset of the section's first frame.
        let start = base.wrapping_add(size * n * SECTION_FRAMES);
        (base & INVALID == 0).then(|| start..start.saturating_add(size * SECTION_FRAMES))
    };
    Some((0..blocks.frames_end().div_ceil(SECTION_FRAMES)).filter_map(section).collect())
}
