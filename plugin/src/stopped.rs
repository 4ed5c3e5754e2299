//! What a check takes of a stopped guest besides its memory.

use crate::ffi::{host, regs};
use crate::hooks::tracker::Tracker;
use checker::moment::Counters;
use std::sync::atomic::{AtomicU64, Ordering};

/// Words held in the registers of every vCPU; none where QEMU does not tell.
pub fn registers() -> Vec<u64> {
    (0..).map_while(|cpu| host::cpu(cpu).and_then(regs::stopped)).flatten().collect()
}

/// What the summary counts.
pub fn counters(tracker: &Tracker) -> Counters {
    let get = |n: &AtomicU64| n.load(Ordering::Relaxed);
    let (c, d) = (tracker.live.counters(), &tracker.doubts);
    Counters {
        allocations: c.allocations,
        frees: c.frees,
        unknown_frees: c.unknown_frees,
        missed_frees: c.missed_frees,
        unmatched_returns: get(&d.unmatched_returns),
        unwatched_sites: get(&d.unwatched_returns) + get(&d.unreadable),
        hooks_hit: tracker.hooks.iter().filter(|(_, hits)| get(hits) > 0).count() as u64,
        hooks: tracker.hooks.len() as u64,
        rewinds: tracker.rewinds(),
    }
}
