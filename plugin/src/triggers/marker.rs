//! Markers: the guest asks for scans, and names tests.
//!
//! There are three ways. None needs software in the guest.
//!
//! - `echo leak:scan > /proc/self/comm`
//! - `echo "libleak: scan" > /dev/kmsg`
//! - the instruction CPUID with [`LEAF`] in eax and the command's number in ecx. With this one a
//!   process can wait for the [`answer`]
//!
//! A marker is seen when the kernel's function or the instruction is about to run. Its demand is
//! served before this vCPU runs another block, and so before the call returns. A vCPU that sends
//! one marker after the other has to wait as long as the guest was stopped for the last one, so
//! that the other vCPUs make progress. Another thread writes the reports.

use super::answer::{self, Buffer, Reply};
use super::command::{Command, parse};
use crate::diagnostics;
use crate::ffi::api::{Block, Insn};
use crate::ffi::regs::{self, Reg};
use crate::ffi::witness::{GuestStopped, Work};
use crate::ffi::{guard, inject, vcpu};
use crate::hooks::current;
use crate::hooks::guest::Guest;
use crate::hooks::guest_text::{Text, user_text};
use crate::hooks::tracker::Tracker;
use crate::session::demand::What;
use crate::session::{Session, session};
use detector::guest_tests::MAX_NAME;
use guest_symbols::VirtAddr;
use libc::{c_uint, c_void};
use parking_lot::Mutex;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// The CPUID leaf of markers: "leak".
pub const LEAF: u32 = 0x6c65_616b;
/// The bytes of the instruction CPUID.
const CPUID: [u8; 2] = [0x0f, 0xa2];
/// Most bytes of a marker.
const MAX_TEXT: usize = 64 + MAX_NAME;
/// Most bytes of an unknown word in a warning.
const MAX_WORD: usize = 64;
/// Most warnings about unknown markers.
const MAX_COMPLAINTS: u32 = 8;
/// Most markers whose text is not in memory yet. Each belongs to a task in a system call.
const MAX_DEFERRED: usize = 64;
/// Longest time that a vCPU waits before its next marker.
const MAX_RUNNING: Duration = Duration::from_millis(100);

/// A marker whose text was not in memory when the call began.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Deferred {
    task: VirtAddr,
    /// Where the text for /proc/PID/comm is; `None` for a line for /dev/kmsg, which the log will
    /// contain.
    comm: Option<UserBuffer>,
}

/// Text in the memory of a process.
#[derive(Clone, Copy, PartialEq, Eq)]
struct UserBuffer {
    /// Its address in that process.
    at: VirtAddr,
    /// Bytes.
    len: usize,
}

/// The markers of one kernel.
pub(super) struct Markers {
    session: &'static Session,
    deferred: Mutex<Vec<Deferred>>,
    /// The number of deferred markers. It is nearly always 0, and is read without the lock.
    deferred_count: AtomicUsize,
}

impl Markers {
    /// No markers yet.
    pub fn new(session: &'static Session) -> Markers {
        Markers { session, deferred: Mutex::default(), deferred_count: AtomicUsize::new(0) }
    }

    /// A process writes `count` bytes at its own address `buf` to /proc/PID/comm.
    pub fn comm(&self, tracker: &Tracker, vcpu: c_uint, buf: VirtAddr, count: u64) {
        inject("comm");
        let count = count.min(MAX_TEXT as u64) as usize;
        let text = user_text(&tracker.guest.kernel, &tracker.guest.ram, buf, count);
        self.tell_or_defer(tracker, vcpu, text, Some(UserBuffer { at: buf, len: count }));
    }

    /// A task gets its name. If the task wrote the name itself, the text is in memory now.
    pub fn comm_copied(&self, tracker: &Tracker, vcpu: c_uint) {
        if let Some(UserBuffer { at, len }) = self.take_deferred(tracker, true).and_then(|d| d.comm) {
            let text = user_text(&tracker.guest.kernel, &tracker.guest.ram, at, len);
            tell(self.session, tracker, vcpu, &text.bytes);
        }
    }

    /// A process writes to /dev/kmsg. Its `iov_iter` is at `iter`.
    pub fn kmsg(&self, tracker: &Tracker, vcpu: c_uint, iter: VirtAddr) {
        inject("kmsg");
        let Guest { kernel, ram, text, .. } = &tracker.guest;
        self.tell_or_defer(tracker, vcpu, text.iter(kernel, ram, iter, MAX_TEXT), None);
    }

