//! Guest RAM where QEMU has it mapped in this very process.

use super::host;
use guest_symbols::memory::{GuestMemory, MemoryError, PhysAddr, StoppedMemory};
use std::ops::Range;
use std::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering};

/// With at least this much RAM, machines leave a hole below 4 GiB (q35's limit, the lowest: hw/i386/pc_q35.c).
const LEAST_WITH_HOLE: u64 = 0xb000_0000;
const FOUR_GIB: u64 = 1 << 32;
/// Below 1 MiB parts of RAM are hidden behind ROMs, so the blocks are looked for from here on.
const LOW: u64 = 1 << 20;

/// Why guest RAM was not found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RamError {
    /// The instruction's bytes lie in no mapping.
    #[error("the guest's code at host address {0:#x} lies in no mapping of QEMU's")]
    NotMapped(usize),
    /// More RAM than fits below the PCI hole, in a QEMU that exports nothing to tell where the hole is.
    #[error(
        "this build of QEMU does not export address_space_map, so guests with {0:#x} bytes of RAM or more cannot be read; give the guest less than 2816 MiB (-m), or use a distribution's QEMU"
    )]
    Hole(u64),
}

/// A run of guest RAM.
#[derive(Debug, Clone, Copy)]
struct Segment {
    phys: u64,
    len: u64,
    host: usize,
}

impl Segment {
    #[inline]
    fn contains(&self, at: PhysAddr) -> bool {
        at.0.wrapping_sub(self.phys) < self.len
    }
}

/// Guest RAM, by physical address. Readable at any time; only [`Ram::stopped`] lends slices.
pub struct Ram {
    /// The first of the segments, which in most guests is all of them.
    first: Segment,
    segments: Vec<Segment>,
    ranges: Vec<Range<u64>>,
}

impl Ram {
    /// Finds RAM, given the host address of one byte of guest code. Call it on a vCPU's thread.
    ///
    /// # Errors
    /// [`RamError`].
    pub fn find(code: *const u8) -> Result<Ram, RamError> {
        let code = code as usize;
        let segments = match Self::probe() {
            Some(segments) if segments.iter().any(|s| (s.host..s.host + s.len as usize).contains(&code)) => segments,
            _ => Self::guess(code)?,
        };
        let ranges = segments.iter().map(|s| s.phys..s.phys + s.len).collect();
        let first = *segments.first().ok_or(RamError::NotMapped(code))?;
        Ok(Ram { first, segments, ranges })
    }

    /// Asks QEMU what lies where.
    fn probe() -> Option<Vec<Segment>> {
        let blocks = host::ram_blocks();
        let mut segments: Vec<Segment> = Vec::new();
        let mut phys = LOW;
        loop {
            let found = host::map_physical(phys);
            let in_block = |h: usize| blocks.iter().any(|b| (b.host..b.host + b.len).contains(&h));
            match found.filter(|&(h, _)| in_block(h)) {
                Some((host, len)) => {
                    match segments.last_mut() {
                        Some(last) if last.phys + last.len == phys && last.host + last.len as usize == host => {
                            last.len += len
                        }
                        _ => segments.push(Segment { phys, len, host }),
                    }
                    phys += len;
                }
                None if phys < FOUR_GIB => phys = FOUR_GIB,
                None => break,
            }
        }
        // The first MiB belongs to the block that goes on at 1 MiB.
        let first = segments.first_mut().filter(|s| s.phys == LOW)?;
        first.phys = 0;
        first.host -= LOW as usize;
        first.len += LOW;
        Some(segments)
    }

    /// Without QEMU's help: the mapping that the code is in is RAM, from address 0 on.
    fn guess(code: usize) -> Result<Vec<Segment>, RamError> {
        let (start, end) = host::mapping_of(code).ok_or(RamError::NotMapped(code))?;
        let len = (end - start) as u64;
        if len >= LEAST_WITH_HOLE {
            return Err(RamError::Hole(LEAST_WITH_HOLE));
        }
        Ok(vec![Segment { phys: 0, len, host: start }])
    }

    /// The guest physical address of a host address.
    pub fn phys_of(&self, host: *const u8) -> Option<PhysAddr> {
        let host = host as usize;
        let s = self.segments.iter().find(|s| (s.host..s.host + s.len as usize).contains(&host))?;
        Some(PhysAddr(s.phys + (host - s.host) as u64))
    }

    /// The host address of `len` bytes at `at`.
    #[inline]
    fn host_of(&self, at: PhysAddr, len: usize) -> Option<usize> {
        let s = if self.first.contains(at) { &self.first } else { self.segments.iter().find(|s| s.contains(at))? };
        let offset = at.0 - s.phys;
        (s.len - offset >= len as u64).then_some(s.host + offset as usize)
    }

