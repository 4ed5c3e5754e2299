//! Scans while the guest runs, every `scan=` seconds.

use crate::session::demand::{Demand, What};
use crossbeam_channel::Receiver;
use std::time::{Duration, Instant};

/// Ticks when scans are due; never without an interval.
pub fn ticks(every: Option<Duration>) -> Receiver<Instant> {
    every.map_or_else(crossbeam_channel::never, crossbeam_channel::tick)
}

/// The demand of a tick. No one waits for its answer.
pub fn demand() -> Demand {
    Demand { what: What::Tick, reply: Box::new(|_| ()) }
}
