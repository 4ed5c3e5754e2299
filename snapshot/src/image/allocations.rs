//! The allocations that the kernel itself recorded, as the live map that the plugin would have.

use detector::clock::Reading;
use detector::comms::{Comm, CommId};
use detector::frozen::Objects;
use detector::objects::{Allocation, Kind, Object};
use detector::stacks::{StackId, Stacks};
use guest_symbols::Kernel;
use guest_symbols::memory::StoppedMemory;
use guest_symbols::pages::Pages;
use guest_symbols::percpu::PerCpu;
use guest_symbols::slab::{self, Cache};
use guest_symbols::slab_tracks::{Track, Tracks};
use guest_symbols::{sheaves, slab_walk};
use std::collections::{HashMap, HashSet};

/// Functions that run before init starts, in a task that is still called swapper (init/main.c).
const AT_BOOT: [&str; 2] = ["start_kernel", "kernel_init_freeable"];
/// The name of that task.
const SWAPPER: &[u8] = b"swapper/0";
/// The number of its name.
const BOOT: CommId = CommId(1);
/// Allocators whose address stands before the caller, if the record does not name any. The caches
/// of kmalloc() have the first, others the second.
const ALLOCATORS: [[&str; 3]; 2] = [
    ["__kmalloc_noprof", "__kmalloc", "__do_kmalloc_node"],
    ["kmem_cache_alloc_noprof", "kmem_cache_alloc", "kmem_cache_alloc_node"],
];
/// The prefix of the names of kmalloc()'s caches.
const KMALLOC: &str = "kmalloc-";
/// Seconds before the clock of jiffies overflows its low half at boot (INITIAL_JIFFIES,
/// include/linux/jiffies.h).
const BEFORE_OVERFLOW: u64 = 300;
/// Most ticks a second.
const MAX_HZ: u64 = 10_000;

/// Allocations and their stacks.
#[derive(Default)]
pub(crate) struct Recorded {
    pub objects: Objects,
    pub stacks: Stacks,
    /// Milliseconds that the guest has run.
    pub millis: u64,
}

/// Reads the records of all live slab objects.
pub(crate) fn read(kernel: &Kernel, memory: &impl StoppedMemory) -> Recorded {
    let found = || {
        let tracks = Tracks::of(kernel, memory)?;
        let pages = Pages::read(kernel, memory).ok()?;
        let percpu = PerCpu::read(kernel, memory);
        let sheaves = sheaves::all(kernel, memory, &percpu);
        let allocated = slab_walk::allocated(kernel, memory, &pages, &percpu, &sheaves).ok()?;
        let mut found = Vec::new();
        for &(object, cache) in &allocated.objects {
            let at = allocated.cache_addresses[cache as usize];
            found.extend(tracks.read(kernel, memory, at, object).map(|track| (object, cache, track)));
        }
        // The caches' names tell which allocator it was.
        let is_kmalloc = allocated.caches.iter().map(|cache| cache.name.starts_with(KMALLOC)).collect();
        Some((tracks, found, is_kmalloc))
    };
    let clock = Clock::read(kernel, memory);
    match found() {
        Some((tracks, found, is_kmalloc)) => convert(kernel, memory, &tracks, found, is_kmalloc, &clock),
        None => Recorded { millis: clock.now.millis, ..Recorded::default() },
    }
}

