//! Pages of the page allocator as blocks (`pages=on`), and which of them are certainly unused.
//!
//! A page is referenced by an address in it, by its descriptor, by page tables, or by its frame
//! number. Addresses of pages and of descriptors are ordinary words. Pages that the kernel's or a
//! process's page tables map count as referenced. The page tables themselves count as referenced
//! too. Frame numbers are not looked for, because they would match arbitrary words.

use crate::block::Block;
use detector::frozen::Objects;
use detector::objects::{Kind, Object};
use guest_symbols::Kernel;
use guest_symbols::memory::{PAGE_SIZE, StoppedMemory, VirtAddr};
use guest_symbols::pages::{Maps, Pages, Use};
use guest_symbols::paging::PageTables;
use std::collections::{HashMap, HashSet};

/// Makes blocks for live objects of kind [`Kind::Pages`] whose pages are still used as they were
/// allocated. These pages are then no roots. `others` are the indices of all objects that are not
/// slab objects.
pub(crate) fn blocks<M: StoppedMemory>(
    kernel: &Kernel,
    memory: &M,
    pages: &Pages,
    allocated: &Objects,
    others: &[u32],
) -> Vec<Block> {
    let objects = allocated.list();
    let of_kind = |kind| others.iter().map(|&i| &objects[i as usize]).filter(move |(_, o)| o.kind() == kind);
    let ours = of_kind(Kind::Pages);
    if ours.clone().next().is_none() {
        return Vec::new();
    }
    let Some(mapped) = mapped(kernel, memory, pages, objects) else {
        log::warn!("page tables cannot be read: pages are not checked for leaks");
        return Vec::new();
    };
    let large: HashSet<u64> = of_kind(Kind::Large).map(|(a, _)| *a).collect();
    let starts: HashMap<u64, u64> = ours.clone().map(|(a, o)| (*a, o.sequence())).collect();
    let within =
        |addr: u64, object: &Object| (1..allocated.size(addr, object) / PAGE_SIZE).map(move |i| addr + i * PAGE_SIZE);
    // Pages that were freed and are now part of a larger, newer block.
    let gone: HashSet<u64> = ours
        .clone()
        .flat_map(|(addr, o)| within(*addr, o).filter(|a| starts.get(a).is_some_and(|&then| then < o.sequence())))
        .collect();
    let mut blocks = Vec::new();
    for &number in others {
        let (addr, object) = objects[number as usize];
        if object.kind() != Kind::Pages || gone.contains(&addr) {
            continue;
        }
        let Some(first) = pages.direct(VirtAddr(addr)).map(|p| p.pfn()) else { continue };
        // A block may be freed in part, or split and allocated again. This counts the pages that
        // are left.
        let is_ours = |i: u64| {
            matches!(pages.usage(first + i), Use::Kernel | Use::Zspage)
                && !mapped[(first + i) as usize]
                && (i == 0 || starts.get(&(addr + i * PAGE_SIZE)).is_none_or(|&then| then < object.sequence()))
        };
        let count = (0..allocated.size(addr, &object) / PAGE_SIZE).take_while(|&i| is_ours(i)).count() as u64;
        if count > 0 && !pages.is_tail(first) && !large.contains(&addr) {
            blocks.push(Block::of(addr, count * PAGE_SIZE, Kind::Pages, number as usize));
        }
    }
    blocks
}

/// Whether kmalloc() may have allocated a large object at an address. The page must be the first of
/// its block and used by the kernel itself. Drivers may have reserved it.
pub(crate) fn may_be_large(pages: &Pages, addr: u64) -> bool {
    let page = pages.direct(VirtAddr(addr)).map(|phys| phys.pfn());
    page.is_some_and(|pfn| matches!(pages.usage(pfn), Use::Kernel | Use::Reserved) && !pages.is_tail(pfn))
}

/// Whether page tables map a frame, indexed by frame number.
///
/// These are the kernel's page tables, and those of every address space (`struct mm_struct`). Some
/// address spaces belong to no process. Mappings of the direct map, the page descriptors and the
/// image do not count.
fn mapped<M: StoppedMemory>(
    kernel: &Kernel,
    memory: &M,
    pages: &Pages,
    objects: &[(u64, Object)],
) -> Option<Vec<bool>> {
    // The difference in mapping counts between a frame and the frame before it. One entry may map a
    // million frames, and there may be a million entries.
    let end = pages.end();
    let mut more = vec![0i64; end as usize + 1];
    let mut mark = |frames: std::ops::Range<u64>| {
        more[frames.start.min(end) as usize] += 1;
        more[frames.end.min(end) as usize] -= 1;
    };
    // Each table is used in one place. Processes share only the tables of huge pages.
    let mut read = vec![false; end as usize];
    let mut is_new = |frame: u64| read.get_mut(frame as usize).is_some_and(|read| !std::mem::replace(read, true));
    let maps = Maps::read(kernel, memory);
    let direct = maps.direct_map..maps.direct_map.saturating_add(pages.end() * PAGE_SIZE);
    let descriptors = pages.descriptor_range(0, pages.end());
    // The kernel frees parts of the image to the page allocator after boot. They stay mapped there.
    let image = kernel.symbol("_text")?.0..kernel.symbol("_end")?.0;
    let tables = kernel.page_tables(memory);
    let of_kernel = |at: VirtAddr| at.is_kernel();
    tables.frames(memory, of_kernel, &mut is_new, &mut |at, frames| {
        if at.is_none_or(|at| ![&direct, &descriptors, &image].iter().any(|r| r.contains(&at.0))) {
            mark(frames);
        }
    });
    let (cache, pgd) = (kernel.variable(memory, "mm_cachep")?, kernel.offset_of("mm_struct", "pgd")?);
    for (mm, _) in objects.iter().filter(|(_, o)| o.kind() == Kind::Slab) {
        if pages.slab_cache(memory, VirtAddr(*mm)) != Some(VirtAddr(cache)) {
            continue;
        }
        let root = kernel.read_u64(memory, VirtAddr(*mm).offset(pgd)).ok();
        if let Some(root) = root.and_then(|at| pages.direct(VirtAddr(at))) {
            let of_user = |at: VirtAddr| !at.is_kernel();
            PageTables { root, ..tables }.frames(memory, of_user, &mut is_new, &mut |_, frames| mark(frames));
        }
    }
    let mut mapped = 0;
    Some(
        more[..end as usize]
            .iter()
            .map(|more| {
                mapped += more;
                mapped > 0
            })
            .collect(),
    )
}
