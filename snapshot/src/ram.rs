//! Guest RAM without its zero pages.

use crate::fields::{Flaw, Sink, Source};
use guest_symbols::memory::{OwnedMemory, PAGE_SIZE, PhysAddr, StoppedMemory};
use std::io::{self, Read, Write};
use std::ops::Range;

/// Most ranges of RAM. Machines have two or three.
const MAX_RANGES: u32 = 1024;
/// The end of physical addresses, which have 52 bits.
const PHYS_END: u64 = 1 << 52;

/// Why the memory part cannot be read.
pub(crate) enum TakeError {
    /// The contents are invalid.
    Flaw(Flaw),
    /// This machine has too little memory for the guest, which has this many bytes.
    NoRoom(u64),
}

impl From<Flaw> for TakeError {
    fn from(flaw: Flaw) -> TakeError {
        TakeError::Flaw(flaw)
    }
}

/// Writes all RAM. Returns the number of bytes outside of zero pages.
pub(crate) fn put(to: &mut Sink<impl Write>, memory: &impl StoppedMemory) -> io::Result<u64> {
    to.count(memory.ranges().len())?;
    for range in memory.ranges() {
        to.u64(range.start)?;
        to.u64(range.end)?;
    }
    let mut written = 0;
    for range in memory.ranges() {
        let ram = memory.slice(PhysAddr(range.start), (range.end - range.start) as usize);
        let ram = ram.ok_or_else(|| io::Error::other(format!("the RAM at {range:x?} is not mapped in one run")))?;
        each_run(ram, &mut |run| {
            written += run.len() as u64;
            to.u64(range.start + run.start as u64)?;
            to.u64(run.len() as u64)?;
            to.0.write_all(&ram[run])
        })?;
    }
    to.u64(0)?;
    to.u64(0)?;
    Ok(written)
}

/// Calls `each` with every run of pages that contain a nonzero byte.
fn each_run(ram: &[u8], each: &mut dyn FnMut(Range<usize>) -> io::Result<()>) -> io::Result<()> {
    const ZEROES: [u8; PAGE_SIZE as usize] = [0; PAGE_SIZE as usize];
    let mut run = 0..0;
    for page in ram.chunks(PAGE_SIZE as usize) {
        let end = run.end + page.len();
        if *page == ZEROES[..page.len()] {
            if !run.is_empty() {
                each(run)?;
            }
            run = end..end;
        } else {
            run.end = end;
        }
    }
    if run.is_empty() { Ok(()) } else { each(run) }
}

pub(crate) fn take(from: &mut Source<impl Read>) -> Result<OwnedMemory, TakeError> {
    let mut ranges: Vec<Range<u64>> = Vec::new();
    for _ in 0..from.count(MAX_RANGES)? {
        let range = from.u64()?..from.u64()?;
        if range.is_empty() || range.end > PHYS_END || ranges.last().is_some_and(|last| last.end > range.start) {
            return Ok(from.flaw(format!("{range:x?} is not a range of RAM behind the previous one"))?);
        }
        ranges.push(range);
    }
    let bytes = ranges.iter().map(|r| r.end - r.start).sum();
    let mut memory = OwnedMemory::sparse(ranges).map_err(|_| TakeError::NoRoom(bytes))?;
    let mut next = 0;
    loop {
        let (start, len) = (from.u64()?, from.u64()?);
        if (start, len) == (0, 0) {
            return Ok(memory);
        }
        // Runs must ascend, so the file's length bounds the time.
        let room = usize::try_from(len).ok().filter(|&len| len > 0 && start >= next);
        let Some(room) = room.and_then(|len| memory.slice_mut(PhysAddr(start), len)) else {
            return Ok(from.flaw(format!("{len:#x} bytes at physical {start:#x} are not in RAM, or not in order"))?);
        };
        from.fill(room)?;
        next = start + len;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_leave_out_zero_pages() {
        let page = PAGE_SIZE as usize;
        let runs = |written: &[usize], len: usize| {
            let mut ram = vec![0; len];
            written.iter().for_each(|&at| ram[at] = 1);
            let mut out = Vec::new();
            each_run(&ram, &mut |run| {
                out.push(run);
                Ok(())
            })
            .unwrap();
            out
        };
        assert!(runs(&[], 4 * page).is_empty());
        assert_eq!(runs(&[0, 2 * page - 1, 3 * page], 4 * page), [0..2 * page, 3 * page..4 * page]);
        // The last page is incomplete.
        assert_eq!(runs(&[1, 2 * page + 3], 2 * page + 8), [0..page, 2 * page..2 * page + 8]);
        assert_eq!(runs(&[1, 2 * page], 3 * page + 8), [0..page, 2 * page..3 * page]);
    }
}
