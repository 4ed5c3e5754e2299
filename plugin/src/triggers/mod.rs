//! Triggers of checks while the guest runs. One thread stops the guest and serves demands.
//!
//! - [`demand`](crate::session::demand): the demands
//! - [`interval`]: scans every `scan=` seconds
//! - [`control`]: requests of other programs, through a socket
//! - [`marker`]: requests of the guest, with [`answer`]s; [`console`]: tests that it runs; [`listener`]: both
//!
//! QEMU's exit and callbacks in an exclusive section call the same methods of
//! [`Session`](crate::session::Session) as the thread.

mod answer;
pub mod command;
mod console;
pub mod control;
mod interval;
mod listener;
mod marker;

use crate::diagnostics;
use crate::ffi;
use crate::pause::{self, Way};
use crate::session::demand::{self, Answer, Demand, DemandError, Done, What};
use crate::session::{NotTracked, Session};
pub use listener::listen;

use crossbeam_channel::{Receiver, Sender, TrySendError, select};
use parking_lot::Mutex;
use std::collections::VecDeque;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

/// Most demands that wait. Further demands are refused. A client has one at a time.
const MAX_WAITING: usize = 512;

/// The queue of demands for the thread. It is shared by the threads of all clients.
static QUEUE: OnceLock<Sender<Demand>> = OnceLock::new();

/// Starts the thread.
pub fn start(session: &'static Session) {
    session.start_reports();
    let (queue, demands) = crossbeam_channel::bounded(MAX_WAITING);
    let thread = Scanner {
        session,
        demands,
        waiting: VecDeque::new(),
        ways: pause::ladder(session.options.qmp.as_deref()),
        is_lost: false,
    };
    let spawned = std::thread::Builder::new().name("libleak-scan".into()).spawn(move || {
        ffi::signals::block();
        let _registered = ffi::vcpu::register_thread();
        ffi::guard(|| thread.run());
    });
    match spawned {
        Ok(_) => drop(QUEUE.set(queue)),
        Err(why) => diagnostics::error(&format!("no thread could be started, so only the exit has a scan: {why}")),
    }
}

/// Passes a demand to the thread, and never blocks. If it is refused, the reply is called at once.
pub fn demand(demand: Demand) {
    let refused = match QUEUE.get().map(|queue| queue.try_send(demand)) {
        Some(Ok(())) => return,
        Some(Err(TrySendError::Full(demand))) => (demand, DemandError::Busy),
        Some(Err(TrySendError::Disconnected(demand))) => (demand, DemandError::no_thread()),
        None => return,
    };
    (refused.0.reply)(Err(refused.1));
}

/// The thread that serves demands.
struct Scanner {
    session: &'static Session,
    demands: Receiver<Demand>,
    /// Demands that were received, in the order in which they are served.
    waiting: VecDeque<Demand>,
    /// Ways to stop the guest, best first.
    ways: Vec<Way>,
    /// No way works, which was reported.
    is_lost: bool,
}

impl Scanner {
    fn run(mut self) {
        let ticks = interval::ticks(self.session.options.scan);
        loop {
            let next = match self.waiting.pop_front() {
                Some(demand) => demand,
                None => select! {
                    recv(self.demands) -> demand => match demand {
                        Ok(demand) => demand,
                        Err(_) => return,
                    },
                    recv(ticks) -> _ => interval::demand(),
                },
            };
            self.waiting.extend(self.demands.try_iter());
            ffi::inject("scanner");
            let mut replies = vec![next.reply];
            if matches!(next.what, What::Scan { .. }) {
                // Equal demands that wait are answered by the same scan. A second scan would have
                // nothing new to report.
                let (same, others) = self.waiting.drain(..).partition(|d: &Demand| d.what == next.what);
                self.waiting = others;
                let same: VecDeque<Demand> = same;
                replies.extend(same.into_iter().map(|d| d.reply));
            }
            let answer = self.serve(&next.what);
            replies.into_iter().for_each(|reply| reply(answer.clone()));
        }
    }

    /// Stops the guest for a demand. The report is written when the guest runs again.
    fn serve(&mut self, what: &What) -> Result<(Answer, Duration), DemandError> {
        let session = self.session;
        if session.is_ended() {
            return Err(DemandError::Ended);
        }
        let tracker = session.tracked()?;
        std::thread::sleep(session.pace.rest(Instant::now()));
        for way in self.ways.iter_mut().filter(|way| way.is_ready()) {
            let result = Arc::new(Mutex::new(None));
            let (inner, work, obeyed) = (result.clone(), what.clone(), Arc::clone(&tracker));
            let began = Instant::now();
            let paused = way.during(Box::new(move |guest| *inner.lock() = Some(session.obey(guest, &obeyed, &work))));
            let pause = began.elapsed();
            session.pace.paused(Instant::now(), pause);
            if session.is_ended() {
                return Err(DemandError::Ended);
            }
            match &paused {
                Ok(()) => self.is_lost = false,
                Err((why, rest)) => {
                    diagnostics::warning(&format!("{why}; it is not tried again for {} s", rest.as_secs()));
                }
            }
            // After an error the demand may have been served: only resuming the guest failed.
            match result.lock().take() {
                Some(Ok(Done::Scanned(found))) => {
                    session.paused(pause);
                    session.flush_reports();
                    let report = session.report(&tracker, &found, pause, false);
                    return Ok((Answer::Report(Arc::new(report)), pause));
                }
                Some(Ok(Done::Answer(answer))) => {
                    session.paused(pause);
                    demand::publish(&answer);
                    return Ok((answer, pause));
                }
                Some(Err(why)) => {
                    log::info!("no result: {why}");
                    return Err(why);
                }
                // libleak panicked, which was reported.
                None if paused.is_ok() => return Err(NotTracked::Halted.into()),
                None => {}
            }
        }
        if !self.is_lost {
            self.is_lost = true;
            diagnostics::error("the guest cannot be paused; until it can, only the exit has a scan");
        }
        Err(DemandError::Running)
    }
}
