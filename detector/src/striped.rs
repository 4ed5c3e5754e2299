//! A counter that many threads raise, each mostly in a cache line of its own.

use std::cell::Cell;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

const STRIPES: usize = 16;

/// Two lines, since they are fetched in pairs.
#[derive(Default)]
#[repr(align(128))]
struct Stripe(AtomicU64);

static NEXT: AtomicUsize = AtomicUsize::new(0);

thread_local! {
    static MINE: Cell<usize> = Cell::new(NEXT.fetch_add(1, Ordering::Relaxed) % STRIPES);
}

/// The counter.
#[derive(Default)]
pub struct Striped([Stripe; STRIPES]);

impl Striped {
    /// Adds to it, modulo 2 to the 64.
    #[inline]
    pub fn add(&self, n: u64) {
        self.0[MINE.get()].0.fetch_add(n, Ordering::Relaxed);
    }

    /// Its value.
    pub fn get(&self) -> u64 {
        self.0.iter().fold(0, |sum, stripe| sum.wrapping_add(stripe.0.load(Ordering::Relaxed)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_lost() {
        let counter = Striped::default();
        std::thread::scope(|scope| {
            (0..20).for_each(|_| drop(scope.spawn(|| (0..1000).for_each(|_| counter.add(1)))));
        });
        counter.add(u64::MAX);
        assert_eq!(counter.get(), 19_999);
    }
}