fn convert(
    kernel: &Kernel,
    memory: &impl StoppedMemory,
    tracks: &Tracks,
    found: Vec<(u64, u32, Track)>,
    is_kmalloc: Vec<bool>,
    clock: &Clock,
) -> Recorded {
    let stacks = Stacks::default();
    // Each stack is read once.
    let mut known: HashMap<(u64, u64, bool), (StackId, bool)> = HashMap::new();
    let mut order: Vec<usize> = (0..found.len()).collect();
    order.sort_by_key(|&i| found[i].2.jiffies);
    let mut list: Vec<(u64, Object)> = Vec::with_capacity(found.len());
    for (sequence, i) in (1..).zip(order) {
        let (addr, cache, track) = &found[i];
        let is_kmalloc = is_kmalloc.get(*cache as usize) == Some(&true);
        let (stack, at_boot) = *known.entry((track.stack, track.caller, is_kmalloc)).or_insert_with(|| {
            let frames = tracks.frames(kernel, memory, track).unwrap_or_default();
            let name = |at| kernel.symbols.resolve(at).map(|r| r.name);
            let at_boot = frames.iter().any(|&at| name(at).is_some_and(|name| AT_BOOT.contains(&name)));
            (stacks.intern(&from_allocator(kernel, frames, track.caller, is_kmalloc)), at_boot)
        });
        let comm = if at_boot { BOOT } else { CommId::default() };
        let (jiffies, pid, cpu) = (track.jiffies, track.pid, track.cpu);
        let object = Allocation { kind: Kind::Slab, stack, sequence, jiffies, pid, tgid: 0, cpu, comm };
        list.push((*addr, Object::from(object)));
    }
    list.sort_unstable_by_key(|(addr, _)| *addr);
    let mut swapper = Comm::default();
    swapper[..SWAPPER.len()].copy_from_slice(SWAPPER);
    let objects = Objects::from_parts(list, [], vec![swapper], clock.readings());
    Recorded { objects, stacks, millis: clock.now.millis }
}

/// The frames from the allocator on, as the plugin has them: first the allocator's address, then
/// its caller. The kernel's records start at another frame of the allocator in each version.
fn from_allocator(kernel: &Kernel, mut frames: Vec<u64>, caller: u64, is_kmalloc: bool) -> Vec<u64> {
    let start = |at: u64| kernel.symbols.resolve(at).map(|r| at - r.offset);
    let from = frames.iter().position(|&at| at == caller);
    let inside = from.and_then(|from| start(*frames.get(from.checked_sub(1)?)?));
    let usual = || ALLOCATORS[usize::from(!is_kmalloc)].iter().find_map(|name| kernel.symbol(name)).map(|at| at.0);
    let allocator = inside.or_else(usual).unwrap_or(caller);
    match from {
        Some(from) => drop(frames.drain(..from)),
        None => frames = vec![caller],
    }
    frames.insert(0, allocator);
    frames
}

/// The kernel's clock of jiffies.
struct Clock {
    now: Reading,
    /// Jiffies at boot.
    start: u64,
}

impl Clock {
    /// Reads the clock. Its rate is the number of TSC ticks in a second by those in a jiffy
    /// (tsc_init(), arch/x86/kernel/tsc.c). All times are 0 if it is not known.
    fn read(kernel: &Kernel, memory: &impl StoppedMemory) -> Clock {
        let jiffies = kernel.symbol("jiffies_64").or_else(|| kernel.symbol("jiffies"));
        let jiffies = jiffies.and_then(|at| kernel.read_u64(memory, at).ok()).unwrap_or(0);
        let hz = || {
            let khz = kernel.variable(memory, "tsc_khz")? & 0xffff_ffff;
            let each = kernel.variable(memory, "loops_per_jiffy").filter(|each| *each != 0)?;
            Some((khz * 1000 + each / 2) / each).filter(|hz| (1..=MAX_HZ).contains(hz))
        };
        let hz = hz().unwrap_or(0);
        let start = (1u64 << 32) - BEFORE_OVERFLOW * hz;
        let millis = jiffies.checked_sub(start).filter(|_| hz > 0).map_or(0, |ticks| ticks.saturating_mul(1000) / hz);
        Clock { now: Reading { jiffies, millis }, start }
    }

    /// The readings at boot and now.
    fn readings(&self) -> Vec<Reading> {
        let boot = Reading { jiffies: self.start, millis: 0 };
        let boot = Some(boot).filter(|boot| boot.jiffies < self.now.jiffies);
        boot.into_iter().chain([self.now]).collect()
    }
}

/// The names of the caches that keep records.
pub(crate) fn caches(kernel: &Kernel, memory: &impl StoppedMemory) -> HashSet<String> {
    let Some(tracks) = Tracks::of(kernel, memory) else { return HashSet::new() };
    let caches = slab::caches(kernel, memory).unwrap_or_default().into_iter().filter(|at| tracks.has(*at));
    caches.filter_map(|at| Some(Cache::read(kernel, memory, at)?.name)).collect()
}