    /// Whether two bytes stand one after the other among the `len` bytes of guest code at `host`, which are of one page. For
    /// blocks by the thousand, so it looks at words, for the second byte, which is to be the rarer one in code.
    #[inline]
    pub fn has_pair(&self, host: *const u8, len: usize, pair: [u8; 2]) -> bool {
        const ONES: u64 = 0x0101_0101_0101_0101;
        let (start, wanted) = (host as usize, ONES * u64::from(pair[1]));
        if !self.segments.iter().any(|s| start.wrapping_sub(s.host) < s.len as usize) {
            return false;
        }
        // SAFETY: RAM is mapped in whole pages for as long as QEMU lives, and the bytes, and so the aligned words that they
        // are of, lie in one page of it. A vCPU may write at the same time: the loads are atomic.
        let word = |at: usize| u64::from_le(unsafe { (*(at as *const AtomicU64)).load(Ordering::Relaxed) });
        let has_second = |word: u64| {
            let differs = word ^ wanted;
            differs.wrapping_sub(ONES) & !differs & (ONES << 7) != 0
        };
        let words = || (start & !7..start + len).step_by(8);
        if !words().any(|at| has_second(word(at))) {
            return false;
        }
        let mut before = 0;
        words()
            .flat_map(|at| (at..).zip(word(at).to_le_bytes()))
            .filter(|(at, _)| (start..start + len).contains(at))
            .any(|(_, byte)| {
                let both = [before, byte] == pair;
                before = byte;
                both
            })
    }

    /// RAM as slices.
    ///
    /// # Safety
    /// As long as the result lives, nothing may write to guest RAM: the vCPUs are stopped, or this is the
    /// only one that runs and it is in our callback.
    pub unsafe fn stopped(&self) -> Stopped<'_> {
        Stopped(self)
    }
}

impl GuestMemory for Ram {
    fn read(&self, at: PhysAddr, buf: &mut [u8]) -> Result<(), MemoryError> {
        let host = self.host_of(at, buf.len()).ok_or(MemoryError::NoRam(at))?;
        let mut done = 0;
        while done < buf.len() {
            let (from, rest) = (host + done, &mut buf[done..]);
            // SAFETY: the segment is mapped, readable, for as long as QEMU lives, and `host_of` has seen that all of
            // `buf` lies in it; each load is aligned and of no more than the rest. A vCPU may write at the same time: atomic
            // loads then give the old or the new value.
            done += unsafe {
                if from % 8 == 0 && rest.len() >= 8 {
                    rest[..8].copy_from_slice(&(*(from as *const AtomicU64)).load(Ordering::Relaxed).to_ne_bytes());
                    8
                } else if from % 4 == 0 && rest.len() >= 4 {
                    rest[..4].copy_from_slice(&(*(from as *const AtomicU32)).load(Ordering::Relaxed).to_ne_bytes());
                    4
                } else {
                    rest[0] = (*(from as *const AtomicU8)).load(Ordering::Relaxed);
                    1
                }
            };
        }
        Ok(())
    }

    fn ranges(&self) -> &[Range<u64>] {
        &self.ranges
    }

    #[inline]
    fn contains(&self, at: PhysAddr) -> bool {
        self.first.contains(at) || self.segments.iter().any(|s| s.contains(at))
    }

    #[inline]
    fn read_u64(&self, at: PhysAddr) -> Result<u64, MemoryError> {
        let host = self.host_of(at, 8).ok_or(MemoryError::NoRam(at))?;
        if host % 8 == 0 {
            // SAFETY: mapped and aligned; relaxed atomic loads may race with the guest's stores.
            return Ok(u64::from_le(unsafe { (*(host as *const AtomicU64)).load(Ordering::Relaxed) }));
        }
        let mut buf = [0; 8];
        self.read(at, &mut buf)?;
        Ok(u64::from_le_bytes(buf))
    }
}

/// [`Ram`] while nothing writes to it.
pub struct Stopped<'a>(&'a Ram);

impl GuestMemory for Stopped<'_> {
    fn read(&self, at: PhysAddr, buf: &mut [u8]) -> Result<(), MemoryError> {
        self.0.read(at, buf)
    }
    fn ranges(&self) -> &[Range<u64>] {
        &self.0.ranges
    }
    fn read_u64(&self, at: PhysAddr) -> Result<u64, MemoryError> {
        self.0.read_u64(at)
    }
}

impl StoppedMemory for Stopped<'_> {
    fn slice(&self, at: PhysAddr, len: usize) -> Option<&[u8]> {
        let host = self.0.host_of(at, len)?;
        // SAFETY: mapped for QEMU's life, and by the contract of `Ram::stopped` nothing writes to it now.
        Some(unsafe { std::slice::from_raw_parts(host as *const u8, len) })
    }
}
