//! Calls of allocators that have not returned yet.

use super::AddressMap;
use crate::ffi::api::Flag;
use dashmap::DashMap;
use parking_lot::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

/// Most pending calls. Each belongs to a task that sleeps in the allocator, or to an interrupt.
pub(super) const MAX_CALLS: usize = 1 << 16;
/// Initial capacity of the map.
const CAPACITY: usize = 1 << 12;

/// A pending call.
#[derive(Debug, Clone, Copy)]
pub(super) struct PendingCall {
    /// Number of the hook.
    pub hook: u32,
    /// Its return address is watched only while the flag is set.
    pub armed: bool,
    /// Its return address was translated without a watch. The return is seen only if the code is
    /// translated again before.
    pub doubtful: bool,
    /// Return address.
    pub ret: u64,
    /// Sequence number of the next object when the function was entered.
    pub sequence: u64,
    /// Size in bytes, or for bulk allocations the number of objects.
    pub size: u64,
    /// Virtual address of the array of a bulk allocation.
    pub array: u64,
}

/// Numbers of events that could not be tracked.
#[derive(Debug, Default)]
pub struct MissedEvents {
    /// Calls whose return was not seen before another call used the same stack slot.
    pub unmatched_returns: AtomicU64,
    /// Calls whose return address is not watched.
    pub unwatched_returns: AtomicU64,
    /// Stacks or arrays that could not be read.
    pub unreadable: AtomicU64,
}

/// Pending calls by the stack slot of their return address, and the flag that conditional watches
/// test. The flag is set while any of the calls is armed.
pub struct PendingCalls {
    calls: AddressMap<PendingCall>,
    /// How many of them are armed.
    armed: Mutex<u64>,
    flag: Flag,
    /// Events that could not be tracked.
    pub missed: MissedEvents,
}

impl PendingCalls {
    /// No calls. This clears the flag: calls of an earlier kernel may never have returned.
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

    /// The number of pending calls.
    pub fn len(&self) -> usize {
        self.calls.len()
    }

    /// Enters a call whose return address is at virtual address `slot`. Returns an earlier call
    /// with the same slot.
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

    /// Removes the call with that slot, if it returns to virtual address `ret`.
    pub(super) fn take(&self, slot: u64, ret: u64) -> Option<PendingCall> {
        let (_, call) = self.calls.remove_if(&slot, |_, call| call.ret == ret)?;
        if call.armed {
            self.arm(-1);
        }
        Some(call)
    }

    /// If there are too many calls, drops the half that was entered first. Returns whether there
    /// were too many.
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

    /// A copy of all calls, each with its slot.
    pub(super) fn copy(&self) -> Vec<(u64, PendingCall)> {
        self.calls.iter().map(|call| (*call.key(), *call.value())).collect()
    }

    /// Drops all calls, and enters those of a copy.
    pub(super) fn put_back(&self, calls: Vec<(u64, PendingCall)>) {
        self.clear();
        calls.into_iter().for_each(|(slot, call)| _ = self.insert(slot, call));
    }

    /// Drops all calls: the guest is in another time.
    pub(super) fn clear(&self) {
        self.drop_if(|_| true);
    }

    /// Drops calls. Returns how many.
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

    /// Changes the number of armed calls, and sets or clears the flag if that number was or becomes
    /// 0.
    fn arm(&self, by: i64) {
        let mut armed = self.armed.lock();
        let before = *armed;
        *armed = before.saturating_add_signed(by);
        if (before == 0) != (*armed == 0) {
            self.flag.set((*armed != 0).into());
        }
    }

    /// Sets the flag of all vCPUs again, for a vCPU that was just added.
    pub fn show_flag(&self) {
        let armed = self.armed.lock();
        self.flag.set((*armed != 0).into());
    }
}
