//! Scans while the guest runs, every `scan=` seconds, on a thread of our own.

use crate::ffi;
use crate::hooks::tracker::tracker;
use crate::output;
use crate::pause::{self, PauseError};
use crate::session::Session;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Starts the thread.
pub fn start(session: &'static Session, every: Duration) {
    let spawned = std::thread::Builder::new().name("libleak-scan".into()).spawn(move || {
        block_signals();
        ffi::guard(|| run(session, every));
    });
    if let Err(why) = spawned {
        output::error(&format!("scan={} has no effect, no thread could be started: {why}", every.as_secs()));
    }
}

fn run(session: &'static Session, every: Duration) {
    let mut ways = pause::ladder(session.options.qmp.as_deref());
    loop {
        std::thread::sleep(every);
        let Some(tracker) = tracker() else { continue };
        if tracker.live.counters().allocations == 0 || ffi::is_disabled() || tracker.is_replaced() {
            continue;
        }
        while let Some(way) = ways.first_mut() {
            let result = Arc::new(parking_lot::Mutex::new(None));
            let inner = result.clone();
            let began = Instant::now();
            let paused = way.during(Box::new(move || {
                *inner.lock() = Some((session.check(tracker, session.interval_min_age()), began.elapsed()));
            }));
            let pause = began.elapsed();
            if let Some((check, _)) = result.lock().take() {
                match check {
                    Ok(result) => session.report(tracker, &result, pause, false),
                    Err(e) => log::info!("no scan: {e}"),
                }
            }
            match paused {
                Ok(()) => break,
                Err(why) => {
                    output::warning(&why.to_string());
                    drop_way(&mut ways, &why);
                }
            }
        }
        if ways.is_empty() {
            return output::error("the guest cannot be paused: there is no further scan before exit");
        }
    }
}

/// A way that failed is not tried again: each failure may have cost its timeout.
fn drop_way(ways: &mut Vec<Box<dyn pause::Pause>>, _why: &PauseError) {
    ways.remove(0);
}

/// Signals are QEMU's, for its own threads.
fn block_signals() {
    // SAFETY: a set on the stack, filled by libc, applied to this thread only.
    unsafe {
        let mut set = std::mem::zeroed();
        libc::sigfillset(&mut set);
        libc::pthread_sigmask(libc::SIG_SETMASK, &set, std::ptr::null_mut());
    }
}
