//! libleak's own memory: how much of it is in use, and what happens when there is no more.
//!
//! Rust ends the process when memory fails, which here is QEMU. So large tables ask first
//! ([`may_have`]), and what is small gets its memory from a reserve that was set aside at start;
//! that it had to is seen ([`is_short`]), and from then on nothing is tracked that needs more.

use parking_lot::Mutex;
use std::alloc::{GlobalAlloc, Layout, System};
use std::ptr::null_mut;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicPtr, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Bytes of the reserve.
const RESERVE: usize = 8 << 20;
/// More is not taken of it at once: who wants as much asks first.
const MAX_FROM_RESERVE: usize = 1 << 20;
/// Counters. Memory of different threads is mostly of different arenas, and so of different
/// counters.
const COUNTERS: usize = 16;

/// A counter in cache lines of its own.
#[repr(align(128))]
struct Counter(AtomicI64);

/// Bytes in use. An allocator has no owner but the process, and so with all that follows.
static USED: [Counter; COUNTERS] = [const { Counter(AtomicI64::new(0)) }; COUNTERS];
/// Most bytes, by `max-memory=`.
static LIMIT: AtomicU64 = AtomicU64::new(u64::MAX);
/// The system had no memory, and the reserve was needed.
static SHORT: AtomicBool = AtomicBool::new(false);
/// Where the reserve is; null before [`set_aside`].
static RESERVED: AtomicPtr<u8> = AtomicPtr::new(null_mut());
/// Of the reserve, in the upper half how many bytes are given out, and in the lower one how many
/// pieces are in use. When it is none, all of it is free again. No lock: who waits for one may need
/// memory for that.
static GIVEN: AtomicU64 = AtomicU64::new(0);

/// The system's allocator, with a counter and a reserve.
struct Counted;

/// What Rust allocates by.
#[global_allocator]
static ALLOCATOR: Counted = Counted;

#[inline]
fn count(at: *mut u8, bytes: i64) {
    USED[(at as usize >> 12) % COUNTERS].0.fetch_add(bytes, Ordering::Relaxed);
}

/// The offset of a piece of the reserve.
#[inline]
fn in_reserve(at: *mut u8) -> bool {
    let start = RESERVED.load(Ordering::Relaxed);
    !start.is_null() && (at as usize).wrapping_sub(start as usize) < RESERVE
}

/// A piece of the reserve; null if it has no room, or is not there.
#[cold]
fn from_reserve(layout: Layout) -> *mut u8 {
    let start = RESERVED.load(Ordering::Relaxed);
    if start.is_null() || layout.size() > MAX_FROM_RESERVE {
        return null_mut();
    }
    SHORT.store(true, Ordering::Relaxed);
    let mut at = 0;
    let given = GIVEN.fetch_update(Ordering::AcqRel, Ordering::Relaxed, |given| {
        at = (start as usize + (given >> 32) as usize).next_multiple_of(layout.align()) - start as usize;
        let end = at + layout.size();
        (end <= RESERVE).then_some(((end as u64) << 32) | ((given & u64::from(u32::MAX)) + 1))
    });
    given.map_or(null_mut(), |_| start.wrapping_add(at))
}

#[cold]
fn to_reserve() {
    let less = |given: u64| Some(if given as u32 <= 1 { 0 } else { given - 1 });
    let _ = GIVEN.fetch_update(Ordering::AcqRel, Ordering::Relaxed, less);
}

// SAFETY: memory is the system's own, handed on as it is; or a piece of the reserve, which is the
// system's too, belongs to nobody else, is aligned as asked for, and overlaps no other piece that
// is in use, since pieces follow each other until none is in use. Nothing here panics or allocates.
unsafe impl GlobalAlloc for Counted {
    #[inline]
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: by this function's own contract.
        let at = unsafe { System.alloc(layout) };
        if at.is_null() {
            return from_reserve(layout);
        }
        count(at, layout.size() as i64);
        at
    }

    #[inline]
    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: by this function's own contract.
        let at = unsafe { System.alloc_zeroed(layout) };
        if !at.is_null() {
            count(at, layout.size() as i64);
            return at;
        }
        let at = from_reserve(layout);
        if !at.is_null() {
            // SAFETY: a piece of so many bytes, which nobody else has.
            unsafe { at.write_bytes(0, layout.size()) };
        }
        at
    }

    #[inline]
    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        if in_reserve(at) {
            return to_reserve();
        }
        count(at, -(layout.size() as i64));
        // SAFETY: by this function's own contract, and it is none of the reserve's.
        unsafe { System.dealloc(at, layout) }
    }

    #[inline]
    unsafe fn realloc(&self, at: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        if !in_reserve(at) {
            // SAFETY: by this function's own contract, and it is none of the reserve's.
            let new = unsafe { System.realloc(at, layout, size) };
            if !new.is_null() {
                count(at, -(layout.size() as i64));
                count(new, size as i64);
                return new;
            }
        }
        // SAFETY: the alignment is one, and `size` is not too large for it, by this function's own
        // contract. What is copied both have, and they are different pieces.
        unsafe {
            let new = self.alloc(Layout::from_size_align_unchecked(size, layout.align()));
            if !new.is_null() {
                new.copy_from_nonoverlapping(at, layout.size().min(size));
                self.dealloc(at, layout);
            }
            new
        }
    }
}

