//! Reduces a snapshot to the memory that its report depends on: the kernel's tables, and every word
//! that the check reads. Page cache, process memory, free pages and free slab objects are left out.

use checker::guest_state::GuestState;
use checker::{CheckError, Outcome};
use detector::suppress::Suppressions;
use guest_symbols::memory::{GuestMemory, MemoryError, OwnedMemory, PhysAddr, StoppedMemory};
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};

/// Bytes that are kept or left out together.
const WORD: u64 = 8;
/// Bytes per cell of a [`Recorder`].
const CELL: u64 = 64 * WORD;

/// Checks the guest and returns a memory that contains only what the check read. The other words
/// are zero. `why` is as in [`GuestState::check`].
///
/// # Errors
/// [`CheckError`], if there is no result.
///
/// # Panics
/// If there is no memory for a second copy of the guest.
pub fn trim(
    moment: &GuestState<'_, impl StoppedMemory>,
    why: Option<&str>,
) -> Result<(OwnedMemory, Outcome), CheckError> {
    let recorder = Recorder::new(moment.memory);
    let outcome = moment.with_memory(&recorder).check(why, &Suppressions::default())?;
    for part in &moment.kernel.parts {
        recorder.record(PhysAddr(part.start), part.end - part.start);
    }
    Ok((recorder.recorded(), outcome))
}

/// A memory that records what is read.
struct Recorder<'a, M> {
    memory: &'a M,
    /// One bit per word, for each range of the memory.
    read: Vec<Vec<AtomicU64>>,
}

impl<'a, M: StoppedMemory> Recorder<'a, M> {
    fn new(memory: &'a M) -> Self {
        let cells =
            |range: &Range<u64>| (range.start..range.end).step_by(CELL as usize).map(|_| AtomicU64::new(0)).collect();
        Recorder { memory, read: memory.ranges().iter().map(cells).collect() }
    }

    fn record(&self, at: PhysAddr, len: u64) {
        for (range, cells) in self.memory.ranges().iter().zip(&self.read) {
            let (from, to) = (at.0.max(range.start), at.0.saturating_add(len).min(range.end));
            if from >= to {
                continue;
            }
            let (first, last) = ((from - range.start) / WORD, (to - 1 - range.start) / WORD);
            for i in first / 64..=last / 64 {
                let above_first = if i == first / 64 { u64::MAX << (first % 64) } else { u64::MAX };
                let below_last = if i == last / 64 { u64::MAX >> (63 - last % 64) } else { u64::MAX };
                cells[i as usize].fetch_or(above_first & below_last, Ordering::Relaxed);
            }
        }
    }

    /// A copy of the words that were read.
    fn recorded(&self) -> OwnedMemory {
        let mut copy = OwnedMemory::sparse(self.memory.ranges().to_vec()).expect("as much memory as there is already");
        for (range, cells) in self.memory.ranges().iter().zip(&self.read) {
            for (start, bits) in
                (range.start..).step_by(CELL as usize).zip(cells.iter().map(|c| c.load(Ordering::Relaxed)))
            {
                for word in (0..64).filter(|i| bits >> i & 1 != 0) {
                    let at = start + word * WORD;
                    let bytes = self.memory.run(PhysAddr(at), WORD as usize);
                    copy.write(at, bytes);
                }
            }
        }
        copy
    }
}

impl<M: StoppedMemory> GuestMemory for Recorder<'_, M> {
    fn read(&self, at: PhysAddr, buf: &mut [u8]) -> Result<(), MemoryError> {
        self.record(at, buf.len() as u64);
        self.memory.read(at, buf)
    }

    fn ranges(&self) -> &[Range<u64>] {
        self.memory.ranges()
    }
}

impl<M: StoppedMemory> StoppedMemory for Recorder<'_, M> {
    fn slice(&self, at: PhysAddr, len: usize) -> Option<&[u8]> {
        self.record(at, len as u64);
        self.memory.slice(at, len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use guest_symbols::memory::PAGE_SIZE;

    #[test]
    fn words_that_were_read_are_kept_and_no_others() {
        let ranges = vec![0..2 * PAGE_SIZE, 0x10_0000..0x10_0000 + PAGE_SIZE];
        let mut memory = OwnedMemory::sparse(ranges.clone()).unwrap();
        for range in &ranges {
            for at in range.clone() {
                memory.write(at, &[1]);
            }
        }
        let recorder = Recorder::new(&memory);
        let read = [0..1, 15..17, 504..520, 4000..4200, 0x10_0000..0x10_0000 + PAGE_SIZE];
        for part in &read {
            recorder.slice(PhysAddr(part.start), (part.end - part.start) as usize).unwrap();
        }
        // There is nothing to read outside of RAM.
        assert!(recorder.read_u64(PhysAddr(0x2000)).is_err() && recorder.slice(PhysAddr(0x1ff8), 16).is_none());
        let kept = [0..8, 8..24, 504..520, 4000..4200, 0x1ff8..0x2000, 0x10_0000..0x10_0000 + PAGE_SIZE];
        let copy = recorder.recorded();
        assert_eq!(copy.ranges(), memory.ranges());
        for range in &ranges {
            for at in range.clone() {
                let byte = copy.slice(PhysAddr(at), 1).unwrap()[0];
                assert_eq!(byte == 1, kept.iter().any(|part| part.contains(&at)), "{at:#x}");
            }
        }
    }
}
