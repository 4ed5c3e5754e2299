//! The kernel's data structures, one kind at a time, in a guest that has corrupted them.

use crate::guest::{self, Budget, Guest};
use crate::input::Input;
use guest_symbols::free_pages;
use guest_symbols::memory::{PAGE_SIZE, StoppedMemory};
use guest_symbols::pages::{Maps, Pages, Use};
use guest_symbols::percpu::PerCpu;
use guest_symbols::{Kernel, slab, slab_walk, tasks as all_tasks, vmap as areas};
use std::cell::RefCell;

/// Most reads of one structure, about a hundred times those of the unmodified guest.
const READS: u64 = 20_000_000;
/// Most bytes in runs.
const BYTES: u64 = 4 << 30;

/// Passes the result of `read` from the corrupted guest to `hold`.
macro_rules! spoil {
    ($data:expr, $read:expr) => {{
        thread_local! { static GUEST: RefCell<Option<Guest>> = const { RefCell::new(None) } }
        let make = || Guest::new(|snapshot, memory| $read(snapshot.moment().kernel, memory));
        guest::with(&GUEST, make, |guest| {
            guest.spoilt(&mut Input($data), |guest| {
                $read(guest.kernel(), &Budget::new(guest.memory(), READS, BYTES));
            });
        });
    }};
}

/// Page descriptors, and lists of free pages.
pub fn pages(data: &[u8]) {
    spoil!(data, hold_pages)
}

fn hold_pages(kernel: &Kernel, memory: &impl StoppedMemory) {
    let Ok(pages) = Pages::read(kernel, memory) else { return };
    assert_eq!(pages.end(), memory.ranges().last().unwrap().end / PAGE_SIZE);
    let of_ram = |pfn: u64| memory.ranges().iter().any(|r| r.contains(&(pfn * PAGE_SIZE)));
    for pfn in 0..pages.end() {
        assert!(of_ram(pfn) || matches!(pages.usage(pfn), Use::Absent | Use::Table), "frame {pfn} is no RAM");
        assert_ne!(pages.usage(pfn), Use::Idle, "frame {pfn}");
    }
    assert_eq!(pages.usage(pages.end()), Use::Absent);
    let mut bytes = 0;
    for run in 0..pages.descriptor_runs() {
        pages.descriptors(memory, run, |pfn| pfn % 7 == 0, |_, words| bytes += words.len());
    }
    assert!(bytes <= pages.end() as usize * 256);
    for slab in pages.slabs() {
        assert!(pages.direct(slab.start).is_some_and(|at| pages.usage(at.pfn()) == Use::Slab));
        let _ = pages.slab_cache(memory, slab.start);
    }
    let size = kernel.btf.as_ref().and_then(|b| b.size_of("page")).unwrap_or(64);
    let vmemmap = Maps::read(kernel, memory).vmemmap.0;
    let frames = pages.end() as usize;
    let free = free_pages::on_cpu_lists(kernel, memory, frames, |page| page.0.wrapping_sub(vmemmap) / size);
    let (runs, _) = free.unwrap_or_default();
    assert!(runs.iter().all(|run| run.end - run.start <= 1 << 10));
    assert!(runs.len() <= frames, "more free pages than RAM");
}

/// Slab caches, their freelists and objects.
pub fn slabs(data: &[u8]) {
    spoil!(data, hold_slabs)
}

fn hold_slabs(kernel: &Kernel, memory: &impl StoppedMemory) {
    let caches = slab::caches(kernel, memory).unwrap_or_default();
    let mut unique = caches.clone();
    unique.sort_unstable();
    unique.dedup();
    assert_eq!(unique.len(), caches.len(), "a cache is there twice");
    let Ok(pages) = Pages::read(kernel, memory) else { return };
    let percpu = PerCpu::read(kernel, memory);
    let sheaves: Vec<_> = caches.iter().take(4).copied().collect();
    let Ok(found) = slab_walk::allocated(kernel, memory, &pages, &percpu, &sheaves) else { return };
    assert!(found.objects.is_sorted(), "objects are not in order");
    assert_eq!(found.caches.len(), found.cache_addresses.len());
    let ram: u64 = memory.ranges().iter().map(|r| r.end - r.start).sum();
    assert!(found.objects.len() as u64 <= ram / 8, "more objects than RAM has words");
    for (_, cache) in &found.objects {
        assert!(found.caches.get(*cache as usize).is_some());
    }
    for cache in &found.caches {
        assert!(cache.object_size <= cache.stride && cache.name.len() <= 64 * 3);
    }
}

/// Per-CPU memory.
pub fn percpu(data: &[u8]) {
    spoil!(data, hold_percpu)
}

fn hold_percpu(kernel: &Kernel, memory: &impl StoppedMemory) {
    let found = PerCpu::read(kernel, memory);
    assert!(found.offsets.len() <= 8192);
    assert!(found.dynamic.len() <= 1 << 20, "{} ranges", found.dynamic.len());
    assert!(found.dynamic.iter().all(|r| r.start < r.end));
    assert!(found.allocated.map_or(0, |a| a.len()) <= 1 << 24);
}

/// vmap areas.
pub fn vmap(data: &[u8]) {
    spoil!(data, hold_vmap)
}

fn hold_vmap(kernel: &Kernel, memory: &impl StoppedMemory) {
    let found = areas::areas(kernel, memory).unwrap_or_default();
    let mut places: Vec<_> = found.iter().map(|a| a.area).collect();
    places.sort_unstable();
    places.dedup();
    assert_eq!(places.len(), found.len(), "an area is there twice");
    for area in found.iter().take(1000) {
        let _ = area.caller(kernel, memory);
        assert!(area.block.is_none_or(|(at, _)| (area.start..area.end).contains(&at)));
    }
    assert!(areas::purged(kernel, memory).len() <= 1 << 20);
}

/// Tasks and their stacks.
pub fn tasks(data: &[u8]) {
    spoil!(data, hold_tasks)
}

fn hold_tasks(kernel: &Kernel, memory: &impl StoppedMemory) {
    let percpu = PerCpu::read(kernel, memory);
    let Ok(found) = all_tasks::read(kernel, memory, &percpu) else { return };
    // Each process occurs with its threads, including its leader. Each idle task occurs again by
    // its CPU.
    let ram: u64 = memory.ranges().iter().map(|r| r.end - r.start).sum();
    assert!((found.tasks.len() as u64) < ram / 64, "{} tasks", found.tasks.len());
    assert!(found.stacks.len() <= 3 * found.tasks.len() + 2 * percpu.offsets.len());
}
