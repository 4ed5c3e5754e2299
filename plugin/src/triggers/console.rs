//! Finds the lines of KTAP by which tests report on the guest's console.
//!
//! Lines are read in the functions that write them. KUnit's lines are read when their record is in
//! the kernel's log, at any console log level. Lines of processes are read in the write functions
//! of terminals and virtio ports. Pipes and pseudo-terminals are ignored: the process at the other
//! end writes the lines again.

use super::marker;
use crate::ffi::inject;
use crate::hooks::guest::Guest;
use crate::hooks::guest_text::{kernel_text, user_text};
use crate::hooks::tracker::Tracker;
use crate::session::Session;
use detector::ktap;
use guest_symbols::VirtAddr;
use libc::c_uint;
use parking_lot::Mutex;

/// Most bytes read of one write. Terminals accept no more at once.
const MAX_WRITE: u64 = 1 << 16;
/// Most bytes of a line.
const MAX_LINE: usize = 1 << 10;
/// Most unfinished lines, each of one terminal or port.
const MAX_OPEN: usize = 8;
/// Stands for all virtio ports.
const PORT: VirtAddr = VirtAddr(0);

/// The start of a line whose end was not written yet.
struct OpenLine {
    /// The address of the `tty_struct` that it was written to, or [`PORT`].
    to: VirtAddr,
    text: Vec<u8>,
}

/// The console of one kernel.
pub(super) struct Console {
    session: &'static Session,
    /// Unfinished lines, the latest last.
    open: Mutex<Vec<OpenLine>>,
}

impl Console {
    /// A console without unfinished lines.
    pub fn new(session: &'static Session) -> Console {
        Console { session, open: Mutex::default() }
    }

    /// A process writes `count` bytes to the terminal `tty`. The kernel has copied them to `buf`.
    pub fn tty(&self, tracker: &Tracker, vcpu: c_uint, tty: VirtAddr, buf: VirtAddr, count: u64) {
        let Guest { kernel, ram, text, .. } = &tracker.guest;
        if !text.is_pty(kernel, ram, tty) {
            let text = kernel_text(kernel, ram, buf, count.min(MAX_WRITE) as usize);
            self.write(tracker, vcpu, tty, &text);
        }
    }

    /// A process writes `count` bytes at its own address `buf` to a virtio port.
    pub fn port(&self, tracker: &Tracker, vcpu: c_uint, buf: VirtAddr, count: u64) {
        let Guest { kernel, ram, .. } = &tracker.guest;
        self.write(tracker, vcpu, PORT, &user_text(kernel, ram, buf, count.min(MAX_WRITE) as usize).bytes);
    }

    /// A record is complete in the kernel's log. Its `prb_reserved_entry` is at `entry`.
    pub fn printk(&self, tracker: &Tracker, vcpu: c_uint, entry: VirtAddr) {
        if self.session.options.ktap {
            let Guest { kernel, ram, text, .. } = &tracker.guest;
            self.lines(tracker, vcpu, text.record(kernel, ram, entry).split(|b| *b == b'\n'));
        }
    }

    fn write(&self, tracker: &Tracker, vcpu: c_uint, to: VirtAddr, text: &[u8]) {
        let mut all = self.open.lock();
        inject("console");
        let before = all.iter().position(|line| line.to == to).map(|i| all.remove(i).text);
        let (whole, rest) = whole_lines(before.unwrap_or_default(), text);
        // Most lines do not belong to tests.
        if !rest.is_empty() && ktap::may_be(&rest) {
            if all.len() == MAX_OPEN {
                all.remove(0);
            }
            all.push(OpenLine { to, text: rest });
        }
        drop(all);
        self.lines(tracker, vcpu, whole.iter().map(Vec::as_slice));
    }

    fn lines<'a>(&self, tracker: &Tracker, vcpu: c_uint, lines: impl Iterator<Item = &'a [u8]>) {
        let mut ended = None;
        for line in lines.filter(|line| ktap::may_be(line)) {
            let test = tracker.tests.lock().line(line, tracker.objects.sequence());
            ended = test.or(ended);
        }
        // If several tests have ended at once, one scan is enough.
        if ended.is_some() && self.session.options.per_test {
            marker::scan_after(self.session, vcpu, ended);
        }
    }
}

/// Splits `text`, which continues the unfinished `line`. Returns the finished lines, and the
/// unfinished rest. Lines are cut at [`MAX_LINE`].
fn whole_lines(mut line: Vec<u8>, text: &[u8]) -> (Vec<Vec<u8>>, Vec<u8>) {
    let mut whole = Vec::new();
    for part in text.split_inclusive(|b| *b == b'\n') {
        let (part, ends) = part.strip_suffix(b"\n").map_or((part, false), |part| (part, true));
        line.extend(&part[..part.len().min(MAX_LINE - line.len().min(MAX_LINE))]);
        if ends {
            whole.push(std::mem::take(&mut line));
        }
    }
    (whole, line)
}

#[cfg(test)]
mod tests {
    use super::*;

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
