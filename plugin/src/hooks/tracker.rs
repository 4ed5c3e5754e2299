//! A tracked kernel. Each part owns its state. Methods that need several parts are here and in
//! [`calls`](super::calls), [`allocations`](super::allocations), [`loaded`](super::loaded),
//! [`attach`](super::attach), [`limits`](super::limits) and
//! [`memory_budget`](super::memory_budget).

use super::callsite::CallSites;
use super::guest::Guest;
use super::guest_time::GuestTime;
use super::modules::Modules;
use super::objects::{LiveObjects, default_most};
use super::pending::PendingCalls;
use super::resolved::{self, HookSet, Wanted};
use super::return_watches::ReturnWatches;
use super::troubles::Troubles;
use super::unwinder::Unwinder;
use crate::diagnostics;
use crate::ffi::witness::GuestStopped;
use crate::history::History;
use detector::clock::Reading;
use detector::frozen::Objects;
use detector::guest_tests::Tests;
use parking_lot::Mutex;

/// How much is kept of objects.
#[derive(Debug, Clone, Copy)]
pub struct Kept {
    /// Most frames of each stack.
    pub frames: usize,
    /// Most live objects, if the user has set a limit.
    pub objects: Option<usize>,
    /// The history of references.
    pub history: bool,
}

/// The history of references, if it is wanted.
fn history(guest: &Guest, kept: Kept) -> Option<History> {
    let history = kept.history.then(|| History::new(&guest.kernel, &guest.ram))?;
    history.map_err(|why| diagnostics::warning(&why.to_string())).ok()
}

/// A tracked kernel.
pub struct Tracker {
    /// The kernel itself.
    pub guest: Guest,
    /// Live objects.
    pub objects: LiveObjects,
    /// The history of references, for `history=on`.
    pub history: Option<History>,
    /// The guest's time.
    pub time: GuestTime,
    /// Unwinds allocation stacks, and keeps them.
    pub unwinder: Unwinder,
    /// Modules as they were loaded.
    pub modules: Modules,
    /// Hooked functions.
    pub hooks: HookSet,
    /// Which functions the kernel's call instructions call.
    pub(super) sites: CallSites,
    /// How return addresses are watched.
    pub(super) watches: ReturnWatches,
    /// Calls of allocators that have not returned.
    pub calls: PendingCalls,
    /// The tests that the guest runs.
    pub tests: Mutex<Tests>,
    /// Reasons not to trust reports.
    pub troubles: Troubles,
}

impl Tracker {
    /// Chooses hooks for the kernel. Also returns the families of allocators of which the kernel
    /// has none.
    pub fn new(guest: Guest, wanted: Wanted, kept: Kept, stopped: &GuestStopped) -> (Tracker, Vec<&'static str>) {
        let memory = guest.ram.stopped(stopped);
        let (hooks, missing) = resolved::choose(&guest.kernel, &memory, wanted);
        let descriptor = guest.kernel.btf.as_ref().and_then(|b| b.size_of("page")).filter(|_| wanted.pages);
        let allocators: Vec<u64> = hooks.iter().filter(|h| h.action.allocates()).map(|h| h.addr).collect();
        let tracker = Tracker {
            objects: LiveObjects::new(kept.objects.unwrap_or_else(|| default_most(&guest.ram)), descriptor),
            history: history(&guest, kept),
            time: GuestTime::new(),
            unwinder: Unwinder::new(&guest.kernel, &memory, kept.frames),
            modules: Modules::new(),
            hooks: HookSet::new(hooks),
            sites: CallSites::of_kernel(&guest.kernel, &memory, &allocators),
            watches: ReturnWatches::default(),
            calls: PendingCalls::new(),
            tests: Mutex::default(),
            troubles: Troubles::default(),
            guest,
        };
        (tracker, missing)
    }

    /// A copy of the live objects, with the current time.
    pub fn copy_objects(&self) -> Objects {
        let jiffies = self.time.latest(self.guest.jiffies());
        self.objects.copy(self.time.clock(), Reading { jiffies, millis: self.time.millis() })
    }
}
