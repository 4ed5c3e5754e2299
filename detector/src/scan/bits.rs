//! A set of block numbers that several threads may add to.

use std::sync::atomic::{AtomicU64, Ordering};

/// A set of block numbers below a fixed bound, one bit each.
#[derive(Debug, Default)]
pub struct Bits {
    words: Vec<AtomicU64>,
    len: usize,
}

impl Bits {
    /// The empty set of numbers below `len`.
    pub fn new(len: usize) -> Bits {
        Bits { words: (0..len.div_ceil(64)).map(|_| AtomicU64::new(0)).collect(), len }
    }

    /// Whether the set contains `i`. Numbers at or above the bound are not in the set.
    #[inline]
    pub fn get(&self, i: u32) -> bool {
        self.words.get(i as usize / 64).is_some_and(|w| w.load(Ordering::Relaxed) >> (i % 64) & 1 != 0)
    }

    /// Adds `i` and returns whether it is new. If several threads add one number, one of them gets
    /// `true`.
    ///
    /// # Panics
    /// If `i` is not below the bound.
    #[inline]
    pub fn set(&self, i: u32) -> bool {
        assert!((i as usize) < self.len);
        // Threads exchange nothing but the bit, so relaxed ordering is enough.
        self.words[i as usize / 64].fetch_or(1 << (i % 64), Ordering::Relaxed) >> (i % 64) & 1 == 0
    }

    /// The numbers in the set, ascending.
    pub fn ones(&self) -> impl Iterator<Item = u32> + '_ {
        self.each_bit(|word| word)
    }

    /// The numbers below the bound that are not in the set, ascending.
    pub fn zeros(&self) -> impl Iterator<Item = u32> + '_ {
        self.each_bit(|word| !word).take_while(|&i| (i as usize) < self.len)
    }

    fn each_bit(&self, of: impl Fn(u64) -> u64 + Copy + 'static) -> impl Iterator<Item = u32> + '_ {
        self.words.iter().enumerate().flat_map(move |(i, word)| {
            let mut rest = of(word.load(Ordering::Relaxed));
            std::iter::from_fn(move || {
                let bit = rest.trailing_zeros();
                (rest != 0).then(|| {
                    rest &= rest - 1;
                    i as u32 * 64 + bit
                })
            })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_come_back() {
        let bits = Bits::new(130);
        assert!(bits.set(0) && bits.set(64) && bits.set(129) && !bits.set(64));
        assert_eq!(bits.ones().collect::<Vec<_>>(), [0, 64, 129]);
        assert_eq!(bits.zeros().count(), 127);
        assert!(bits.get(129) && !bits.get(128) && !bits.get(1000));
        assert_eq!(Bits::new(0).zeros().count(), 0);
    }
}
