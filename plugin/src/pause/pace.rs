//! The guest's own time: whoever stops it leaves it running afterwards for as long as it stood
//! still, so that neither a client nor a CPU that asks for one pause after the other keeps the rest
//! from its work.

use parking_lot::Mutex;
use std::time::{Duration, Instant};

/// When the guest may be stopped again.
#[derive(Default)]
pub struct Pace(Mutex<Option<Instant>>);

impl Pace {
    /// The guest stood still for `pause`, until `now`.
    pub fn paused(&self, now: Instant, pause: Duration) {
        *self.0.lock() = now.checked_add(pause);
    }

    /// How long it is to run yet.
    pub fn rest(&self, now: Instant) -> Duration {
        let until = *self.0.lock();
        until.map_or(Duration::ZERO, |until| until.saturating_duration_since(now))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_runs_as_long_as_it_stood() {
        let (pace, now, ms) = (Pace::default(), Instant::now(), Duration::from_millis);
        assert_eq!(pace.rest(now), ms(0));
        pace.paused(now, ms(20));
        assert_eq!((pace.rest(now), pace.rest(now + ms(5)), pace.rest(now + ms(21))), (ms(20), ms(15), ms(0)));
        pace.paused(now + ms(30), ms(3));
        assert_eq!(pace.rest(now + ms(30)), ms(3));
        pace.paused(now, Duration::MAX);
        assert_eq!(pace.rest(now), ms(0));
    }
}
