//! Limits for calls that do not return, and for live objects. A corrupt or hostile guest can forge
//! any number of them, and must not exhaust the host's memory. A healthy guest does not come near
//! the limits.
//!
//! Limits are checked now and then, off the hot path. Other limits are elsewhere: return addresses
//! ([`return_watches`](super::return_watches)), stacks and names of tasks
//! ([`detector::stacks::MAX`], [`detector::comms::MAX`]), and modules
//! ([`modules`](super::modules)). Readings of clocks, tests, waiting markers and console lines have
//! limits too.

use super::pending::MAX_CALLS;
use super::tracker::Tracker;
use super::troubles::Trouble;
use crate::history::History;
use detector::{comms, stacks};

impl Tracker {
    /// Drops pending calls if there are too many.
    #[cold]
    pub(super) fn limit_calls(&self) {
        if self.calls.drop_oldest_half() {
            self.troubles.warn(&Trouble::Calls(MAX_CALLS));
        }
    }

    /// Checks whether there is room for more objects.
    #[cold]
    pub(super) fn limit_objects(&self) {
        for map in self.objects.maps() {
            map.look_for_room();
            if map.was_full() {
                self.troubles.warn(&Trouble::Objects(map.most()));
            }
        }
    }

    /// Reports limits that were reached elsewhere.
    pub fn report_limits(&self) {
        if self.unwinder.is_cut() {
            self.troubles.warn(&Trouble::Stacks(stacks::MAX));
        }
        if let Some(unrecorded @ 1..) = self.history.as_ref().map(History::unrecorded) {
            self.troubles.warn(&Trouble::Unrecorded(unrecorded));
        }
        if self.objects.are_comms_cut() {
            self.troubles.warn(&Trouble::Comms(comms::MAX));
        }
    }
}
