//! Numbers of events that a report is based on.

use detector::objects;

/// Events before the check.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counters {
    /// Allocations and frees, as the live map counts them.
    pub live_map: objects::Counters,
    /// Calls whose return was not seen.
    pub unmatched_returns: u64,
    /// Calls that return to an address that is not watched, or whose stack could not be read.
    pub unwatched_sites: u64,
    /// Hooks whose function was entered at least once.
    pub hooks_hit: u64,
    /// All hooks.
    pub hooks: u64,
    /// How often the guest's state was replaced (loadvm, resume from disk, -loadvm, -incoming).
    pub rewinds: u64,
    /// Number of this kernel's boot among those that ran in this QEMU, counted from 1.
    pub boot: u64,
}

impl Counters {
    /// All counters, by their names in structured reports. Snapshots have the same order.
    pub fn figures(&self) -> [(&'static str, u64); 10] {
        // All fields by name, so that a new field cannot be forgotten.
        let &Counters { live_map, unmatched_returns, unwatched_sites, hooks_hit, hooks, rewinds, boot } = self;
        let objects::Counters { allocations, frees, unknown_frees, missed_frees } = live_map;
        [
            ("allocations", allocations),
            ("frees", frees),
            ("unknown_frees", unknown_frees),
            ("missed_frees", missed_frees),
            ("unmatched_returns", unmatched_returns),
            ("unwatched_sites", unwatched_sites),
            ("hooks_hit", hooks_hit),
            ("hooks", hooks),
            ("rewinds", rewinds),
            ("boot", boot),
        ]
    }
}