    /// A record is in the log, its `prb_reserved_entry` at `entry`. If this task wrote it to
    /// /dev/kmsg, the text can be read from the log.
    pub fn kmsg_copied(&self, tracker: &Tracker, vcpu: c_uint, entry: VirtAddr) {
        if self.take_deferred(tracker, false).is_some() {
            let Guest { kernel, ram, text, .. } = &tracker.guest;
            tell(self.session, tracker, vcpu, &text.record(kernel, ram, entry));
        }
    }

    fn tell_or_defer(&self, tracker: &Tracker, vcpu: c_uint, text: Text, comm: Option<UserBuffer>) {
        if text.whole {
            return tell(self.session, tracker, vcpu, &text.bytes);
        }
        let Some(task) = tracker.guest.task() else { return };
        let mut deferred = self.deferred.lock();
        // A failed call may have left a marker.
        deferred.retain(|d| d.task != task);
        if deferred.len() == MAX_DEFERRED {
            deferred.remove(0);
        }
        deferred.push(Deferred { task, comm });
        self.deferred_count.store(deferred.len(), Ordering::Relaxed);
    }

    fn take_deferred(&self, tracker: &Tracker, comm: bool) -> Option<Deferred> {
        // This is the usual case.
        if self.deferred_count.load(Ordering::Relaxed) == 0 {
            return None;
        }
        let task = tracker.guest.task()?;
        let mut deferred = self.deferred.lock();
        let at = deferred.iter().position(|d| d.task == task && d.comm.is_some() == comm)?;
        let found = deferred.remove(at);
        self.deferred_count.store(deferred.len(), Ordering::Relaxed);
        Some(found)
    }
}

fn tell(session: &'static Session, tracker: &Tracker, vcpu: c_uint, text: &[u8]) {
    match parse(text) {
        Some(Ok(command)) => obey(session, tracker, vcpu, command),
        Some(Err(word)) => {
            complain(&format!("\"{}\"", String::from_utf8_lossy(&word[..word.len().min(MAX_WORD)]).escape_debug()))
        }
        None => {}
    }
}

/// Warns of an unknown marker. The guest may send any number of them.
fn complain(what: &str) {
    /// Counts for all kernels of this QEMU: a guest that reboots again and again must not fill the
    /// disk.
    static COMPLAINTS: AtomicU32 = AtomicU32::new(0);
    if COMPLAINTS.fetch_add(1, Ordering::Relaxed) < MAX_COMPLAINTS {
        diagnostics::warning(&format!(
            "the guest's marker {what} is unknown; known are scan, mark, clear, test and test NAME"
        ));
    }
}

fn obey(session: &'static Session, tracker: &Tracker, vcpu: c_uint, command: Command<'_>) {
    if let Some((what, at)) = demanded(session, tracker, command) {
        after(session, vcpu, what, at);
    }
}

/// Begins or ends a test. Returns what has to be done while the guest is stopped, and the test that
/// its report belongs to.
fn demanded(session: &Session, tracker: &Tracker, command: Command<'_>) -> Option<(What, Option<Arc<str>>)> {
    let scan = || What::Scan { min_age: session.options.min_age.unwrap_or_default() };
    Some(match command {
        Command::Test(name) => {
            let ended = tracker.tests.lock().mark(name, tracker.objects.sequence());
            let is_scanned = ended.is_some() && session.options.per_test;
            return is_scanned.then(|| (scan(), ended));
        }
        Command::Scan => (scan(), tracker.tests.lock().running.clone()),
        Command::Mark(name) => (What::Mark { name: name.map(detector::guest_tests::clean) }, None),
        Command::Clear => (What::Clear, None),
    })
}

/// Scans at the end of this block. The report belongs to the test `at`.
pub(super) fn scan_after(session: &'static Session, vcpu: c_uint, at: Option<Arc<str>>) {
    after(session, vcpu, What::Scan { min_age: session.options.min_age.unwrap_or_default() }, at);
}

fn after(session: &'static Session, vcpu: c_uint, what: What, at: Option<Arc<str>>) {
    rest(session);
    at_end_of_block(vcpu, Box::new(move |stopped: &GuestStopped| session.obey_marker(stopped, &what, at)));
}

