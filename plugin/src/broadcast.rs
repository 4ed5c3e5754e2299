//! What subscribers are told. Whoever publishes is never blocked: a subscriber that does not read
//! loses its place.

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender};
use detector::control::{Event, GroupEvent, SCHEMA};
use detector::report::{Frame, Report};
use parking_lot::Mutex;
use serde::Serialize;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// Lines that wait for one subscriber, at most.
const MAX_LINES: usize = 64;
/// Tests told of one scan.
const MAX_TESTS: usize = 100;
/// Groups told of one scan.
const MAX_GROUPS: usize = 20;

/// Those who are told. Whoever publishes, on any thread, knows nothing of them.
static SUBSCRIBERS: Mutex<Vec<Sender<Arc<str>>>> = Mutex::new(Vec::new());
/// Lines that wait, of all subscribers. QEMU's exit waits for them.
static WAITING: AtomicUsize = AtomicUsize::new(0);

#[derive(Serialize)]
struct Line<'a> {
    schema: u32,
    #[serde(flatten)]
    event: &'a Event,
}

/// An event's line, with its end.
pub fn line(event: &Event) -> String {
    // Text and numbers have no value that is none of JSON's.
    serde_json::to_string(&Line { schema: SCHEMA, event }).unwrap_or_default() + "\n"
}

/// Lines for one subscriber.
pub struct Subscription(Receiver<Arc<str>>);

/// Lines from now on.
pub fn subscribe() -> Subscription {
    let (sender, receiver) = crossbeam_channel::bounded(MAX_LINES);
    SUBSCRIBERS.lock().push(sender);
    Subscription(receiver)
}

impl Subscription {
    /// Hands the next line to `write`; nothing if none comes in that time.
    ///
    /// # Errors
    /// [`RecvTimeoutError::Disconnected`] when lines were not taken fast enough, and the others are
    /// given.
    pub fn next<T>(&self, time: Duration, write: impl FnOnce(&str) -> T) -> Result<T, RecvTimeoutError> {
        let line = self.0.recv_timeout(time)?;
        let written = write(&line);
        WAITING.fetch_sub(1, Ordering::Relaxed);
        Ok(written)
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        WAITING.fetch_sub(self.0.try_iter().count(), Ordering::Relaxed);
    }
}

/// Tells all subscribers. Costs nothing without any.
pub fn publish(event: impl FnOnce() -> Event) {
    let mut subscribers = SUBSCRIBERS.lock();
    if subscribers.is_empty() {
        return;
    }
    let line: Arc<str> = line(&event()).into();
    subscribers.retain(|to| {
        WAITING.fetch_add(1, Ordering::Relaxed);
        let told = to.try_send(Arc::clone(&line)).is_ok();
        if !told {
            WAITING.fetch_sub(1, Ordering::Relaxed);
        }
        told
    });
}

/// Waits until all that was published is written, but not longer than that.
pub fn flush(limit: Duration) {
    let began = Instant::now();
    while WAITING.load(Ordering::Relaxed) > 0 && began.elapsed() < limit {
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// The event of a scan.
pub fn scan(report: &Report) -> Event {
    let first = report.groups.iter().take(MAX_GROUPS).map(|group| GroupEvent {
        direct: group.direct,
        count: group.leaks.len(),
        bytes: group.bytes(),
        test: group.test.clone(),
        stack: group.frames.iter().map(Frame::to_string).collect(),
    });
    Event::Scan {
        figures: report.figures.clone(),
        summary: report.closing.lines().next().unwrap_or_default().to_owned(),
        groups: report.groups.len(),
        first: first.collect(),
        test: report.test.clone(),
        tests: report.tests[report.tests.len().saturating_sub(MAX_TESTS)..].to_vec(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_does_not_read_is_dropped_and_others_are_not() {
        let (slow, fast) = (subscribe(), subscribe());
        let next = |s: &Subscription| s.next(Duration::ZERO, str::to_owned);
        for n in 0..=MAX_LINES {
            publish(|| Event::End {});
            assert_eq!(next(&fast).unwrap(), "{\"schema\":1,\"event\":\"end\"}\n", "{n}");
        }
        publish(|| Event::End {});
        assert!(next(&fast).is_ok());
        assert_eq!((0..).take_while(|_| next(&slow).is_ok()).count(), MAX_LINES);
        assert_eq!(next(&slow), Err(RecvTimeoutError::Disconnected));
        drop((slow, fast));
        flush(Duration::MAX);
    }
}
