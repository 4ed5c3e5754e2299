//! Finds the lines of KTAP by which tests report on the guest's console.
//!
//! Lines are read in the functions that write them. KUnit's lines are read when their record is in
//! the kernel's log, at any console log level. Lines of processes are read in the write functions
//! of terminals and virtio ports. A line in a pipe or pseudo-terminal counts when its reader writes
//! it to the console. Its test then ends where the line was first written to the pipe
//! ([`Written`]).

use super::marker;
use crate::ffi::inject;
use crate::hooks::guest::Guest;
use crate::hooks::guest_text::{kernel_text, user_text};
use crate::hooks::tracker::Tracker;
use crate::session::Session;
use detector::guest_tests::written::Written;
use detector::ktap;
use guest_symbols::VirtAddr;
use libc::c_uint;
use parking_lot::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

/// Most bytes read of one write. Terminals accept no more at once.
const MAX_WRITE: u64 = 1 << 16;
/// Most bytes read of one write to a pipe. It is what the C library buffers: larger writes are
/// hardly the text of a test.
const MAX_PIPE_WRITE: usize = 4096;
/// Most bytes of a line.
const MAX_LINE: usize = 1 << 10;
/// Most unfinished lines, each of one terminal, pipe or port.
const MAX_OPEN: usize = 16;
/// Stands for all virtio ports.
const PORT: VirtAddr = VirtAddr(0);

/// The start of a line whose end was not written yet.
struct OpenLine {
    /// The address of the `tty_struct` or of the pipe's `struct file` that it was written to, or
    /// [`PORT`].
    to: VirtAddr,
    text: Vec<u8>,
}

/// The console of one kernel.
pub(super) struct Console {
    session: &'static Session,
    /// Unfinished lines, the latest last.
    open: Mutex<Vec<OpenLine>>,
    /// Whether there are any.
    has_open: AtomicBool,
    /// Lines in pipes and pseudo-terminals.
    written: Mutex<Written>,
    /// The last record without an end of line that had lines of tests, by its id.
    last_part: Mutex<Option<u64>>,
}

impl Console {
    /// A console without unfinished lines.
    pub fn new(session: &'static Session) -> Console {
        Console {
            session,
            open: Mutex::default(),
            has_open: AtomicBool::new(false),
            written: Mutex::default(),
            last_part: Mutex::default(),
        }
    }

    /// A process writes `count` bytes to the terminal `tty`. The kernel has copied them to `buf`.
    pub fn tty(&self, tracker: &Tracker, vcpu: c_uint, tty: VirtAddr, buf: VirtAddr, count: u64) {
        let Guest { kernel, ram, text, .. } = &tracker.guest;
        let bytes = kernel_text(kernel, ram, buf, count.min(MAX_WRITE) as usize);
        if text.is_pty(kernel, ram, tty) {
            self.note(tracker, tty, &bytes);
        } else {
            self.write(tracker, vcpu, tty, &bytes);
        }
    }

    /// A process writes `count` bytes at its own address `buf` to a virtio port.
    pub fn port(&self, tracker: &Tracker, vcpu: c_uint, buf: VirtAddr, count: u64) {
        let Guest { kernel, ram, .. } = &tracker.guest;
        self.write(tracker, vcpu, PORT, &user_text(kernel, ram, buf, count.min(MAX_WRITE) as usize).bytes);
    }

    /// A process writes to a pipe. Its `kiocb` is at `iocb`, and its `iov_iter` at `from`.
    pub fn pipe(&self, tracker: &Tracker, iocb: VirtAddr, from: VirtAddr) {
        let Guest { kernel, ram, text, .. } = &tracker.guest;
        let bytes = text.iter(kernel, ram, from, MAX_PIPE_WRITE).bytes;
        // Most writes have no line of a test. They take no lock.
        let is_test = |line: &[u8]| !line.is_empty() && ktap::may_be(line);
        if !self.has_open.load(Ordering::Relaxed) && !bytes.split(|b| *b == b'\n').any(is_test) {
            return;
        }
        if let Some(file) = text.file(kernel, ram, iocb) {
            self.note(tracker, file, &bytes);
        }
    }

    /// A record is complete in the kernel's log. Its `prb_reserved_entry` is at `entry`.
    pub fn printk(&self, tracker: &Tracker, vcpu: c_uint, entry: VirtAddr) {
        if self.session.options.ktap {
            let Guest { kernel, ram, text, .. } = &tracker.guest;
            // The end of a line that has counted.
            if text.record_id(kernel, ram, entry) != *self.last_part.lock() {
                self.lines(tracker, vcpu, text.record(kernel, ram, entry).split(|b| *b == b'\n'));
            }
        }
    }

