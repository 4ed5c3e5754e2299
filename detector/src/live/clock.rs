//! Maps the guest's jiffies to the host's clock.
//!
//! The time of an allocation is stored in jiffies. Its age is reported in the host's time.

use parking_lot::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

/// Least distance between two readings, in jiffies. With `CONFIG_HZ` of 100 to 1000, this is 64 to
/// 640 ms.
const STEP: u64 = 64;
/// Most readings kept. At this number every second reading of the older half is dropped.
const MAX: usize = 1 << 16;

/// Both clocks at one moment. The order is that of the guest's clock.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Reading {
    /// The guest's jiffies.
    pub jiffies: u64,
    /// Milliseconds of the host's clock since the start of tracking.
    pub millis: u64,
}

/// Readings of both clocks, ascending.
#[derive(Default)]
pub struct Clock {
    next: AtomicU64,
    readings: Mutex<Vec<Reading>>,
}

impl Clock {
    /// Notes the guest's jiffies. `millis` reads the host's clock and is called for few ticks only.
    #[inline]
    pub fn tick(&self, jiffies: u64, millis: impl FnOnce() -> u64) {
        if jiffies >= self.next.load(Ordering::Relaxed) {
            self.read(jiffies, millis());
        }
    }

    #[cold]
    fn read(&self, jiffies: u64, millis: u64) {
        let mut readings = self.readings.lock();
        // Two CPUs may arrive in the other order than they read the clock.
        if readings.last().is_some_and(|last| jiffies <= last.jiffies || millis < last.millis) {
            return;
        }
        readings.push(Reading { jiffies, millis });
        self.next.store(jiffies.saturating_add(STEP), Ordering::Relaxed);
        if readings.len() == MAX {
            let mut number = 0;
            readings.retain(|_| {
                number += 1;
                number > MAX / 2 || number % 2 == 0
            });
        }
    }

    /// Forgets all readings. Called when jiffies went back, as after loading a saved guest.
    pub fn clear(&self) {
        self.readings.lock().clear();
        self.next.store(0, Ordering::Relaxed);
    }

    /// Forgets the readings after `jiffies`: the guest goes on from there.
    pub fn go_back(&self, jiffies: u64) {
        self.readings.lock().retain(|r| r.jiffies <= jiffies);
        self.next.store(0, Ordering::Relaxed);
    }

    /// All readings before `now`, followed by `now`.
    pub fn until(&self, now: Reading) -> Vec<Reading> {
        let mut readings = self.readings.lock().clone();
        readings.retain(|r| r.jiffies < now.jiffies && r.millis <= now.millis);
        readings.push(now);
        readings
    }
}

/// The host's time in milliseconds when the guest's jiffies were `jiffies`. Interpolates linearly
/// between two readings.
pub fn millis_at(readings: &[Reading], jiffies: u64) -> u64 {
    let after = readings.partition_point(|r| r.jiffies < jiffies);
    match (after.checked_sub(1).and_then(|i| readings.get(i)), readings.get(after)) {
        (None, None) => 0,
        (Some(only), None) | (None, Some(only)) => only.millis,
        (Some(a), Some(b)) => {
            let part = (jiffies - a.jiffies) as f64 / (b.jiffies - a.jiffies) as f64;
            a.millis + ((b.millis - a.millis) as f64 * part) as u64
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LAST: Reading = Reading { jiffies: u64::MAX, millis: u64::MAX };

    fn reading(jiffies: u64, millis: u64) -> Reading {
        Reading { jiffies, millis }
    }

    #[test]
    fn between_readings() {
        let clock = Clock::default();
        clock.tick(1000, || 10);
        clock.tick(1001, || unreachable!("too early to read again"));
        clock.tick(1100, || 410);
        let readings = clock.until(reading(1200, 1000));
        assert_eq!(readings, [reading(1000, 10), reading(1100, 410), reading(1200, 1000)]);
        let at = |jiffies| millis_at(&readings, jiffies);
        assert_eq!([at(900), at(1000), at(1025), at(1100), at(1199), at(5000)], [10, 10, 110, 410, 994, 1000]);
        clock.go_back(1050);
        clock.tick(1060, || 900);
        assert_eq!(clock.until(reading(1070, 910)), [reading(1000, 10), reading(1060, 900), reading(1070, 910)]);
        clock.clear();
        assert_eq!(clock.until(reading(5, 6)), [reading(5, 6)]);
        assert_eq!(millis_at(&[], 7), 0);
    }

    #[test]
    #[cfg_attr(miri, ignore = "so many readings take minutes under Miri")]
    fn room_is_bounded_and_order_kept() {
        let clock = Clock::default();
        (0..200_000).for_each(|i| clock.tick(i * STEP, || i));
        let readings = clock.until(LAST);
        assert!(readings.len() <= MAX && readings.is_sorted());
        assert!(millis_at(&readings, 100_000 * STEP).abs_diff(100_000) <= 1);
    }

    /// Several CPUs tick at once, and jiffies go back.
    #[test]
    fn threads_keep_the_order() {
        const TICKS: u64 = if cfg!(miri) { 50 } else { 20_000 };
        let (clock, now) = (Clock::default(), AtomicU64::new(0));
        let tick = || {
            for _ in 0..TICKS {
                let jiffies = now.fetch_add(7, Ordering::Relaxed);
                clock.tick(jiffies, || jiffies * 4);
            }
        };
        std::thread::scope(|scope| {
            (0..3).for_each(|_| drop(scope.spawn(tick)));
            for _ in 0..5 {
                clock.clear();
                assert!(clock.until(LAST).is_sorted());
            }
        });
        // The readings of the other threads may all have been cleared.
        tick();
        let readings = clock.until(LAST);
        assert!(readings.len() > 1 && readings.is_sorted_by(|a, b| a.jiffies < b.jiffies && a.millis <= b.millis));
    }
}
