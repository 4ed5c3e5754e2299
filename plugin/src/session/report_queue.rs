//! Demands by markers. They are served while the guest is stopped; a thread writes their reports
//! afterwards, in order.

use super::Session;
use super::checks::ScanResult;
use super::demand::{self, Answer, DemandError, Done, What};
use crate::diagnostics;
use crate::ffi::witness::GuestStopped;
use crate::ffi::{guard, inject, signals};
use crate::hooks::tracker::Tracker;
use crossbeam_channel::{Sender, bounded};
use parking_lot::Mutex;
use std::collections::VecDeque;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

/// Most reports that wait. Further reports are written while the guest is stopped, which slows it
/// down.
const MAX_REPORTS: usize = 16;

/// The result of a marker's scan.
struct Scanned {
    tracker: Arc<Tracker>,
    result: Box<ScanResult>,
    /// How long the guest was stopped for it.
    pause: Duration,
}

/// Reports that wait to be written.
#[derive(Default)]
pub(super) struct ReportQueue {
    waiting: Mutex<VecDeque<Scanned>>,
    /// Held while reports are written, so that they stay in order.
    writing: Mutex<()>,
    /// Wakes the thread that writes them, if there is one.
    wake: OnceLock<Sender<()>>,
}

impl Session {
    /// Starts the thread that writes reports of markers. Without the thread they are written while
    /// the guest is stopped.
    pub fn start_reports(&'static self) {
        if !self.options.guest_markers && !self.options.per_test {
            return;
        }
        let (wake, woken) = bounded(1);
        let spawned = std::thread::Builder::new().name("libleak-markers".into()).spawn(move || {
            signals::block();
            guard(|| {
                woken.iter().for_each(|()| {
                    inject("reports");
                    self.flush_reports();
                });
            });
        });
        if spawned.is_ok() {
            let _ = self.reports.wake.set(wake);
        }
    }

    /// Writes all reports that wait. To be called before any later report.
    pub fn flush_reports(&self) {
        let _one = self.reports.writing.lock();
        loop {
            let next = self.reports.waiting.lock().pop_front();
            let Some(Scanned { tracker, result, pause }) = next else { return };
            self.report(&tracker, &result, pause, false);
        }
    }

    /// Serves the demand of a marker. Its report belongs to the test `at`.
    pub fn obey_marker(&self, stopped: &GuestStopped, what: &What, at: Option<Arc<str>>) {
        let tracker = match self.tracked() {
            Ok(tracker) => tracker,
            Err(why) => return log::info!("no effect of a marker: {why}"),
        };
        let began = Instant::now();
        let done = self.serve_marker(stopped, &tracker, what, at);
        let pause = began.elapsed();
        self.marker_paused(pause);
        match done {
            Ok(Done::Scanned(result)) => {
                let mut reports = self.reports.waiting.lock();
                reports.push_back(Scanned { tracker, result, pause });
                let full = reports.len() > MAX_REPORTS;
                drop(reports);
                match self.reports.wake.get().filter(|_| !full) {
                    Some(wake) => drop(wake.try_send(())),
                    // This cannot deadlock: the thread that writes does not wait for vCPUs.
                    None => self.flush_reports(),
                }
            }
            Ok(Done::Answer(answer)) => {
                log::info!("{what:?} by a marker");
                demand::publish(&answer);
            }
            Err(why) => diagnostics::error(&format!("no result of a marker: {why}")),
        }
    }

    /// As [`Session::obey_marker`], for a process that waits for the answer. Its report is written
    /// while the guest is stopped.
    ///
    /// # Errors
    /// [`DemandError`].
    pub fn answer_marker(
        &self,
        stopped: &GuestStopped,
        what: &What,
        at: Option<Arc<str>>,
    ) -> Result<Answer, DemandError> {
        let tracker = self.tracked()?;
        let began = Instant::now();
        let done = self.serve_marker(stopped, &tracker, what, at);
        let answer = done.map(|done| match done {
            Done::Scanned(result) => {
                let pause = began.elapsed();
                self.flush_reports();
                Answer::Report(Arc::new(self.report(&tracker, &result, pause, false)))
            }
            Done::Answer(answer) => {
                demand::publish(&answer);
                answer
            }
        });
        self.marker_paused(began.elapsed());
        answer
    }

    fn serve_marker(
        &self,
        stopped: &GuestStopped,
        tracker: &Tracker,
        what: &What,
        at: Option<Arc<str>>,
    ) -> Result<Done, DemandError> {
        inject("marker");
        tracker.tests.lock().at = at;
        let done = self.obey(stopped, tracker, what);
        tracker.tests.lock().at = None;
        done
    }

    fn marker_paused(&self, pause: Duration) {
        self.paused(pause);
        self.pace.paused(Instant::now(), pause);
    }
}
