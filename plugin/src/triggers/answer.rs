//! Answers to markers. A process of the guest names a buffer of its own, and the answer is written
//! there before the marker's instruction returns: see scripts/fuzz/libleak.h.
//!
//! Nothing else of the guest is written to. Each page must be one that the process may write to and
//! has written to, by the page tables that are in use when the answer is written.

use crate::ffi::ram::Ram;
use crate::ffi::regs::{self, Reg};
use crate::ffi::witness::GuestStopped;
use crate::hooks::tracker::Tracker;
use crate::session::demand::{Answer, DemandError};
use detector::report::{Format, Report};
use guest_symbols::memory::{PhysAddr, VirtAddr};
use guest_symbols::paging::PageTables;

/// In ecx, says that the process waits for an answer.
pub const WANTED: u32 = 0x100;
/// Most bytes of a buffer. The rest of a larger one is not used.
const MAX_LEN: u64 = 4 << 20;
/// Bytes of `struct libleak_answer` before its text.
const HEADER: usize = 16;

/// `enum libleak_state` (scripts/fuzz/libleak.h).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
enum State {
    /// It was done.
    Done = 1,
    /// It was not done. The text is the reason.
    Failed = 2,
    /// It was done, and the report is marked unreliable.
    Unreliable = 3,
}

/// The buffer of a process.
#[derive(Debug, Clone, Copy)]
pub struct Buffer {
    /// Its virtual address.
    at: u64,
    /// Bytes.
    len: u64,
    /// The page tables of the process.
    tables: PageTables,
}

/// What is to be written to a buffer.
#[derive(Debug, PartialEq, Eq)]
pub struct Reply {
    state: State,
    /// Objects that were reported or cleared.
    objects: u32,
    text: String,
}

impl Buffer {
    /// The buffer that a marker names: its address is in rsi, its length in rdi. Call it in a
    /// callback that may read registers.
    pub fn of_registers(tracker: &Tracker) -> Buffer {
        let levels = tracker.guest.kernel.page_tables(&tracker.guest.ram).levels;
        let tables = PageTables { root: PhysAddr(regs::read(Reg::Cr3)), levels };
        Buffer { at: regs::read(Reg::Rsi), len: regs::read(Reg::Rdi).min(MAX_LEN), tables }
    }

    /// Writes a reply, cut at the end of the buffer. The header comes last, so that it stays as it
    /// was if a page cannot be written.
    pub fn put(&self, ram: &Ram, stopped: &GuestStopped, reply: &Reply) {
        let bytes = reply.bytes(self.len as usize);
        let (header, text) = bytes.split_at(HEADER.min(bytes.len()));
        let is_put = self.write(ram, stopped, HEADER as u64, text) && self.write(ram, stopped, 0, header);
        if !is_put {
            log::info!("no answer to a marker: its buffer at {:#x} cannot be written", self.at);
        }
    }

    /// Writes bytes at an offset in the buffer. Returns whether all were written.
    fn write(&self, ram: &Ram, stopped: &GuestStopped, offset: u64, mut bytes: &[u8]) -> bool {
        let mut at = VirtAddr(self.at).offset(offset);
        let mut memory = ram.stopped(stopped);
        while !bytes.is_empty() {
            let found = if at.is_kernel() { None } else { self.tables.translate_dirty(&memory, at).ok() };
            let Some(found) = found else { return false };
            let (part, rest) = bytes.split_at((found.len as usize).min(bytes.len()));
            if !memory.write(found.phys, part) {
                return false;
            }
            (at, bytes) = (at.offset(part.len() as u64), rest);
        }
        true
    }
}

impl Reply {
    /// libleak tracks the kernel, and does nothing else.
    pub fn here(release: &str) -> Reply {
        let text = format!("libleak {}, Linux {release}\n", env!("CARGO_PKG_VERSION"));
        Reply { state: State::Done, objects: 0, text }
    }

    /// The marker has begun or ended a test.
    pub fn done() -> Reply {
        Reply { state: State::Done, objects: 0, text: String::new() }
    }

    /// The marker is unknown.
    pub fn unknown(command: u32) -> Reply {
        Reply { state: State::Failed, objects: 0, text: format!("marker {command} is unknown\n") }
    }

    /// The result of a demand.
    pub fn of(result: &Result<Answer, DemandError>) -> Reply {
        match result {
            Ok(Answer::Report(report)) => Reply::of_report(report),
            Ok(Answer::Cleared(count)) => {
                Reply { objects: count.objects.min(u64::from(u32::MAX)) as u32, ..Reply::done() }
            }
            Ok(_) => Reply::done(),
            Err(why) => Reply { state: State::Failed, objects: 0, text: format!("{why}\n") },
        }
    }

    fn of_report(report: &Report) -> Reply {
        let objects: usize = report.groups.iter().map(|group| group.leaks.len()).sum();
        Reply {
            state: if report.troubles.is_empty() { State::Done } else { State::Unreliable },
            objects: objects.min(u32::MAX as usize) as u32,
            text: Format::Text.write(report, true),
        }
    }

    /// `struct libleak_answer` of at most `len` bytes; empty if there is no room for its header.
    fn bytes(&self, len: usize) -> Vec<u8> {
        let Some(room) = len.checked_sub(HEADER) else { return Vec::new() };
        let mut bytes = Vec::new();
        bytes.extend((self.state as u32).to_le_bytes());
        bytes.extend(self.objects.to_le_bytes());
        // The length of the whole text, which shows that it was cut.
        bytes.extend((self.text.len() as u64).to_le_bytes());
        bytes.extend(&self.text.as_bytes()[..self.text.len().min(room)]);
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replies_are_cut_at_the_end_of_the_buffer() {
        let reply = Reply { state: State::Unreliable, objects: 258, text: "text".into() };
        let whole = [&[3, 0, 0, 0, 2, 1, 0, 0, 4, 0, 0, 0, 0, 0, 0, 0][..], b"text"].concat();
        assert_eq!(reply.bytes(100), whole);
        assert_eq!(reply.bytes(HEADER + 3), whole[..HEADER + 3]);
        assert_eq!(reply.bytes(HEADER), whole[..HEADER]);
        assert_eq!(reply.bytes(HEADER - 1), [0; 0]);
    }

    #[test]
    fn errors_are_text() {
        let reply = Reply::of(&Err(DemandError::Again));
        assert_eq!((reply.state, reply.objects), (State::Failed, 0));
        assert!(reply.text.contains("has just restarted"), "{}", reply.text);
    }
}
