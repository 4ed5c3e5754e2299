//! Guest physical memory. All other modules access the guest through it.

use std::collections::TryReserveError;
use std::fmt;
use std::ops::Range;

/// Size of a base page in bytes (x86-64).
pub const PAGE_SIZE: u64 = 4096;

/// An address in guest physical address space.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PhysAddr(pub u64);

/// An address in the guest kernel's virtual address space.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct VirtAddr(pub u64);

impl fmt::Debug for PhysAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "phys {:#x}", self.0)
    }
}

impl fmt::Debug for VirtAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "virt {:#x}", self.0)
    }
}

impl PhysAddr {
    /// The page frame number.
    pub fn pfn(self) -> u64 {
        self.0 / PAGE_SIZE
    }
}

impl VirtAddr {
    /// Whether the address is in the kernel's half of the address space, which is the upper one.
    /// User space executes the vsyscall page, so it does not count.
    pub fn is_kernel(self) -> bool {
        (self.0 as i64) < 0 && (self.0 & !0xfff) != 0xffff_ffff_ff60_0000
    }

    /// The address `n` bytes further on. It wraps around as on the CPU.
    pub fn offset(self, n: u64) -> VirtAddr {
        VirtAddr(self.0.wrapping_add(n))
    }
}

/// Why guest memory could not be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum MemoryError {
    /// No RAM is mapped at this physical address.
    #[error("no guest RAM at {0:?}")]
    NoRam(PhysAddr),
    /// The page tables map nothing at this virtual address.
    #[error("nothing is mapped at {0:?}")]
    NotMapped(VirtAddr),
}

/// Guest RAM, addressed by guest physical address.
///
/// Reads may race with a running guest. They then return a mixture of old and new bytes, without
/// undefined behaviour.
pub trait GuestMemory {
    /// Fills `buf` from the physical address `at`.
    ///
    /// # Errors
    /// [`MemoryError::NoRam`] with the first address that is not RAM. The content of `buf` is then
    /// unspecified.
    fn read(&self, at: PhysAddr, buf: &mut [u8]) -> Result<(), MemoryError>;

    /// The ranges of physical addresses that are RAM, ascending and disjoint.
    fn ranges(&self) -> &[Range<u64>];

    /// Whether an address is in RAM.
    #[inline]
    fn contains(&self, at: PhysAddr) -> bool {
        self.ranges().iter().any(|r| r.contains(&at.0))
    }

    /// The little-endian `u64` at `at`. The address should be 8-byte aligned, so that a running
    /// guest cannot tear it.
    ///
    /// # Errors
    /// As in [`GuestMemory::read`].
    fn read_u64(&self, at: PhysAddr) -> Result<u64, MemoryError> {
        let mut buf = [0; 8];
        self.read(at, &mut buf)?;
        Ok(u64::from_le_bytes(buf))
    }
}

/// Guest RAM that nothing writes to: the vCPUs are stopped, or it is a copy. Several threads may
/// read it.
pub trait StoppedMemory: GuestMemory + Sync {
    /// `len` bytes at `at` without a copy. `None` if they are not contiguous RAM.
    fn slice(&self, at: PhysAddr, len: usize) -> Option<&[u8]>;

    /// The longest run of RAM from `at` on, at most `max` bytes. Empty if there is no RAM at `at`.
    fn run(&self, at: PhysAddr, max: usize) -> &[u8] {
        let Some(range) = self.ranges().iter().find(|r| r.contains(&at.0)) else {
            return &[];
        };
        let len = (range.end - at.0).min(max as u64) as usize;
        self.slice(at, len).unwrap_or(&[])
    }

    /// Calls `each` with all bytes from `at` to `at + len` that are there, in ascending order, with
    /// their physical addresses. An image may lack some pages. Words are never split.
    fn pieces<'a>(&'a self, at: PhysAddr, len: usize, each: &mut dyn FnMut(PhysAddr, &'a [u8])) {
        let bytes = self.run(at, len);
        if !bytes.is_empty() {
            each(at, bytes);
        }
    }
}

/// Physical memory made of owned bytes, for tests and copies.
#[derive(Default)]
pub struct OwnedMemory {
    ranges: Vec<Range<u64>>,
    bytes: Vec<Vec<u8>>,
}

impl OwnedMemory {
    /// A memory with one range of zeroes, `[base, base + len)`.
    pub fn zeroed(base: u64, len: usize) -> Self {
        let range = base..base + len as u64;
        OwnedMemory { ranges: vec![range], bytes: vec![vec![0; len]] }
    }

    /// A memory of zeroes with these ranges of physical addresses, which must be ascending and
    /// disjoint. Only pages that are written later use host memory.
    ///
    /// # Errors
    /// The host does not have that much memory.
    pub fn sparse(ranges: Vec<Range<u64>>) -> Result<Self, TryReserveError> {
        let mut bytes = Vec::with_capacity(ranges.len());
        for range in &ranges {
            let len = (range.end - range.start) as usize;
            // vec! aborts the process if memory is short, so the size is tried first. Only vec!
            // gets zeroed pages from the system without touching them.
            Vec::<u8>::new().try_reserve_exact(len)?;
            bytes.push(vec![0; len]);
        }
        Ok(OwnedMemory { ranges, bytes })
    }

    /// `len` writable bytes at `at`. `None` if they are not in one range of this memory.
    pub fn slice_mut(&mut self, at: PhysAddr, len: usize) -> Option<&mut [u8]> {
        let i = self.ranges.iter().position(|r| r.contains(&at.0))?;
        let start = (at.0 - self.ranges[i].start) as usize;
        self.bytes[i].get_mut(start..start.checked_add(len)?)
    }

    /// Overwrites bytes at a physical address.
    ///
    /// # Panics
    /// If the bytes are not within one range.
    pub fn write(&mut self, at: u64, bytes: &[u8]) {
        self.slice_mut(PhysAddr(at), bytes.len()).expect("address in memory").copy_from_slice(bytes);
    }
}

impl GuestMemory for OwnedMemory {
    fn read(&self, at: PhysAddr, buf: &mut [u8]) -> Result<(), MemoryError> {
        buf.copy_from_slice(self.slice(at, buf.len()).ok_or(MemoryError::NoRam(at))?);
        Ok(())
    }

    fn ranges(&self) -> &[Range<u64>] {
        &self.ranges
    }
}

impl StoppedMemory for OwnedMemory {
    fn slice(&self, at: PhysAddr, len: usize) -> Option<&[u8]> {
        let i = self.ranges.iter().position(|r| r.contains(&at.0))?;
        let start = (at.0 - self.ranges[i].start) as usize;
        self.bytes[i].get(start..start.checked_add(len)?)
    }
}

/// The little-endian `u32` at byte `at` of `bytes`.
#[inline]
pub fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.get(at..at.checked_add(4)?)?.try_into().ok()?))
}

/// The little-endian `u64` at byte `at` of `bytes`.
#[inline]
pub fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(bytes.get(at..at.checked_add(8)?)?.try_into().ok()?))
}
