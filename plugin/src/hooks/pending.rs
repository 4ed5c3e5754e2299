//! Calls of allocators that have not returned.

use super::AddressMap;
use crate::ffi::api::Flag;
use dashmap::DashMap;
use parking_lot::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

/// Most calls in progress: each is of a task that sleeps in it, or of an interrupt.
pub(super) const MAX_CALLS: usize = 1 << 16;
/// Room for calls from the start.
const CAPACITY: usize = 1 << 12;

/// A call in progress.
#[derive(Debug, Clone, Copy)]
pub(super) struct PendingCall {
    /// Number of the hook.
    pub hook: u32,
    /// Its return address is watched only while the flag is up.
    pub armed: bool,
    /// Its return address was not watched when it was last translated. It is still seen if it is
    /// translated again first, as it is where another module's code was before.
    pub doubtful: bool,
    /// Virtual address that it returns to.
    pub ret: u64,
    /// The number of the next object when the function was entered.
    pub sequence: u64,
    /// Bytes, or for bulk allocations how many objects.
    pub size: u64,
    /// Virtual address of the array of a bulk allocation.
    pub array: u64,
}

/// Events that should not happen, counted.
#[derive(Debug, Default)]
pub struct MissedEvents {
    /// Calls whose return was not seen, because another call came to use the same stack slot.
    pub unmatched_returns: AtomicU64,
    /// Calls that return, or have returned, where nothing watches.
    pub unwatched_returns: AtomicU64,
    /// Stacks or arrays that could not be read.
    pub unreadable: AtomicU64,
}

/// Calls in progress by the stack slot of their return address, and the flag that conditional
/// watches test: it is up while one of the calls is armed.
pub struct PendingCalls {
    calls: AddressMap<PendingCall>,
    /// How many of them are armed.
    armed: Mutex<u64>,
    flag: Flag,
    /// What went wrong.
    pub missed: MissedEvents,
}

impl PendingCalls {
    /// None. The flag is down: calls of an earlier kernel may never have returned.
    pub fn new() -> PendingCalls {
        let flag = Flag::get();
        flag.set(0);
        PendingCalls {
            calls: DashMap::with_capacity_and_hasher(CAPACITY, Default::default()),
            armed: Mutex::new(0),
            flag,
            missed: MissedEvents::default(),
        }
    }

    /// The flag that conditional watches test.
    pub fn flag(&self) -> Flag {
        self.flag
    }

    /// Calls that have not returned.
    pub fn len(&self) -> usize {
        self.calls.len()
    }

    /// Enters a call whose return address stands at virtual address `slot`. Returns the call that
    /// was in its place.
    pub(super) fn insert(&self, slot: u64, call: PendingCall) -> Option<PendingCall> {
        let old = self.calls.insert(slot, call);
        if call.armed {
            self.arm(1);
        }
        if old.is_some_and(|old| old.armed) {
            self.arm(-1);
        }
        old
    }

    /// Takes the call out that returns to `ret` by the return address at `slot`.
    pub(super) fn take(&self, slot: u64, ret: u64) -> Option<PendingCall> {
        let (_, call) = self.calls.remove_if(&slot, |_, call| call.ret == ret)?;
        if call.armed {
            self.arm(-1);
        }
        Some(call)
    }

    /// Gives up calls that do not return, if there are too many: the half that was entered first.
    /// Returns whether there were too many.
    #[cold]
    pub(super) fn drop_oldest_half(&self) -> bool {
        if self.calls.len() <= MAX_CALLS {
            return false;
        }
        let mut entered: Vec<u64> = self.calls.iter().map(|call| call.sequence).collect();
        let (_, middle, _) = entered.select_nth_unstable(MAX_CALLS / 2);
        let last = *middle;
        let dropped = self.drop_if(|call| call.sequence <= last);
        self.missed.unmatched_returns.fetch_add(dropped, Ordering::Relaxed);
        true
    }

    /// Forgets all calls: the guest is in another time.
    pub(super) fn clear(&self) {
        self.drop_if(|_| true);
    }

    /// Takes calls out. Returns how many.
    fn drop_if(&self, goes: impl Fn(&PendingCall) -> bool) -> u64 {
        let (mut dropped, mut armed) = (0, 0);
        self.calls.retain(|_, call| {
            let goes = goes(call);
            dropped += u64::from(goes);
            armed += i64::from(goes && call.armed);
            !goes
        });
        self.arm(-armed);
        dropped
    }

    /// Raises or lowers the flag where the number of armed calls comes from or to 0.
    fn arm(&self, by: i64) {
        let mut armed = self.armed.lock();
        let before = *armed;
        *armed = before.saturating_add_signed(by);
        if (before == 0) != (*armed == 0) {
            self.flag.set((*armed != 0).into());
        }
    }

    /// Shows the flag to a vCPU that has just come, whose flag is down.
    pub fn show_flag(&self) {
        let armed = self.armed.lock();
        self.flag.set((*armed != 0).into());
    }
}
