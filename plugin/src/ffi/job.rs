//! Work that is given to a thread of QEMU's, which may come to it too late, or never.

use crossbeam_channel::{Receiver, Sender, bounded};
use parking_lot::Mutex;
use std::sync::Arc;
use std::time::Duration;

/// Work that is done by one thread or given up by another, never both.
pub(super) struct Job {
    work: Mutex<Option<Box<dyn FnOnce() + Send>>>,
    done: Sender<()>,
}

impl Job {
    /// A job, and what [`Job::has_run`] waits for.
    pub fn new(work: Box<dyn FnOnce() + Send>) -> (Arc<Job>, Receiver<()>) {
        let (done, wait) = bounded(1);
        (Arc::new(Job { work: Mutex::new(Some(work)), done }), wait)
    }

    /// Does the work, unless it was given up or done.
    pub fn run(&self) {
        let mut work = self.work.lock();
        // Held until it is done, so that a caller that gives up cannot return in the middle.
        if let Some(work) = work.take() {
            work();
        }
    }

    /// Wakes whoever waits, also when the work has panicked.
    pub fn done(&self) {
        let _ = self.done.try_send(());
    }

    /// Waits for the work, and gives it up after `timeout`. Whether it has run: if not, it never
    /// will; if so, it is over.
    pub fn has_run(&self, wait: &Receiver<()>, timeout: Duration) -> bool {
        wait.recv_timeout(timeout).is_ok() || self.work.lock().take().is_none()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU32, Ordering};

    /// One that gives up at about the time when the other begins.
    #[test]
    fn work_is_done_or_given_up_and_never_both() {
        let mut done = 0;
        let rounds = 400;
        for i in 0..rounds {
            let steps = Arc::new(AtomicU32::new(0));
            let inner = steps.clone();
            let (job, wait) = Job::new(Box::new(move || {
                inner.store(1, Ordering::Relaxed);
                std::thread::yield_now();
                inner.store(2, Ordering::Relaxed);
            }));
            let given = job.clone();
            let other = std::thread::spawn(move || {
                given.run();
                given.done();
                given.run();
            });
            // Of the order of what it takes to start a thread.
            let ran = job.has_run(&wait, Duration::from_micros(i % 200));
            let then = steps.load(Ordering::Relaxed);
            other.join().unwrap();
            assert_eq!((then, steps.load(Ordering::Relaxed)), if ran { (2, 2) } else { (0, 0) });
            done += u64::from(ran);
        }
        assert!(done > 0, "of {rounds} none was done in time");
    }

    #[test]
    fn a_panic_is_no_reason_to_wait() {
        let (job, wait) = Job::new(Box::new(|| panic!("on purpose")));
        let given = job.clone();
        let other = std::thread::spawn(move || {
            let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| given.run()));
            given.done();
            panicked.is_err()
        });
        assert!(job.has_run(&wait, Duration::MAX));
        assert!(other.join().unwrap());
    }
}
