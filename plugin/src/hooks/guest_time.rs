//! The guest's time, and whether it goes back.

use detector::clock::Clock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

/// The guest's jiffies beside the host's clock.
pub struct GuestTime {
    clock: Clock,
    /// The latest jiffies seen. They go back only when a kernel starts again or a snapshot is
    /// loaded.
    latest: AtomicU64,
    rewinds: AtomicU64,
    start: Instant,
}

impl GuestTime {
    /// Starts now.
    pub fn new() -> GuestTime {
        GuestTime {
            clock: Clock::default(),
            latest: AtomicU64::new(0),
            rewinds: AtomicU64::new(0),
            start: Instant::now(),
        }
    }

    /// Milliseconds of host time since tracking began.
    pub fn millis(&self) -> u64 {
        self.start.elapsed().as_millis() as u64
    }

    /// How often the guest was brought to another time, or came from elsewhere.
    pub fn rewinds(&self) -> u64 {
        self.rewinds.load(Ordering::Relaxed)
    }

    /// What tells jiffies from milliseconds.
    pub fn clock(&self) -> &Clock {
        &self.clock
    }

    /// The latest of the jiffies seen and of `jiffies`.
    pub fn latest(&self, jiffies: u64) -> u64 {
        self.latest.load(Ordering::Relaxed).max(jiffies)
    }

    /// An allocation was made at that time.
    pub fn tick(&self, jiffies: u64) {
        self.clock.tick(jiffies, || self.millis());
    }

    /// Reads the guest's jiffies. Returns them, and whether they went back and this caller is the
    /// one to act on it.
    #[inline]
    pub fn advance(&self, read: impl FnOnce() -> u64) -> (u64, bool) {
        // In this order: the host may hold this thread up between the two, while other CPUs see
        // later ticks.
        let latest = self.latest.load(Ordering::Acquire);
        let jiffies = read();
        if jiffies > latest {
            self.latest.fetch_max(jiffies, Ordering::AcqRel);
        }
        (jiffies, jiffies < latest && self.go_back(latest, jiffies))
    }

    /// Of several CPUs that notice, one acts.
    #[cold]
    fn go_back(&self, latest: u64, jiffies: u64) -> bool {
        let is_first = self.latest.compare_exchange(latest, jiffies, Ordering::AcqRel, Ordering::Relaxed).is_ok();
        if is_first {
            self.rewinds.fetch_add(1, Ordering::Relaxed);
        }
        is_first
    }

    /// The guest comes from elsewhere: it ran before it was tracked.
    pub fn join(&self) {
        self.rewinds.fetch_add(1, Ordering::Relaxed);
    }

    /// The guest is about to be brought to another time, earlier or later.
    pub fn leave(&self) {
        self.rewinds.fetch_add(1, Ordering::Relaxed);
        self.latest.store(0, Ordering::Release);
    }

    /// Forgets how jiffies and milliseconds went together.
    pub fn forget(&self) {
        self.clock.clear();
    }
}
