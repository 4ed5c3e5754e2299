//! What the live map may take of the host's memory.
//!
//! Its tables double, and Rust would end QEMU where that fails. So room is looked at every so many
//! allocations, before a table is full, and where there is none the map is closed: nothing new is
//! entered from then on, and frees, which need no memory, are still seen. What is not entered is
//! known by the kernel's own books alone, so it is searched for references and never reported.

use super::tracker::Tracker;
use crate::diagnostics;
use crate::ffi::allocator;
use crate::hooks::troubles::Trouble;
use detector::objects::LiveMap;
use guest_symbols::memory::{GuestMemory, PAGE_SIZE};

/// Room is looked at once in so many allocations.
pub(super) const EVERY: u64 = 1 << 12;
/// While all CPUs look in turn, more come.
const AHEAD: usize = 2 * EVERY as usize;

/// Bytes that a check takes for each live object: 32 for the copy of the map, and as many for what
/// the slabs say, its block, and its place in the index, some of which is there twice for a moment
/// while it grows.
const COPY: u64 = 32;
const CHECK: u64 = 96;
/// And for each page of the guest: its use, and its place in the index.
const CHECK_OF_PAGE: u64 = 16;
/// And besides.
const CHECK_AT_LEAST: u64 = 8 << 20;

/// Bytes that a check needs.
#[derive(Debug, Clone, Copy)]
pub struct Needs {
    /// For the copy of the live map.
    pub copy: u64,
    /// For the rest.
    pub rest: u64,
}

impl Tracker {
    /// Looks whether the live map has, and gets, room; closes it where not.
    #[cold]
    pub(super) fn look_at_memory(&self) {
        if allocator::is_short() {
            return self.close("the host had no memory for libleak");
        }
        let growth = |map: &LiveMap| Some(map.room()).filter(|(room, _)| *room < AHEAD).map_or(0, |(_, bytes)| bytes);
        let growth: u64 = self.objects.maps().map(growth).sum();
        let needs = self.needs();
        // A limit must leave room for the check; of what the host has, QEMU and others may give
        // back some until then.
        let check = allocator::limit().map_or(0, |_| needs.copy + needs.rest);
        if (growth > 0 || check > 0) && !allocator::may_have(growth + check) {
            let limited = allocator::limit().is_some_and(|limit| allocator::used() + growth + check > limit);
            self.close(match limited {
                true => "max-memory= was reached",
                false => "the host had no memory for libleak",
            });
        }
    }

    /// What a check made now needs.
    pub fn needs(&self) -> Needs {
        let (live, unentered) = (self.objects.count(), self.objects.unentered());
        let pages = self.guest.ram.ranges().iter().map(|r| (r.end - r.start) / PAGE_SIZE).sum::<u64>();
        Needs { copy: COPY * live, rest: CHECK * (live + unentered) + CHECK_OF_PAGE * pages + CHECK_AT_LEAST }
    }

    /// Enters nothing new from now on, and says so.
    #[cold]
    pub(super) fn close(&self, why: &'static str) {
        if self.objects.close() {
            let trouble = Trouble::NoMemory { why, allocations: self.objects.counters().allocations };
            self.troubles.enter(&trouble);
            diagnostics::warning(&format!(
                "{trouble}, and none of them is reported; give QEMU more, or raise max-memory="
            ));
        }
    }
}
