//! How much is kept of what a guest makes up: calls that do not return, live objects. A
//! guest that is as it should be comes nowhere near these; one that corrupts itself, or is hostile, must not take the host's memory.
//!
//! Each is looked at where it grows or now and then, so nothing of it is on the hot path. What is bounded elsewhere: addresses that calls return to
//! ([`return_watches`](super::return_watches)), stacks and names of tasks
//! ([`detector::stacks::MAX`], [`detector::comms::MAX`]), modules ([`loaded`](super::loaded)), readings of clocks and tests (there), markers and lines that wait
//! ([`marker`](crate::triggers::marker), [`console`](crate::triggers::console)).

use super::tracker::Tracker;
use crate::diagnostics;
use crate::ffi::ram::Ram;
use crate::hooks::troubles::Trouble;
use detector::{comms, stacks};
use guest_symbols::memory::GuestMemory;
use std::sync::atomic::Ordering;

/// Calls of allocators in progress: each is of a task that sleeps in it, or of an interrupt.
const MAX_CALLS: usize = 1 << 16;
/// Bytes of RAM for each live object, unless the user says how many there may be. The least slab objects have 8, and of these
/// alone no guest is made: 300 is what one has on average.
const BYTES_AN_OBJECT: u64 = 16;

/// Most live objects.
pub(super) fn default_objects(ram: &Ram) -> usize {
    let bytes: u64 = ram.ranges().iter().map(|r| r.end - r.start).sum();
    usize::try_from(bytes / BYTES_AN_OBJECT).unwrap_or(usize::MAX)
}

impl Tracker {
    /// Enters a trouble, and says it on stderr the first time.
    pub(super) fn trouble(&self, trouble: &Trouble) {
        if self.troubles.enter(trouble) {
            diagnostics::warning(&trouble.to_string());
        }
    }

    /// Gives up calls that do not return, if there are too many: the half that was entered first.
    #[cold]
    pub(super) fn bound_calls(&self) {
        if self.pending.len() <= MAX_CALLS {
            return;
        }
        let mut entered: Vec<u64> = self.pending.iter().map(|p| p.sequence).collect();
        let (_, middle, _) = entered.select_nth_unstable(MAX_CALLS / 2);
        let last = *middle;
        let (mut given_up, mut armed) = (0, 0);
        self.pending.retain(|_, p| {
            let goes = p.sequence <= last;
            given_up += u64::from(goes);
            armed += i64::from(goes && p.armed);
            !goes
        });
        self.arm(-armed);
        self.doubts.unmatched_returns.fetch_add(given_up, Ordering::Relaxed);
        self.trouble(&Trouble::Calls(MAX_CALLS));
    }

    /// Looks whether there is room for more objects.
    #[cold]
    pub(super) fn bound_objects(&self) {
        for map in [&self.live].into_iter().chain(self.pages.as_ref().map(|p| &p.map)) {
            map.look_for_room();
            if map.was_full() {
                self.trouble(&Trouble::Objects(map.most()));
            }
        }
    }

    /// Enters what is bounded elsewhere into the troubles.
    pub fn tell_of_bounds(&self) {
        if self.stacks.is_cut() || self.parts.is_cut() {
            self.trouble(&Trouble::Stacks(stacks::MAX));
        }
        if self.comms.is_cut() {
            self.trouble(&Trouble::Comms(comms::MAX));
        }
    }
}