/// Lets the guest run for as long as it was stopped for the last marker.
fn rest(session: &Session) {
    // This vCPU's thread holds no lock of QEMU. Another thread that stops the guest has to wait for
    // this one, but not for long.
    std::thread::sleep(session.pace.rest(Instant::now()).min(MAX_RUNNING));
}

fn at_end_of_block(vcpu: c_uint, work: Work) {
    /// The error concerns QEMU, so it is printed once for all kernels.
    static TOLD: AtomicBool = AtomicBool::new(false);
    if let Err(why) = vcpu::exclusive_after(vcpu as usize, work)
        && !TOLD.swap(true, Ordering::Relaxed)
    {
        diagnostics::error(&format!("the guest's markers have no effect: {why}; use a distribution's QEMU"));
    }
}

/// Adds a callback to the CPUID instructions of a block that is being translated.
pub(super) fn translate(tracker: &Tracker, block: Block) {
    let count = block.len();
    let (Some(first), Some(last)) = (block.insn(0), block.insn(count.wrapping_sub(1))) else { return };
    let (start, end) = (first.vaddr(), last.vaddr() + CPUID.len() as u64);
    // Nearly all blocks lie in one page and do not contain the bytes.
    if start >> 12 == (end - 1) >> 12
        && !tracker.guest.ram.has_pair(first.host_address(), (end - start) as usize, CPUID)
    {
        return;
    }
    for insn in (0..count).filter_map(|i| block.insn(i)).filter(|insn| is_cpuid(*insn)) {
        insn.on_exec(on_cpuid, 0);
    }
}

fn is_cpuid(insn: Insn) -> bool {
    *insn.bytes() == CPUID
}

extern "C" fn on_cpuid(vcpu: c_uint, _: *mut c_void) {
    guard(|| {
        if regs::read(Reg::Rax) as u32 == LEAF {
            inject("cpuid");
            if let Some(session) = session() {
                current::with(|tracker| cpuid(session, tracker, vcpu));
            }
        }
    });
}

fn cpuid(session: &'static Session, tracker: &Tracker, vcpu: c_uint) {
    let name = || {
        let text = match VirtAddr(regs::read(Reg::Rdx)) {
            VirtAddr(0) => Vec::new(),
            at if at.is_kernel() => tracker.guest.kernel.read_string(&tracker.guest.ram, at, MAX_NAME).into_bytes(),
            at => user_text(&tracker.guest.kernel, &tracker.guest.ram, at, MAX_NAME).bytes,
        };
        let end = text.iter().position(|b| *b == 0).unwrap_or(text.len());
        text[..end].to_vec()
    };
    fn some(name: &[u8]) -> Option<&[u8]> {
        Some(name.trim_ascii()).filter(|name| !name.is_empty())
    }
    let number = regs::read(Reg::Rcx) as u32;
    let name = name();
    let command = match number & !answer::WANTED {
        1 => Some(Command::Scan),
        2 => Some(Command::Mark(some(&name))),
        3 => Some(Command::Clear),
        4 => Some(Command::Test(some(&name))),
        _ => None,
    };
    match command {
        command if number & answer::WANTED != 0 => answer(session, tracker, vcpu, number, command),
        Some(command) => obey(session, tracker, vcpu, command),
        None => complain(&format!("by cpuid, number {number},")),
    }
}

/// Obeys a marker whose process waits for the answer. Without a command the answer says that
/// libleak is here.
fn answer(session: &'static Session, tracker: &Tracker, vcpu: c_uint, number: u32, command: Option<Command<'_>>) {
    let buffer = Buffer::of_registers(tracker);
    let early = match command {
        None if number == answer::WANTED => Reply::here(&tracker.guest.kernel.release),
        None => Reply::unknown(number),
        Some(_) => Reply::done(),
    };
    let demand = command.and_then(|command| demanded(session, tracker, command));
    rest(session);
    at_end_of_block(
        vcpu,
        Box::new(move |stopped: &GuestStopped| {
            let reply = match demand {
                Some((what, at)) => Reply::of(&session.answer_marker(stopped, &what, at)),
                None => early,
            };
            if let Some(tracker) = current::tracker() {
                buffer.put(&tracker.guest.ram, stopped, &reply);
            }
        }),
    );
}
