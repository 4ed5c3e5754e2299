//! The guest's time, and how often it went back.

use super::image::Image;
use detector::clock::Clock;
use parking_lot::{Mutex, MutexGuard};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

/// The guest's jiffies and the host's clock.
pub struct GuestTime {
    clock: Clock,
    /// The latest jiffies seen. They go back only when a kernel starts again or a snapshot is
    /// loaded.
    latest: AtomicU64,
    rewinds: AtomicU64,
    start: Instant,
    /// The live map at the time of the guest's last hibernation.
    hibernated: Mutex<Option<Image>>,
}

impl GuestTime {
    /// Starts counting milliseconds now.
    pub fn new() -> GuestTime {
        GuestTime {
            clock: Clock::default(),
            latest: AtomicU64::new(0),
            rewinds: AtomicU64::new(0),
            start: Instant::now(),
            hibernated: Mutex::default(),
        }
    }

    /// Milliseconds of host time since tracking began.
    pub fn millis(&self) -> u64 {
        self.start.elapsed().as_millis() as u64
    }

    /// How often the guest's time went back, or the guest came from a file or another QEMU.
    pub fn rewinds(&self) -> u64 {
        self.rewinds.load(Ordering::Relaxed)
    }

    /// Converts jiffies to milliseconds.
    pub fn clock(&self) -> &Clock {
        &self.clock
    }

    /// The later one of the jiffies seen and `jiffies`.
    pub fn latest(&self, jiffies: u64) -> u64 {
        self.latest.load(Ordering::Relaxed).max(jiffies)
    }

    /// An allocation was made at that time.
    pub fn tick(&self, jiffies: u64) {
        self.clock.tick(jiffies, || self.millis());
    }

    /// Reads the guest's jiffies. Returns them, and whether they went back. If several CPUs notice
    /// this, only one of them gets true.
    #[inline]
    pub fn advance(&self, read: impl FnOnce() -> u64) -> (u64, bool) {
        // The order matters: the host may delay this thread between the two reads, while other CPUs
        // see later jiffies.
        let latest = self.latest.load(Ordering::Acquire);
        let jiffies = read();
        if jiffies > latest {
            self.latest.fetch_max(jiffies, Ordering::AcqRel);
        }
        (jiffies, jiffies < latest && self.go_back(latest, jiffies))
    }

    /// Sets the earlier time. Returns whether this CPU was the first to do so.
    #[cold]
    fn go_back(&self, latest: u64, jiffies: u64) -> bool {
        let is_first = self.latest.compare_exchange(latest, jiffies, Ordering::AcqRel, Ordering::Relaxed).is_ok();
        if is_first {
            self.rewinds.fetch_add(1, Ordering::Relaxed);
        }
        is_first
    }

    /// The guest has run before it was tracked.
    pub fn join(&self) {
        self.rewinds.fetch_add(1, Ordering::Relaxed);
    }

    /// The guest is about to be brought to another time, earlier or later.
    pub fn leave(&self) {
        self.rewinds.fetch_add(1, Ordering::Relaxed);
        self.latest.store(0, Ordering::Release);
    }

    /// The live map at the time of the guest's last hibernation.
    pub(super) fn hibernated(&self) -> MutexGuard<'_, Option<Image>> {
        self.hibernated.lock()
    }

    /// The guest was resumed from an image that was made at `jiffies`.
    pub(super) fn resume(&self, jiffies: u64) {
        self.latest.store(jiffies, Ordering::Release);
        self.clock.go_back(jiffies);
    }

    /// Forgets earlier readings of the clock.
    pub fn forget(&self) {
        self.clock.clear();
    }
}
