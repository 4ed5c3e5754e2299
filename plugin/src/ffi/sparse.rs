//! Large tables of numbers that are mostly zero. The host assigns memory for the parts that are
//! written to.

use detector::history::Table;
use std::ops::Deref;
use std::ptr::null_mut;
use std::sync::atomic::AtomicU32;

/// A table, all zero at first.
pub struct Sparse {
    start: *mut AtomicU32,
    len: usize,
}

// SAFETY: the memory is owned, and consists of atomic numbers.
unsafe impl Send for Sparse {}
// SAFETY: as above.
unsafe impl Sync for Sparse {}

impl Sparse {
    /// A table of `len` numbers. `None` if the host gives no address space for it.
    pub fn new(len: usize) -> Option<Sparse> {
        let bytes = len.max(1).checked_mul(size_of::<AtomicU32>())?;
        let (protection, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
        // SAFETY: a new mapping that nothing else uses.
        let start = unsafe { libc::mmap(null_mut(), bytes, protection, flags | libc::MAP_NORESERVE, -1, 0) };
        if start == libc::MAP_FAILED {
            return None;
        }
        // With huge pages, one number could take 2 MiB. Without this advice it still works.
        // SAFETY: the mapping is owned.
        unsafe {
            libc::madvise(start, bytes, libc::MADV_NOHUGEPAGE);
            libc::madvise(start, bytes, libc::MADV_DONTDUMP);
        }
        Some(Sparse { start: start.cast(), len: len.max(1) })
    }
}

impl Table for Sparse {
    fn clear(&self) {
        // SAFETY: the mapping is owned and private. Numbers that other threads read or write
        // meanwhile are zero, or what they write.
        unsafe { libc::madvise(self.start.cast(), self.len * size_of::<AtomicU32>(), libc::MADV_DONTNEED) };
    }
}

impl Deref for Sparse {
    type Target = [AtomicU32];

    #[inline]
    fn deref(&self) -> &[AtomicU32] {
        // SAFETY: the mapping has this many numbers, is aligned to pages, and is zero at first.
        unsafe { std::slice::from_raw_parts(self.start, self.len) }
    }
}

impl Drop for Sparse {
    fn drop(&mut self) {
        // SAFETY: the mapping is owned, and no slice outlives it.
        unsafe { libc::munmap(self.start.cast(), self.len * size_of::<AtomicU32>()) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::Ordering;

    #[test]
    fn what_is_not_written_takes_no_memory() {
        // More than any host has.
        let table = Sparse::new(1 << 40).unwrap();
        table[(1 << 40) - 1].store(7, Ordering::Relaxed);
        assert_eq!((table[1 << 39].load(Ordering::Relaxed), table.last().unwrap().load(Ordering::Relaxed)), (0, 7));
        assert!(Sparse::new(1 << 62).is_none());
    }
}