    /// A record without an end of line is in the kernel's log. KUnit prints results of test cases
    /// so (lib/kunit/test.c, to 7.3), and the kernel completes them when the next record comes.
    pub fn printk_part(&self, tracker: &Tracker, vcpu: c_uint, entry: VirtAddr) {
        if self.session.options.ktap {
            let Guest { kernel, ram, text, .. } = &tracker.guest;
            let record = text.record(kernel, ram, entry);
            if ktap::may_be(&record) && record.split(|b| *b == b'\n').any(|line| ktap::parse(line).is_some()) {
                let id = text.record_id(kernel, ram, entry);
                if std::mem::replace(&mut *self.last_part.lock(), id) != id {
                    self.lines(tracker, vcpu, record.split(|b| *b == b'\n'));
                }
            }
        }
    }

    /// Remembers the lines of tests that are written to a pipe or pseudo-terminal.
    fn note(&self, tracker: &Tracker, to: VirtAddr, text: &[u8]) {
        self.each_line(to, text, |line| {
            if ktap::parse(line).is_some() {
                self.written.lock().write(to.0, line, tracker.objects.sequence());
            }
        });
    }

    fn write(&self, tracker: &Tracker, vcpu: c_uint, to: VirtAddr, text: &[u8]) {
        let mut lines = Vec::new();
        self.each_line(to, text, |line| lines.push(line.to_vec()));
        self.lines(tracker, vcpu, lines.iter().map(Vec::as_slice));
    }

    /// Calls `each` with the lines that `text` finishes and that may belong to tests. Keeps the
    /// unfinished rest.
    fn each_line(&self, to: VirtAddr, text: &[u8], mut each: impl FnMut(&[u8])) {
        let mut all = self.open.lock();
        inject("console");
        let before = all.iter().position(|line| line.to == to).map(|i| all.remove(i).text);
        let rest = split_lines(before.unwrap_or_default(), text, |line| {
            if ktap::may_be(line) {
                each(line);
            }
        });
        // Most lines do not belong to tests.
        if !rest.is_empty() && ktap::may_be(&rest) {
            if all.len() == MAX_OPEN {
                all.remove(0);
            }
            all.push(OpenLine { to, text: rest });
        }
        self.has_open.store(!all.is_empty(), Ordering::Relaxed);
    }

    fn lines<'a>(&self, tracker: &Tracker, vcpu: c_uint, lines: impl Iterator<Item = &'a [u8]>) {
        let mut ended = None;
        for line in lines.filter(|line| ktap::may_be(line)) {
            let mut tests = tracker.tests.lock();
            let written = self.written.lock().read(line, tests.last_boundary());
            let test = tests.line(line, written.unwrap_or_else(|| tracker.objects.sequence()));
            ended = test.or(ended);
        }
        // If several tests have ended at once, one scan is enough.
        if ended.is_some() && self.session.options.per_test {
            marker::scan_after(self.session, vcpu, ended);
        }
    }
}

/// Splits `text`, which continues the unfinished `line`. Calls `each` with every finished line, and
/// returns the unfinished rest. Lines are cut at [`MAX_LINE`].
fn split_lines(mut line: Vec<u8>, text: &[u8], mut each: impl FnMut(&[u8])) -> Vec<u8> {
    for part in text.split_inclusive(|b| *b == b'\n') {
        let (part, ends) = part.strip_suffix(b"\n").map_or((part, false), |part| (part, true));
        let part = &part[..part.len().min(MAX_LINE - line.len().min(MAX_LINE))];
        match ends {
            true if line.is_empty() => each(part),
            true => {
                line.extend(part);
                each(&line);
                line.clear();
            }
            false => line.extend(part),
        }
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    fn whole_lines(line: Vec<u8>, text: &[u8]) -> (Vec<Vec<u8>>, Vec<u8>) {
        let mut whole = Vec::new();
        let rest = split_lines(line, text, |line| whole.push(line.to_vec()));
        (whole, rest)
    }

    #[test]
    fn lines_are_put_together_and_cut() {
        let (whole, rest) = whole_lines(b"ok 1 ".to_vec(), b"a\n\nnot ok 2 b\nok");
        assert_eq!(whole, [b"ok 1 a".to_vec(), Vec::new(), b"not ok 2 b".to_vec()]);
        assert_eq!(rest, b"ok");
        let (whole, rest) = whole_lines(rest, &[b'x'; 1 << 16]);
        assert_eq!((whole.len(), rest.len()), (0, MAX_LINE));
        let (whole, rest) = whole_lines(rest, b"more\n");
        assert_eq!((whole[0].len(), rest.len()), (MAX_LINE, 0));
    }
}
