//! How many events of each kind a report rests on.

/// Events until the moment.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counters {
    /// Allocations entered into the live map.
    pub allocations: u64,
    /// Frees of what was in it.
    pub frees: u64,
    /// Frees of what was not.
    pub unknown_frees: u64,
    /// Allocations at an address that was still live.
    pub missed_frees: u64,
    /// Calls whose return was not seen.
    pub unmatched_returns: u64,
    /// Calls that return where nothing watches, or whose stack could not be read.
    pub unwatched_sites: u64,
    /// Hooks whose function was entered.
    pub hooks_hit: u64,
    /// Hooks.
    pub hooks: u64,
    /// How often the guest was brought to another time, by loadvm for one, or came from elsewhere.
    pub rewinds: u64,
    /// Which kernel it is of those that ran in this QEMU one after the other, counted from 1.
    pub boot: u64,
}
