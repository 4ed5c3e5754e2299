//! Events for subscribers. Publishing never blocks: a subscriber that does not read is dropped.

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender};
use detector::control::{Event, GroupEvent, SCHEMA};
use detector::report::{Frame, Report};
use parking_lot::Mutex;
use serde::Serialize;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// Most lines that wait for one subscriber.
const MAX_LINES: usize = 64;
/// Most tests in the event of a scan.
const MAX_TESTS: usize = 100;
/// Most groups in the event of a scan.
const MAX_GROUPS: usize = 20;

/// All subscribers. Any thread may publish.
static SUBSCRIBERS: Mutex<Vec<Sender<Arc<str>>>> = Mutex::new(Vec::new());
/// Lines that wait for all subscribers together. QEMU's exit waits for them.
static WAITING: AtomicUsize = AtomicUsize::new(0);

#[derive(Serialize)]
struct Line<'a> {
    schema: u32,
    #[serde(flatten)]
    event: &'a Event,
}

/// The line of an event, with a newline.
pub fn line(event: &Event) -> String {
    // Serialising these types cannot fail.
    serde_json::to_string(&Line { schema: SCHEMA, event }).unwrap_or_default() + "\n"
}

/// Lines for one subscriber.
pub struct Subscription(Receiver<Arc<str>>);

/// Subscribes to events from now on.
pub fn subscribe() -> Subscription {
    let (sender, receiver) = crossbeam_channel::bounded(MAX_LINES);
    SUBSCRIBERS.lock().push(sender);
    Subscription(receiver)
}

impl Subscription {
    /// Waits at most `time` for the next line, and calls `write` with it.
    ///
    /// # Errors
    /// [`RecvTimeoutError::Disconnected`] after the last line of a subscriber that was too slow.
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

/// Sends an event to all subscribers. Without subscribers it costs nothing.
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

/// Waits until all lines are written, but not longer than `limit`.
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
