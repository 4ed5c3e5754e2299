//! Numbers of events that a report is based on.

/// Events before the check.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counters {
    /// Allocations entered into the live map.
    pub allocations: u64,
    /// Frees of objects that were in the live map.
    pub frees: u64,
    /// Frees of objects that were not in the live map.
    pub unknown_frees: u64,
    /// Allocations at an address that was still live.
    pub missed_frees: u64,
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
