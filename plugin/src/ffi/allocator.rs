//! libleak's own memory: how much is in use, and what happens when there is no more.
//!
//! When an allocation fails, Rust ends the process, which is QEMU. So large tables ask first
//! ([`may_have`]). Small allocations fall back on a reserve that is set aside at start. Once the
//! reserve was needed ([`is_short`]), no new objects are tracked.

use parking_lot::Mutex;
use std::alloc::{GlobalAlloc, Layout, System};
use std::ptr::null_mut;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicPtr, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Bytes of the reserve.
const RESERVE: usize = 8 << 20;
/// Largest piece of the reserve in bytes. Larger allocations ask first.
const MAX_FROM_RESERVE: usize = 1 << 20;
/// Number of counters. Threads mostly use different arenas, and so different counters.
const COUNTERS: usize = 16;

/// A counter in its own cache lines.
#[repr(align(128))]
struct Counter(AtomicI64);

/// Bytes in use. The allocator belongs to the whole process, so its state is static.
static USED: [Counter; COUNTERS] = [const { Counter(AtomicI64::new(0)) }; COUNTERS];
/// Bytes of [sparse tables](super::sparse) in use.
static TABLES: AtomicU64 = AtomicU64::new(0);
/// The limit of `max-memory=` in bytes.
static LIMIT: AtomicU64 = AtomicU64::new(u64::MAX);
/// The system was out of memory, and the reserve was needed.
static SHORT: AtomicBool = AtomicBool::new(false);
/// The start of the reserve; null before [`set_aside`].
static RESERVED: AtomicPtr<u8> = AtomicPtr::new(null_mut());
/// Upper half: bytes of the reserve that are given out. Lower half: pieces in use; when there are
/// none, the whole reserve is free again. There is no lock, because waiting for a lock may
/// allocate.
static GIVEN: AtomicU64 = AtomicU64::new(0);

/// The system's allocator, with a counter and a reserve.
struct Counted;

/// Rust's allocator in this library.
#[global_allocator]
static ALLOCATOR: Counted = Counted;

#[inline]
fn count(at: *mut u8, bytes: i64) {
    USED[(at as usize >> 12) % COUNTERS].0.fetch_add(bytes, Ordering::Relaxed);
}

/// Whether an address lies in the reserve.
#[inline]
fn in_reserve(at: *mut u8) -> bool {
    let start = RESERVED.load(Ordering::Relaxed);
    !start.is_null() && (at as usize).wrapping_sub(start as usize) < RESERVE
}

/// Takes a piece of the reserve; null if there is no room.
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

// SAFETY: memory comes from the system's allocator unchanged, or is a piece of the reserve. A piece
// is aligned as requested and overlaps no other piece in use: pieces follow each other until none
// is in use. Nothing here panics or allocates.
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
            // SAFETY: the piece has this many bytes, and nothing else uses it.
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
        // SAFETY: by this function's own contract; it is not a piece of the reserve.
        unsafe { System.dealloc(at, layout) }
    }

    #[inline]
    unsafe fn realloc(&self, at: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        if !in_reserve(at) {
            // SAFETY: by this function's own contract; it is not a piece of the reserve.
            let new = unsafe { System.realloc(at, layout, size) };
            if !new.is_null() {
                count(at, -(layout.size() as i64));
                count(new, size as i64);
                return new;
            }
        }
        // SAFETY: by this function's own contract the alignment is valid and `size` is not too
        // large. Both pieces have the copied bytes, and they do not overlap.
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

/// Sets the reserve aside for QEMU's lifetime, and sets the limit in bytes, if there is one.
pub fn set_aside(limit: Option<u64>) {
    LIMIT.store(limit.unwrap_or(u64::MAX), Ordering::Relaxed);
    let mut reserve = Vec::new();
    if RESERVED.load(Ordering::Relaxed).is_null() && reserve.try_reserve_exact(RESERVE).is_ok() {
        // Written, so that the host has really assigned the memory.
        reserve.resize(RESERVE, 1u8);
        RESERVED.store(reserve.leak().as_mut_ptr(), Ordering::Relaxed);
    }
}

/// Bytes in use.
pub fn used() -> u64 {
    let allocated = USED.iter().map(|n| n.0.load(Ordering::Relaxed)).sum::<i64>().max(0) as u64;
    allocated + TABLES.load(Ordering::Relaxed)
}

/// Sparse tables have this many bytes in use.
pub fn set_tables(bytes: u64) {
    TABLES.store(bytes, Ordering::Relaxed);
}

/// Whether the system was out of memory, and the reserve was needed.
pub fn is_short() -> bool {
    SHORT.load(Ordering::Relaxed)
}

/// Whether this many bytes are available: within the limit, and from the system with some left for
/// QEMU.
pub fn may_have(bytes: u64) -> bool {
    let within = used().saturating_add(bytes) <= LIMIT.load(Ordering::Relaxed);
    let with_spare = usize::try_from(bytes).ok().and_then(|n| n.checked_add(RESERVE));
    within && with_spare.is_some_and(|n| Vec::<u8>::new().try_reserve_exact(n).is_ok())
}

/// Makes the system's allocator return free memory, so that [`may_have`] finds it.
pub fn give_back() {
    let began = Instant::now();
    // SAFETY: it releases no memory that is in use.
    unsafe { libc::malloc_trim(0) };
    log::debug!("free memory given back in {:?}", began.elapsed());
}

/// As [`give_back`], at most once a minute. The system's allocator keeps most memory that a check
/// has freed, in an arena for each thread.
pub fn give_back_at_times() {
    /// When this was done last. The arenas belong to the whole process.
    static LAST: Mutex<Option<Instant>> = Mutex::new(None);
    let mut last = LAST.lock();
    if last.is_none_or(|at| at.elapsed() >= Duration::from_secs(60)) {
        give_back();
        *last = Some(Instant::now());
    }
}

/// The limit in bytes, if there is one.
pub fn limit() -> Option<u64> {
    Some(LIMIT.load(Ordering::Relaxed)).filter(|limit| *limit != u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_counted_and_the_reserve_comes_back() {
        // Much more than all other tests use together. Nothing is written to it.
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
            // SAFETY: the piece has 1000 bytes, and nothing else uses it.
            unsafe { at.write_bytes(i as u8, 1000) };
        }
        for (i, at) in pieces.iter().enumerate() {
            // SAFETY: as above; realloc copies the bytes.
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
