//! Counters that many threads raise without sharing a cache line.

use std::cell::Cell;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

const STRIPES: usize = 16;

/// Two cache lines, since the CPU fetches them in pairs.
#[derive(Default)]
#[repr(align(128))]
struct Stripe<const N: usize>([AtomicU64; N])
where
    [AtomicU64; N]: Default;

static NEXT: AtomicUsize = AtomicUsize::new(0);

thread_local! {
    static MINE: Cell<usize> = Cell::new(NEXT.fetch_add(1, Ordering::Relaxed) % STRIPES);
}

/// `N` counters that are raised by the same thread at the same time.
#[derive(Default)]
pub struct Striped<const N: usize>([Stripe<N>; STRIPES])
where
    [AtomicU64; N]: Default;

impl<const N: usize> Striped<N>
where
    [AtomicU64; N]: Default,
{
    /// Adds `n` to a counter, modulo 2^64.
    #[inline]
    pub fn add(&self, counter: usize, n: u64) {
        self.0[MINE.get()].0[counter].fetch_add(n, Ordering::Relaxed);
    }

    /// The value of a counter: the sum over all stripes.
    pub fn get(&self, counter: usize) -> u64 {
        self.0.iter().fold(0, |sum, stripe| sum.wrapping_add(stripe.0[counter].load(Ordering::Relaxed)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_lost() {
        let counters = Striped::<2>::default();
        std::thread::scope(|scope| {
            (0..20).for_each(|_| drop(scope.spawn(|| (0..1000).for_each(|_| counters.add(1, 1)))));
        });
        counters.add(1, u64::MAX);
        assert_eq!((counters.get(0), counters.get(1)), (0, 19_999));
    }
}
