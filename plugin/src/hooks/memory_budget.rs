//! The host memory that the live map may take.
//!
//! The map's tables double when they are full. If that fails, Rust ends the process, which is QEMU.
//! So memory is checked every few thousand allocations, before a table is full. If there is too
//! little, the map is closed: no new objects are entered. Frees need no memory and are still
//! entered. Objects that are not entered are known from the kernel's allocator metadata alone. They
//! are searched for references, and never reported.

use super::tracker::Tracker;
use crate::diagnostics;
use crate::ffi::allocator;
use crate::history::History;
use crate::hooks::troubles::Trouble;
use detector::objects::LiveMap;
use guest_symbols::memory::{GuestMemory, PAGE_SIZE};

/// Memory is checked once in this many allocations.
pub(super) const EVERY: u64 = 1 << 12;
/// Objects that may be entered before the next check, by all CPUs together.
const AHEAD: usize = 2 * EVERY as usize;

/// Bytes that a check takes for each live object: 32 for the copy of the map, and the rest for
/// allocator metadata, blocks and the index. Some of these exist twice while they grow.
const COPY: u64 = 32;
const CHECK: u64 = 96;
/// Bytes for each page of the guest: its usage, and its place in the index.
const CHECK_OF_PAGE: u64 = 16;
/// Bytes that a check takes in any case.
const CHECK_AT_LEAST: u64 = 8 << 20;

/// Bytes that a check needs.
#[derive(Debug, Clone, Copy)]
pub struct Needs {
    /// Bytes for the copy of the live map.
    pub copy: u64,
    /// Bytes for the rest.
    pub rest: u64,
}

impl Tracker {
    /// Checks whether the live map can grow, and closes it if not.
    #[cold]
    pub(super) fn look_at_memory(&self) {
        if allocator::is_short() {
            self.give_up_history();
            return self.close("the host had no memory for libleak");
        }
        let growth = |map: &LiveMap| Some(map.room()).filter(|room| room.entries < AHEAD).map_or(0, |room| room.bytes);
        let growth: u64 = self.objects.maps().map(growth).sum();
        let needs = self.needs();
        // `max-memory=` must leave room for a check. Without it the check may use memory that QEMU
        // or others free until then.
        let check = allocator::limit().map_or(0, |_| needs.copy + needs.rest);
        allocator::set_tables(self.history.as_ref().map_or(0, History::bytes));
        let fits = || !(growth > 0 || check > 0) || allocator::may_have(growth + check);
        if !fits() {
            self.give_up_history();
        }
        if !fits() {
            let limited = allocator::limit().is_some_and(|limit| allocator::used() + growth + check > limit);
            self.close(match limited {
                true => "max-memory= was reached",
                false => "the host had no memory for libleak",
            });
        }
    }

    /// Frees the memory of the history of references, and says so.
    #[cold]
    fn give_up_history(&self) {
        if self.history.as_ref().is_some_and(History::give_up) {
            allocator::set_tables(0);
            self.troubles.warn(&Trouble::NoHistory);
        }
    }

    /// The memory that a check would need now.
    pub fn needs(&self) -> Needs {
        let (live, unentered) = (self.objects.count(), self.objects.unentered());
        let pages = self.guest.ram.ranges().iter().map(|r| (r.end - r.start) / PAGE_SIZE).sum::<u64>();
        Needs { copy: COPY * live, rest: CHECK * (live + unentered) + CHECK_OF_PAGE * pages + CHECK_AT_LEAST }
    }

    /// Closes the live map, and says so.
    #[cold]
    pub(super) fn close(&self, why: &'static str) {
        if self.objects.close() {
            let trouble = Trouble::NoMemory { why, allocations: self.objects.counters().allocations };
            self.troubles.enter(&trouble);
            diagnostics::warning(&format!("{trouble} and not reported; give QEMU more memory, or raise max-memory="));
        }
    }
}
