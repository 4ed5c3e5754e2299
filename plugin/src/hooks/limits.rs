//! How much is kept of what a guest makes up: calls that do not return, live objects. A guest that
//! is as it should be comes nowhere near these; one that corrupts itself, or is hostile, must not
//! take the host's memory.
//!
//! Each is looked at where it grows or now and then, so nothing of it is on the hot path. What is
//! bounded elsewhere: addresses that calls return to ([`return_watches`](super::return_watches)),
//! stacks and names of tasks ([`detector::stacks::MAX`], [`detector::comms::MAX`]), modules
//! ([`modules`](super::modules)), readings of clocks and tests (there), markers and lines that wait
//! (where they wait).

use super::pending::MAX_CALLS;
use super::tracker::Tracker;
use super::troubles::Trouble;
use detector::{comms, stacks};

impl Tracker {
    /// Gives up calls that do not return, if there are too many.
    #[cold]
    pub(super) fn limit_calls(&self) {
        if self.calls.drop_oldest_half() {
            self.troubles.warn(&Trouble::Calls(MAX_CALLS));
        }
    }

    /// Looks whether there is room for more objects.
    #[cold]
    pub(super) fn limit_objects(&self) {
        for map in self.objects.maps() {
            map.look_for_room();
            if map.was_full() {
                self.troubles.warn(&Trouble::Objects(map.most()));
            }
        }
    }

    /// Enters limits that were reached elsewhere into the troubles.
    pub fn report_limits(&self) {
        if self.unwinder.is_cut() {
            self.troubles.warn(&Trouble::Stacks(stacks::MAX));
        }
        if self.objects.are_comms_cut() {
            self.troubles.warn(&Trouble::Comms(comms::MAX));
        }
    }
}
