//! Everything that is known of a guest whose kernel has been found: what is watched, what is live, and where things are.

use super::allocations::RECENT_VFREES;
use super::attach::Print;
use super::callsite::CallSites;
use super::code::Code;
use super::context::Context;
use super::guest_text::GuestText;
use super::limits;
use super::loaded;
use super::resolved::{self, Hook, Wanted};
use super::return_watches::Watches;
use super::table::LATER;
use super::unwinder::Times;
use crate::ffi::api::Flag;
use crate::ffi::ram::Ram;
use crate::ffi::witness::GuestStopped;
use crate::hooks::troubles::Troubles;
use dashmap::DashMap;
use detector::clock::Clock;
use detector::comms::Comms;
use detector::frozen::Objects;
use detector::guest_tests::Tests;
use detector::objects::{AddressHasher, Kind, LiveMap};
use detector::stacks::Stacks;
use guest_symbols::Kernel;
use guest_symbols::memory::{StoppedMemory, VirtAddr};
use guest_symbols::modules::Module;
use parking_lot::Mutex;
use std::collections::{HashMap, VecDeque};
use std::hash::BuildHasherDefault;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, AtomicUsize, Ordering};
use std::time::Instant;

pub(super) type AddressMap<V> = DashMap<u64, V, BuildHasherDefault<AddressHasher>>;

/// Room for live objects from the start. More is made as it is needed: the denser the table, the more of it is in caches.
const LIVE_CAPACITY: usize = 1 << 12;

/// A call in progress.
#[derive(Clone, Copy)]
pub(super) struct Pending {
    pub(super) hook: u32,
    /// Its return address is watched only while the flag is up.
    pub(super) armed: bool,
    /// Its return address was not watched when it was last translated. It is still seen if it is translated
    /// again first, as it is where another module's code was before.
    pub(super) doubtful: bool,
    pub(super) ret: u64,
    /// The number of the next object when the function was entered.
    pub(super) sequence: u64,
    /// Size, or count.
    pub(super) size: u64,
    pub(super) array: u64,
}

/// Pages as they were given out.
pub struct Pages {
    /// By address in the direct map.
    pub map: LiveMap,
    /// Bytes of a page descriptor.
    pub(super) descriptor: u64,
}

/// Events that should not happen, counted.
#[derive(Debug, Default)]
pub struct Doubts {
    /// Calls whose return was not seen, because another call came to use the same stack slot.
    pub unmatched_returns: AtomicU64,
    /// Calls that return, or have returned, where nothing watches.
    pub unwatched_returns: AtomicU64,
    /// Stacks or arrays that could not be read.
    pub unreadable: AtomicU64,
}

/// How much is kept.
#[derive(Debug, Clone, Copy)]
pub struct Kept {
    /// Frames of each stack.
    pub frames: usize,
    /// Live objects, if the user has said.
    pub objects: Option<usize>,
}

/// What was seen of a hook.
#[derive(Debug, Default)]
pub struct Seen {
    /// It was entered.
    pub hit: AtomicBool,
    /// It returned what another inside had allocated.
    pub(super) wraps: AtomicBool,
}

