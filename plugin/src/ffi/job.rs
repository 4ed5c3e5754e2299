//! Work for a thread of QEMU, which may run it too late, or never.

use crossbeam_channel::{Receiver, Sender, bounded};
use parking_lot::Mutex;
use std::sync::Arc;
use std::time::Duration;

/// Work that one thread runs, or another cancels; never both.
pub(super) struct Job {
    work: Mutex<Option<Box<dyn FnOnce() + Send>>>,
    done: Sender<()>,
}

impl Job {
    /// Makes a job, and the channel that [`Job::has_run`] waits for.
    pub fn new(work: Box<dyn FnOnce() + Send>) -> (Arc<Job>, Receiver<()>) {
        let (done, wait) = bounded(1);
        (Arc::new(Job { work: Mutex::new(Some(work)), done }), wait)
    }

    /// Runs the work, unless it was cancelled or has run.
    pub fn run(&self) {
        let mut work = self.work.lock();
        // The lock is held while the work runs, so that a caller that cancels it cannot return in
        // the middle.
        if let Some(work) = work.take() {
            work();
        }
    }

    /// Wakes the waiting thread, also if the work has panicked.
    pub fn done(&self) {
        let _ = self.done.try_send(());
    }

    /// Waits for the work, and cancels it after `timeout`. Returns whether it has run. If not, it
    /// never will.
    pub fn has_run(&self, wait: &Receiver<()>, timeout: Duration) -> bool {
        wait.recv_timeout(timeout).is_ok() || self.work.lock().take().is_none()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU32, Ordering};

    /// One thread cancels the work at about the time when the other starts it.
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
            // About as long as it takes to start a thread.
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
