//! What makes libleak look at the guest before its end: one thread that stops it, and the demands
//! that the thread serves.
//!
//! - [`demand`](crate::session::demand): what can be demanded
//! - [`interval`]: every so many seconds
//! - [`control`]: when another program asks, through a socket
//! - [`marker`]: the guest itself, and [`console`], the tests that it tells of
//!
//! What stops the guest otherwise (QEMU's exit, a callback in an exclusive section) calls the
//! methods of [`Session`](crate::session::Session) that the thread calls.

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

/// Demands that wait, at most; more are refused. A client has one at a time.
const MAX_WAITING: usize = 512;

/// To the thread. Clients' threads have nothing else that could hold it.
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
        Err(why) => diagnostics::error(&format!("no thread could be started, so there is no scan before exit: {why}")),
    }
}

/// Hands a demand to the thread, and never blocks. If it cannot be served, who waits is told at
/// once.
pub fn demand(demand: Demand) {
    let refused = match QUEUE.get().map(|queue| queue.try_send(demand)) {
        Some(Ok(())) => return,
        Some(Err(TrySendError::Full(demand))) => (demand, DemandError::Busy),
        Some(Err(TrySendError::Disconnected(demand))) => (demand, DemandError::nobody()),
        None => return,
    };
    (refused.0.reply)(Err(refused.1));
}

/// The thread.
struct Scanner {
    session: &'static Session,
    demands: Receiver<Demand>,
    /// Received, and to be served in their order.
    waiting: VecDeque<Demand>,
    /// Ways to stop the guest, best first.
    ways: Vec<Way>,
    /// None of them works, which was said.
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
                // What was asked for at the same time is answered by the same scan, which comes
                // after all of the requests: the second of two scans would have nothing new to
                // tell.
                let (same, others) = self.waiting.drain(..).partition(|d: &Demand| d.what == next.what);
                self.waiting = others;
                let same: VecDeque<Demand> = same;
                replies.extend(same.into_iter().map(|d| d.reply));
            }
            let answer = self.serve(&next.what);
            replies.into_iter().for_each(|reply| reply(answer.clone()));
        }
    }

    /// Stops the guest for a demand; what can wait is done when it runs again.
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
            // It may have been done all the same, and the guest only not let go on.
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
                // A panic, which was said.
                None if paused.is_ok() => return Err(NotTracked::Halted.into()),
                None => {}
            }
        }
        if !self.is_lost {
            self.is_lost = true;
            diagnostics::error("the guest cannot be paused: there is no scan before exit until it can");
        }
        Err(DemandError::Running)
    }
}