/// Everything that is known of a guest whose kernel has been found.
pub struct Tracker {
    /// The kernel.
    pub kernel: Kernel,
    /// That of what it was found by ([`Kernel::checksum`]).
    pub checksum: u32,
    /// Its RAM.
    pub ram: Ram,
    /// Live objects.
    pub live: LiveMap,
    /// With `pages=on`, pages as they were given out last; those that were given back are among them.
    pub pages: Option<Pages>,
    /// Allocation stacks.
    pub stacks: Stacks,
    /// Names of tasks.
    pub(super) comms: Comms,
    /// The guest's time and the host's.
    pub(super) clock: Clock,
    /// Parts of stacks, from the allocator to a frame pointer, for walks that are known.
    pub(super) parts: Stacks,
    /// The tests that the guest runs.
    pub tests: Mutex<Tests>,
    /// Where text of the guest is found.
    pub text: GuestText,
    /// What went wrong.
    pub doubts: Doubts,
    /// What speaks against its reports.
    pub troubles: Troubles,
    /// Modules as they were loaded, each with the sequence number of that moment.
    pub(super) modules: Mutex<Vec<(u64, Arc<Module>)>>,
    /// Bytes of them from which on those that are needed no more are looked for.
    pub(super) many_modules: AtomicUsize,
    /// Functions watched, and what was seen of each.
    pub hooks: Vec<(Hook, Seen)>,
    pub(super) entries: HashMap<u64, u32>,
    pub(super) entry_range: std::ops::RangeInclusive<u64>,
    pub(super) sites: CallSites,
    pub(crate) context: Context,
    pub(super) code: Code,
    /// How long unwinding takes, if somebody wants to know.
    pub times: Option<Times>,
    /// Frames kept of each stack.
    pub(super) frames: usize,
    pub(super) pending: AddressMap<Pending>,
    pub(super) watches: Watches,
    pub(super) armed: Mutex<u64>,
    /// The address of [`PORT`] in a module; 0 for none.
    pub(super) port: AtomicU64,
    pub(super) flag: Flag,
    pub(super) sequence: AtomicU64,
    pub(super) vfreed: Mutex<VecDeque<u64>>,
    start: Instant,
    /// Virtual range of the kernel's image.
    pub(super) image: std::ops::Range<u64>,
    /// Which kernel of this QEMU it is, counted from 1.
    pub boot: u64,
    /// The kernel is gone.
    retired: AtomicBool,
    /// Another kernel runs, and QEMU does not tell of resets.
    pub(super) replaced: AtomicBool,
    /// The latest jiffies seen: they go back only when a kernel starts again or a snapshot is loaded.
    pub(super) jiffies: AtomicU64,
    pub(super) rewinds: AtomicU64,
    /// What tells it from another; none where it cannot be read.
    pub(super) print: Option<Print>,
    /// Nothing new is entered any more: see [`super::memory`].
    pub(super) closed: AtomicBool,
    /// Since then, allocations less frees.
    pub(super) unentered: AtomicI64,
}

impl Tracker {
    /// Chooses hooks for the kernel. `boot` is how many kernels this QEMU has started by now, and `sequence` the number of the next
    /// object.
    ///
    /// Gives also the families of functions that the kernel has none of.
    pub fn new(
        kernel: Kernel,
        ram: Ram,
        wanted: Wanted,
        kept: Kept,
        boot: u64,
        stopped: &GuestStopped,
    ) -> (Tracker, Vec<&'static str>) {
        let (hooks, missing) = resolved::choose(&kernel, wanted);
        let descriptor = kernel.btf.as_ref().and_then(|b| b.size_of("page")).filter(|_| wanted.pages);
        let (sites, code, checksum) = {
            let memory = ram.stopped(stopped);
            (analyse_calls(&kernel, &memory, &hooks), Code::new(&kernel, &memory), kernel.checksum(&memory))
        };
        let addresses = hooks.iter().map(|h| h.addr).filter(|&addr| addr != LATER);
        let low = addresses.clone().min().unwrap_or(u64::MAX);
        let high = addresses.max().unwrap_or(0);
        let most = kept.objects.unwrap_or_else(|| limits::default_objects(&ram));
        let map = || LiveMap::with_capacity(LIVE_CAPACITY).with_most(most);
        let tracker = Tracker {
            entries: hooks.iter().enumerate().map(|(i, h)| (h.addr, i as u32)).collect(),
            entry_range: low..=high,
            context: Context::new(&kernel),
            checksum,
            code,
            times: log::log_enabled!(log::Level::Info).then(Times::default),
            frames: kept.frames,
            image: kernel.symbols.lookup("_text").unwrap_or(0)..kernel.symbols.lookup("_end").unwrap_or(u64::MAX),
            tests: Mutex::default(),
            text: GuestText::new(&kernel),
            boot,
            retired: AtomicBool::new(false),
            replaced: AtomicBool::new(false),
            jiffies: AtomicU64::new(0),
            rewinds: AtomicU64::new(0),
            print: Print::of(&kernel, &ram),
            closed: AtomicBool::new(false),
            unentered: AtomicI64::new(0),
            kernel,
            ram,
            live: map(),
            pages: descriptor.map(|descriptor| Pages { map: map(), descriptor }),
            stacks: Stacks::default(),
            parts: Stacks::default(),
            comms: Comms::default(),
            clock: Clock::default(),
            doubts: Doubts::default(),
            troubles: Troubles::default(),
            modules: Mutex::default(),
            many_modules: AtomicUsize::new(loaded::MANY_BYTES),
            hooks: hooks.into_iter().map(|h| (h, Seen::default())).collect(),
            sites,
            pending: DashMap::with_capacity_and_hasher(4096, Default::default()),
            watches: Watches::default(),
            armed: Mutex::new(0),
            port: AtomicU64::new(0),
            flag: Flag::get(),
            sequence: AtomicU64::new(1),
            vfreed: Mutex::new(VecDeque::with_capacity(RECENT_VFREES)),
            start: Instant::now(),
        };
        // Calls of the kernel before may never have returned.
        tracker.flag.set(0);
        (tracker, missing)
    }

