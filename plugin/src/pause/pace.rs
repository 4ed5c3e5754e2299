//! Limits pauses: after a pause the guest runs at least as long as it was stopped. So repeated
//! demands cannot stop the guest for more than half of the time.

use parking_lot::Mutex;
use std::time::{Duration, Instant};

/// When the guest may be stopped again.
#[derive(Default)]
pub struct Pace(Mutex<Option<Instant>>);

impl Pace {
    /// The guest was stopped for `pause`, until `now`.
    pub fn paused(&self, now: Instant, pause: Duration) {
        *self.0.lock() = now.checked_add(pause);
    }

    /// How long the guest is to run before the next pause.
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