/// Sets the reserve aside, for as long as QEMU lives, and the limit in bytes, if there is one.
pub fn set_aside(limit: Option<u64>) {
    LIMIT.store(limit.unwrap_or(u64::MAX), Ordering::Relaxed);
    let mut reserve = Vec::new();
    if RESERVED.load(Ordering::Relaxed).is_null() && reserve.try_reserve_exact(RESERVE).is_ok() {
        // Written, so that it is there when the host itself runs out.
        reserve.resize(RESERVE, 1u8);
        RESERVED.store(reserve.leak().as_mut_ptr(), Ordering::Relaxed);
    }
}

/// Bytes in use.
pub fn used() -> u64 {
    USED.iter().map(|n| n.0.load(Ordering::Relaxed)).sum::<i64>().max(0) as u64
}

/// Whether the system had no memory for us, and the reserve was needed.
pub fn is_short() -> bool {
    SHORT.load(Ordering::Relaxed)
}

/// Whether there are so many bytes more: within the limit, and of the system, with some to spare
/// for QEMU itself.
pub fn may_have(bytes: u64) -> bool {
    let within = used().saturating_add(bytes) <= LIMIT.load(Ordering::Relaxed);
    let with_spare = usize::try_from(bytes).ok().and_then(|n| n.checked_add(RESERVE));
    within && with_spare.is_some_and(|n| Vec::<u8>::new().try_reserve_exact(n).is_ok())
}

/// Has the system's allocator give back what is free, so that [`may_have`] finds it.
pub fn give_back() {
    let began = Instant::now();
    // SAFETY: it takes no memory of ours, and none that is in use.
    unsafe { libc::malloc_trim(0) };
    log::debug!("free memory given back in {:?}", began.elapsed());
}

/// As [`give_back`], once a minute at most. What checks took for a moment would stay with QEMU: the
/// system's allocator keeps most of it, in an arena for each thread.
pub fn give_back_at_times() {
    /// When that was last; the arenas are the whole process's.
    static LAST: Mutex<Option<Instant>> = Mutex::new(None);
    let mut last = LAST.lock();
    if last.is_none_or(|at| at.elapsed() >= Duration::from_secs(60)) {
        give_back();
        *last = Some(Instant::now());
    }
}

/// The limit, where there is one.
pub fn limit() -> Option<u64> {
    Some(LIMIT.load(Ordering::Relaxed)).filter(|limit| *limit != u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_counted_and_the_reserve_comes_back() {
        // Much more than all other tests together, which run meanwhile; nothing is written to it.
        const BIG: u64 = 4 << 30;
        let before = used();
        let big = std::hint::black_box(vec![0u8; BIG as usize]);
        assert!(used().abs_diff(before + BIG) < BIG / 8, "{} before, now {}", before, used());
        drop(big);
        assert!(used().abs_diff(before) < BIG / 8, "{} before, now {}", before, used());
        assert!(may_have(1 << 20) && !may_have(1 << 60));

        set_aside(None);
        let layout = Layout::from_size_align(1000, 64).unwrap();
        let pieces: Vec<_> = (0..100).map(|_| from_reserve(layout)).collect();
        for (i, at) in pieces.iter().enumerate() {
            assert!(in_reserve(*at) && (*at as usize).is_multiple_of(64));
            // SAFETY: a piece of 1000 bytes, of nobody else's.
            unsafe { at.write_bytes(i as u8, 1000) };
        }
        for (i, at) in pieces.iter().enumerate() {
            // SAFETY: as above; what grows is copied.
            unsafe {
                let grown = ALLOCATOR.realloc(*at, layout, 2000);
                assert!(!in_reserve(grown) && *grown.add(999) == i as u8);
                ALLOCATOR.dealloc(grown, Layout::from_size_align(2000, 64).unwrap());
            }
        }
        assert!(is_short());
        assert_eq!(GIVEN.load(Ordering::Relaxed), 0);
        let too_large = Layout::from_size_align(MAX_FROM_RESERVE + 1, 8).unwrap();
        assert!(from_reserve(too_large).is_null());
        let mut taken = 0;
        while !from_reserve(Layout::from_size_align(MAX_FROM_RESERVE, 8).unwrap()).is_null() {
            taken += 1;
        }
        assert_eq!(taken, RESERVE / MAX_FROM_RESERVE);
        (0..taken).for_each(|_| to_reserve());
    }
}