    /// Every live object, ascending by address; with `pages=on`, pages too, at whose address there may be an object as well.
    pub fn objects(&self) -> Objects {
        let maps: Vec<&LiveMap> = [&self.live].into_iter().chain(self.pages.as_ref().map(|p| &p.map)).collect();
        let jiffies = self.jiffies.load(Ordering::Relaxed).max(self.context.jiffies(&self.ram));
        Objects::of(&maps, &self.comms, &self.clock, (jiffies, self.millis()))
    }

    /// Modules as they were loaded until now, each with the sequence number of that moment. They are lent to nobody: the
    /// guest loads more meanwhile.
    pub fn modules(&self) -> Vec<(u64, Arc<Module>)> {
        self.modules.lock().clone()
    }

    /// Remembers that an object was reported.
    pub fn set_reported(&self, addr: u64, kind: Kind) {
        match (kind, &self.pages) {
            (Kind::Pages, Some(pages)) => pages.map.set_reported(addr),
            _ => self.live.set_reported(addr),
        }
    }

    /// Milliseconds of host time since tracking began.
    pub fn millis(&self) -> u64 {
        self.start.elapsed().as_millis() as u64
    }

    /// Whether the kernel is gone: nothing that is known holds any more. To be asked while the vCPUs stand still.
    pub fn is_retired(&self) -> bool {
        self.retired.load(Ordering::Acquire)
    }

    /// Whether the kernel is gone although nobody said so.
    pub fn is_replaced(&self) -> bool {
        self.replaced.load(Ordering::Relaxed)
    }

    /// What callbacks are told of besides: of another kernel's code they may still be there.
    #[inline]
    pub(super) fn tag(&self) -> u16 {
        self.boot as u16
    }

    /// The kernel is gone.
    pub(super) fn retire(&self) {
        self.retired.store(true, Ordering::Release);
    }

    /// How often the guest was brought to another time, or came from elsewhere.
    pub fn rewinds(&self) -> u64 {
        self.rewinds.load(Ordering::Relaxed)
    }

    /// The sequence number that comes next: every object that is live now has a lesser one.
    pub fn sequence(&self) -> u64 {
        self.sequence.load(Ordering::Relaxed)
    }

    /// Calls that have not returned.
    pub fn pending(&self) -> usize {
        self.pending.len()
    }
}
fn analyse_calls(kernel: &Kernel, memory: &impl StoppedMemory, hooks: &[Hook]) -> CallSites {
    let text = kernel.symbols.lookup("_stext").unwrap_or(0)..kernel.symbols.lookup("_etext").unwrap_or(0);
    let functions: Vec<u64> = kernel
        .symbols
        .iter()
        .filter(|s| matches!(s.kind, b't' | b'T' | b'W' | b'w') && text.contains(&s.addr))
        .map(|s| s.addr)
        .collect();
    let is_trampoline = |name: &str| name.starts_with("__x86_indirect_") || name.starts_with("__SCT__");
    let trampolines: Vec<u64> = kernel.symbols.iter().filter(|s| is_trampoline(s.name)).map(|s| s.addr).collect();
    let allocators: Vec<u64> = hooks.iter().filter(|h| h.action.allocates()).map(|h| h.addr).collect();
    let bytes = memory.run(kernel.image_phys(VirtAddr(text.start)), text.end.saturating_sub(text.start) as usize);
    CallSites::new(bytes, text, &functions, &allocators, &trampolines)
}
