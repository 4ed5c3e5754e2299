//! Tests that tell of themselves on the guest's console, in the lines of KTAP.
//!
//! Lines are seen when they are written, before they go anywhere: the kernel's own, of KUnit, when
//! their record is in the log, whatever of it the console shows; those of processes in the
//! terminal's function, or in that of a virtio port. What a process writes to a pipe is not looked
//! at, since whoever reads that writes it again, and what goes to a pseudo-terminal neither.

use super::marker;
use crate::ffi::inject;
use crate::hooks::guest::Guest;
use crate::hooks::guest_text::{kernel_text, user_text};
use crate::hooks::tracker::Tracker;
use crate::session::Session;
use detector::ktap;
use libc::c_uint;
use parking_lot::Mutex;

/// Most bytes of one write that are looked at: terminals take no more at once.
const MAX_WRITE: u64 = 1 << 16;
/// Most bytes of a line.
const MAX_LINE: usize = 1 << 10;
/// Most lines that are not at their end yet, each of a terminal or port.
const MAX_OPEN: usize = 8;
/// Names a virtio port, of which one is as good as any other.
const PORT: u64 = 0;

/// The console of one kernel.
pub(super) struct Console {
    session: &'static Session,
    /// Lines that are not at their end yet, by what they are written to.
    open: Mutex<Vec<(u64, Vec<u8>)>>,
}

impl Console {
    /// Nothing was written yet.
    pub fn new(session: &'static Session) -> Console {
        Console { session, open: Mutex::default() }
    }

    /// A process writes to the terminal `tty`; the kernel has made a copy of the text.
    pub fn tty(&self, tracker: &Tracker, vcpu: c_uint, tty: u64, buf: u64, count: u64) {
        let Guest { kernel, ram, text, .. } = &tracker.guest;
        if !text.is_pty(kernel, ram, tty) {
            let text = kernel_text(kernel, ram, buf, count.min(MAX_WRITE) as usize);
            self.write(tracker, vcpu, tty, &text);
        }
    }

    /// A process writes to a virtio port.
    pub fn port(&self, tracker: &Tracker, vcpu: c_uint, buf: u64, count: u64) {
        let Guest { kernel, ram, .. } = &tracker.guest;
        self.write(tracker, vcpu, PORT, &user_text(kernel, ram, buf, count.min(MAX_WRITE) as usize).bytes);
    }

    /// A record is in the kernel's log, its `prb_reserved_entry` at `entry`.
    pub fn printk(&self, tracker: &Tracker, vcpu: c_uint, entry: u64) {
        if self.session.options.ktap {
            let Guest { kernel, ram, text, .. } = &tracker.guest;
            self.lines(tracker, vcpu, text.record(kernel, ram, entry).split(|b| *b == b'\n'));
        }
    }

    fn write(&self, tracker: &Tracker, vcpu: c_uint, to: u64, text: &[u8]) {
        let mut all = self.open.lock();
        inject("console");
        let before = all.iter().position(|(of, _)| *of == to).map(|i| all.remove(i).1);
        let (whole, rest) = whole_lines(before.unwrap_or_default(), text);
        // Most lines are not of tests.
        if !rest.is_empty() && ktap::may_be(&rest) {
            if all.len() == MAX_OPEN {
                all.remove(0);
            }
            all.push((to, rest));
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
        // Of several that are told of at once, all is over by now.
        if ended.is_some() && self.session.options.per_test {
            marker::scan_after(self.session, vcpu, ended);
        }
    }
}

/// The lines that a text ends, after the start of one, and the start of the next. Lines are cut at
/// [`MAX_LINE`].
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
