//! Scans while the guest runs, every `scan=` seconds.

use crate::session::demand::{Demand, What};
use crossbeam_channel::Receiver;
use std::time::{Duration, Instant};

/// When the next scans are due; never without an interval.
pub fn ticks(every: Option<Duration>) -> Receiver<Instant> {
    every.map_or_else(crossbeam_channel::never, crossbeam_channel::tick)
}

/// The scan that is due at a tick. Nobody waits for its answer, and it reports nothing that is
/// younger than interval scans do.
pub fn demand() -> Demand {
    Demand { what: What::Tick, reply: Box::new(|_| ()) }
}
