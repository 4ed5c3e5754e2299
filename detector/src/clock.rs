//! The guest's jiffies against the host's clock: when an object was allocated is kept in jiffies, and its age is told, and judged,
//! in the host's time.

use parking_lot::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

/// Jiffies between two readings, at least: 64 to 640 ms, as kernels are configured.
const STEP: u64 = 64;
/// Readings kept. Of the older half every second one is dropped then.
const MAX: usize = 1 << 16;

/// What the guest's jiffies were, and milliseconds since the start of tracking then.
pub type Reading = (u64, u64);

/// Readings of both clocks, ascending.
#[derive(Default)]
pub struct Clock {
    next: AtomicU64,
    readings: Mutex<Vec<Reading>>,
}

impl Clock {
    /// The guest's jiffies are now `jiffies`, and `millis` says what time it is; it is asked now and then.
    #[inline]
    pub fn tick(&self, jiffies: u64, millis: impl FnOnce() -> u64) {
        if jiffies >= self.next.load(Ordering::Relaxed) {
            self.read(jiffies, millis());
        }
    }

    #[cold]
    fn read(&self, jiffies: u64, millis: u64) {
        let mut readings = self.readings.lock();
        // Of two CPUs that come here at once, the later may have been first.
        if readings.last().is_some_and(|&(last, then)| jiffies <= last || millis < then) {
            return;
        }
        readings.push((jiffies, millis));
        self.next.store(jiffies.saturating_add(STEP), Ordering::Relaxed);
        if readings.len() == MAX {
            let mut number = 0;
            readings.retain(|_| {
                number += 1;
                number > MAX / 2 || number % 2 == 0
            });
        }
    }

    /// Forgets all readings: jiffies went back.
    pub fn clear(&self) {
        self.readings.lock().clear();
        self.next.store(0, Ordering::Relaxed);
    }

    /// Forgets the readings after `jiffies`: the guest goes on from there.
    pub fn go_back(&self, jiffies: u64) {
        self.readings.lock().retain(|&(then, _)| then <= jiffies);
        self.next.store(0, Ordering::Relaxed);
    }

    /// All readings, and the one of now.
    pub fn until(&self, now: Reading) -> Vec<Reading> {
        let mut readings = self.readings.lock().clone();
        readings.retain(|&(jiffies, millis)| jiffies < now.0 && millis <= now.1);
        readings.push(now);
        readings
    }
}

/// Milliseconds at the moment when jiffies were `jiffies`: between two readings as if time had gone evenly.
pub fn millis_at(readings: &[Reading], jiffies: u64) -> u64 {
    let after = readings.partition_point(|r| r.0 < jiffies);
    match (after.checked_sub(1).and_then(|i| readings.get(i)), readings.get(after)) {
        (None, None) => 0,
        (Some((_, millis)), None) | (None, Some((_, millis))) => *millis,
        (Some(a), Some(b)) => {
            let part = (jiffies - a.0) as f64 / (b.0 - a.0) as f64;
            a.1 + ((b.1 - a.1) as f64 * part) as u64
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn between_readings() {
        let clock = Clock::default();
        clock.tick(1000, || 10);
        clock.tick(1001, || unreachable!("too early to read again"));
        clock.tick(1100, || 410);
        let readings = clock.until((1200, 1000));
        assert_eq!(readings, [(1000, 10), (1100, 410), (1200, 1000)]);
        let at = |jiffies| millis_at(&readings, jiffies);
        assert_eq!([at(900), at(1000), at(1025), at(1100), at(1199), at(5000)], [10, 10, 110, 410, 994, 1000]);
        clock.go_back(1050);
        clock.tick(1060, || 900);
        assert_eq!(clock.until((1070, 910)), [(1000, 10), (1060, 900), (1070, 910)]);
        clock.clear();
        assert_eq!(clock.until((5, 6)), [(5, 6)]);
        assert_eq!(millis_at(&[], 7), 0);
    }

    #[test]
    #[cfg_attr(miri, ignore = "as many readings as make it full take minutes there")]
    fn room_is_bounded_and_order_kept() {
        let clock = Clock::default();
        (0..200_000).for_each(|i| clock.tick(i * STEP, || i));
        let readings = clock.until((u64::MAX, u64::MAX));
        assert!(readings.len() <= MAX && readings.is_sorted());
        assert!(millis_at(&readings, 100_000 * STEP).abs_diff(100_000) <= 1);
    }

    /// CPUs that come at once, and jiffies that go back.
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
                assert!(clock.until((u64::MAX, u64::MAX)).is_sorted());
            }
        });
        // All of the others' may have been forgotten.
        tick();
        let readings = clock.until((u64::MAX, u64::MAX));
        assert!(readings.len() > 1 && readings.is_sorted_by(|a, b| a.0 < b.0 && a.1 <= b.1));
    }
}
