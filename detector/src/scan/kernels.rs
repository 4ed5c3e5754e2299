//! Which words of a run of memory may be addresses of blocks at all: most are not, and are told by their value alone.
//!
//! The same is written twice, for any CPU and for those with AVX2, which is asked for at run time. All of this crate's
//! unsafe code is here.

use std::ops::Range;

/// Words looked at in one go: a bit each of the result.
pub(crate) const WORDS: usize = 64;
/// Ranges in the lower half of the address space at most: each costs three instructions a vector.
const MAX_RANGES: usize = 4;
/// The upper half of the address space, which is the kernel's. It is the sign of a vector's element.
const UPPER: u64 = 1 << 63;

/// How words are looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Variant {
    /// Every word is looked up.
    Naive,
    /// Word by word.
    Generic,
    /// Four words at a time.
    Avx2,
}

impl Variant {
    /// The fastest that this CPU has.
    pub fn best() -> Variant {
        #[cfg(target_arch = "x86_64")]
        if std::arch::is_x86_feature_detected!("avx2") {
            return Variant::Avx2;
        }
        Variant::Generic
    }
}

/// Where all addresses of blocks lie, roughly. In the upper half of the address space are the kernel's, and in memory hardly
/// anything else that has its first bit, so that this bit alone tells them; what `__percpu` pointers there are in the lower half
/// are small numbers, and so are most words.
#[derive(Debug, Clone)]
pub(crate) struct Windows {
    /// Whether there are addresses in the upper half.
    upper: bool,
    /// Those in the lower, as starts and lengths.
    lower: Vec<(u64, u64)>,
    variant: Variant,
}

impl Windows {
    /// For these ranges. Where they are too many, those that are closest become one.
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
        // What is not to be had is not used, whoever asks for it.
        let variant = if variant == Variant::Avx2 { Variant::best() } else { variant };
        let lower = lower.into_iter().map(|r| (r.start, r.end - r.start)).collect();
        Windows { upper: ranges.iter().any(|r| r.end > UPPER), lower, variant }
    }

    /// For each of the first [`WORDS`] words a bit, which is up if it may be the address of a block.
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
            let inside =
                self.upper && word >= UPPER || self.lower.iter().any(|&(from, len)| word.wrapping_sub(from) < len);
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
        // The number of ranges is known where the loop is compiled.
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
    fn avx2_of<const N: usize>(&self, groups: &[[[u8; 8]; 4]], lower: [(u64, u64); N]) -> u64 {
        use std::arch::x86_64::*;
        // word - from < len, unsigned: there are only signed comparisons, of what is that much less.
        let (mut starts, mut lens) = ([_mm256_setzero_si256(); N], [_mm256_setzero_si256(); N]);
        for i in 0..N {
            starts[i] = _mm256_set1_epi64x(lower[i].0.wrapping_sub(UPPER) as i64);
            lens[i] = _mm256_set1_epi64x((lower[i].1 ^ UPPER) as i64);
        }
        let upper = _mm256_set1_epi64x(if self.upper { -1 } else { 0 });
        let mut mask = 0;
        for (i, group) in groups.iter().enumerate() {
            // SAFETY: `group` is 32 bytes, which are a vector; this load asks for no alignment.
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

/// Has the first cache line of a value brought closer: it is about to be read.
#[inline]
pub fn prefetch<T: ?Sized>(value: &T) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a hint, which reads nothing that could be told, and never faults.
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
