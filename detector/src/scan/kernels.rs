//! Filters words that cannot be addresses of blocks, by their value alone. Most words are such.
//!
//! The filter exists twice: for any CPU, and for CPUs with AVX2, which are detected at run time.
//! All unsafe code of this crate is in this file.

use std::ops::Range;

/// Words filtered at once. The result has one bit for each.
pub(crate) const WORDS: usize = 64;
/// Most ranges in the lower half of the address space. Each costs three instructions per vector.
const MAX_RANGES: usize = 4;
/// The start of the upper half of the address space, which belongs to the kernel. This bit is the
/// sign bit of a vector element.
const UPPER: u64 = 1 << 63;

/// How words are filtered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Variant {
    /// No filter: every word is looked up.
    Naive,
    /// One word at a time.
    Generic,
    /// Four words at a time.
    Avx2,
}

impl Variant {
    /// The fastest variant of this CPU.
    pub fn best() -> Variant {
        #[cfg(target_arch = "x86_64")]
        if std::arch::is_x86_feature_detected!("avx2") {
            return Variant::Avx2;
        }
        Variant::Generic
    }
}

/// A range of words in the lower half of the address space.
#[derive(Debug, Clone, Copy)]
struct Window {
    start: u64,
    len: u64,
}

/// A superset of the addresses of all blocks.
///
/// Kernel addresses lie in the upper half of the address space. Hardly any other word in memory has
/// the top bit set, so this bit is the only test. `__percpu` pointers in the lower half are small
/// numbers, as most words are, so they need ranges.
#[derive(Debug, Clone)]
pub(crate) struct Windows {
    /// Whether there are addresses in the upper half.
    upper: bool,
    /// Addresses in the lower half.
    lower: Vec<Window>,
    variant: Variant,
}

impl Windows {
    /// Builds the filter. If there are too many ranges, the closest ones are merged.
    pub(crate) fn new(ranges: impl IntoIterator<Item = Range<u64>>, variant: Variant) -> Windows {
        let ranges: Vec<_> = ranges.into_iter().filter(|r| !r.is_empty()).collect();
        let mut lower: Vec<_> = ranges.iter().filter(|r| r.start < UPPER).map(|r| r.start..r.end.min(UPPER)).collect();
        lower.sort_by_key(|r| r.start);
        while lower.len() > MAX_RANGES {
            let gap = |i: &usize| lower[i + 1].start.saturating_sub(lower[*i].end);
            let closest = (0..lower.len() - 1).min_by_key(gap).unwrap_or(0);
            let next = lower.remove(closest + 1);
            lower[closest].end = lower[closest].end.max(next.end);
        }
        // A variant that the CPU does not have is never used.
        let variant = if variant == Variant::Avx2 { Variant::best() } else { variant };
        let lower = lower.into_iter().map(|r| Window { start: r.start, len: r.end - r.start }).collect();
        Windows { upper: ranges.iter().any(|r| r.end > UPPER), lower, variant }
    }

    /// Returns one bit for each of the first [`WORDS`] words. It is set if the word may be an
    /// address.
    #[inline]
    pub(crate) fn candidates(&self, words: &[[u8; 8]]) -> u64 {
        let words = &words[..words.len().min(WORDS)];
        match self.variant {
            Variant::Naive => u64::MAX.unbounded_shr((WORDS - words.len()) as u32),
            Variant::Generic => self.generic(words, 0),
            Variant::Avx2 => {
                #[cfg(target_arch = "x86_64")]
                // SAFETY: `Windows::new` leaves this variant only where the CPU has AVX2.
                return unsafe { self.avx2(words) };
                #[cfg(not(target_arch = "x86_64"))]
                self.generic(words, 0)
            }
        }
    }

    #[inline]
    fn generic(&self, words: &[[u8; 8]], shift: usize) -> u64 {
        let mut mask = 0;
        for (i, word) in words.iter().enumerate() {
            let word = u64::from_le_bytes(*word);
            let inside = self.upper && word >= UPPER
                || self.lower.iter().any(|window| word.wrapping_sub(window.start) < window.len);
            mask |= u64::from(inside) << (i + shift);
        }
        mask
    }

