//! Scans and pauses so far, and the status that clients ask for.

use super::{Session, collected};
use crate::ffi::allocator;
use crate::hooks::current;
use detector::control::{Count, Pauses, Status};
use detector::report::{Figures, Report};
use std::time::Duration;

/// Scans and pauses until now.
#[derive(Default)]
pub(super) struct History {
    pauses: Pauses,
    scans: u64,
    reported: Count,
    last: Option<Figures>,
}

impl History {
    /// Adds a scan.
    pub(super) fn add(&mut self, report: &Report) {
        let figure = |name| report.figures.get(name).copied().unwrap_or(0);
        self.scans += 1;
        self.reported.objects += figure("unreferenced_objects");
        self.reported.bytes += figure("unreferenced_bytes");
        self.last = Some(report.figures.clone());
    }
}

impl Session {
    /// Adds a pause of the guest.
    pub fn paused(&self, pause: Duration) {
        let pauses = &mut self.history.lock().pauses;
        let micros = pause.as_micros() as u64;
        *pauses = Pauses {
            count: pauses.count + 1,
            last_microseconds: micros,
            longest_microseconds: pauses.longest_microseconds.max(micros),
            total_microseconds: pauses.total_microseconds + micros,
        };
    }

    /// The status. The guest is not stopped for it.
    pub fn status(&self) -> Status {
        let (tracked, tracker) = (self.tracked(), current::tracker());
        let counters = tracker.as_deref().map(collected::counters).unwrap_or_default();
        let live = counters.live_map.allocations.saturating_sub(counters.live_map.frees);
        let figures = counters.figures().into_iter().chain([("live_objects", live)]);
        let history = self.history.lock();
        Status {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            tracking: tracked.is_ok(),
            why: tracked.err().map(|why| why.to_string()),
            release: tracker.as_ref().map(|t| t.guest.kernel.release.clone()),
            at_ms: tracker.as_ref().map_or(0, |t| t.time.millis()),
            figures: figures.map(|(name, n)| (name.to_owned(), n)).collect(),
            pauses: history.pauses,
            scans: history.scans,
            reported: history.reported,
            last_scan: history.last.clone(),
            marks: self.mark_names(),
            clients: 0,
            memory_bytes: allocator::used(),
        }
    }
}