    /// # Safety
    /// The CPU has AVX2.
    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx2")]
    unsafe fn avx2(&self, words: &[[u8; 8]]) -> u64 {
        let (groups, rest) = words.as_chunks::<4>();
        // Each number of ranges has a loop of its own.
        let mask = match *self.lower {
            [] => self.avx2_of(groups, []),
            [a] => self.avx2_of(groups, [a]),
            [a, b] => self.avx2_of(groups, [a, b]),
            [a, b, c] => self.avx2_of(groups, [a, b, c]),
            [a, b, c, d, ..] => self.avx2_of(groups, [a, b, c, d]),
        };
        mask | self.generic(rest, 4 * groups.len())
    }

    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx2")]
    #[inline]
    fn avx2_of<const N: usize>(&self, groups: &[[[u8; 8]; 4]], lower: [Window; N]) -> u64 {
        use std::arch::x86_64::*;
        // The test is `word - start < len`, unsigned. AVX2 has signed comparisons only, so both
        // sides are reduced by 2^63.
        let (mut starts, mut lens) = ([_mm256_setzero_si256(); N], [_mm256_setzero_si256(); N]);
        for i in 0..N {
            starts[i] = _mm256_set1_epi64x(lower[i].start.wrapping_sub(UPPER) as i64);
            lens[i] = _mm256_set1_epi64x((lower[i].len ^ UPPER) as i64);
        }
        let upper = _mm256_set1_epi64x(if self.upper { -1 } else { 0 });
        let mut mask = 0;
        for (i, group) in groups.iter().enumerate() {
            // SAFETY: `group` has 32 bytes, the size of a vector. This load needs no alignment.
            let four = unsafe { _mm256_loadu_si256(group.as_ptr().cast()) };
            let mut inside = _mm256_and_si256(four, upper);
            for i in 0..N {
                inside = _mm256_or_si256(inside, _mm256_cmpgt_epi64(lens[i], _mm256_sub_epi64(four, starts[i])));
            }
            mask |= u64::from(_mm256_movemask_pd(_mm256_castsi256_pd(inside)) as u32) << (4 * i);
        }
        mask
    }
}

/// Prefetches the first cache line of a value that is about to be read.
#[inline]
pub fn prefetch<T: ?Sized>(value: &T) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a prefetch is a hint. It has no visible effect and never faults.
    unsafe {
        std::arch::x86_64::_mm_prefetch::<{ std::arch::x86_64::_MM_HINT_T0 }>((&raw const *value).cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = value;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variants_agree_at_the_edges() {
        let ranges =
            [0x1000u64..0x2000, 0x6000_0000_0000..0x6000_0000_0004, 0xffff_8880_0000_0000..0xffff_8880_4000_0000];
        let edges = ranges.iter().flat_map(|r| [r.start.wrapping_sub(1), r.start, r.end - 1, r.end]);
        let words: Vec<[u8; 8]> =
            edges.chain([0, u64::MAX, UPPER, UPPER - 1]).cycle().take(61).map(u64::to_le_bytes).collect();
        for n in 0..words.len() {
            let of = |variant| Windows::new(ranges.clone(), variant).candidates(&words[..n]);
            assert_eq!(of(Variant::Avx2), of(Variant::Generic));
            assert_eq!(of(Variant::Generic) & !of(Variant::Naive), 0);
            assert_eq!(of(Variant::Naive).count_ones() as usize, n);
        }
        assert_eq!(Windows::new(ranges, Variant::Generic).candidates(&words[..4]), 0b0110);
        assert_eq!(Windows::new([], Variant::best()).candidates(&words), 0);
        assert_eq!(Windows::new([0x1000..0x1001, 0..0], Variant::best()).candidates(&words[12..20]), 0b10_0000);
    }

    #[test]
    fn many_ranges_become_few() {
        let ranges = (0..20u64).map(|i| i * i * 1000..i * i * 1000 + 10);
        let windows = Windows::new(ranges.clone(), Variant::best());
        assert_eq!(windows.lower.len(), MAX_RANGES);
        let words: Vec<[u8; 8]> = ranges.flat_map(|r| [r.start, r.end - 1]).map(u64::to_le_bytes).collect();
        assert_eq!(windows.candidates(&words), u64::MAX >> (64 - words.len()));
    }
}
