//! Markers: the guest itself says when to scan, and which test begins.
//!
//! Three ways, none of which needs anything in the guest:
//!
//! - `echo leak:scan > /proc/self/comm`
//! - `echo "libleak: scan" > /dev/kmsg`
//! - the instruction CPUID with [`LEAF`] in eax and the command's number in ecx
//!
//! A marker is seen when the kernel's function, or the instruction, is about to run. What needs a guest that stands still is
//! then done before this vCPU runs another block, and so before the call returns. Nothing waits in the callback, and a vCPU
//! has no more to do than the markers of one block; but a vCPU that sends one after the other waits with its next one as long as
//! all of them stood still for the last, so that the others come to their work. Reports are written by a thread of their own, in order.

use super::command::{Command, parse};
use super::{Done, stopped};
use crate::diagnostics;
use crate::ffi::api::{Block, Insn};
use crate::ffi::regs::{self, Reg};
use crate::ffi::witness::GuestStopped;
use crate::ffi::{self, guard, inject, vcpu};
use crate::hooks::guest_text::{self, Text};
use crate::hooks::tracker::Tracker;
use crate::hooks::{arch, current};
use crate::pause::pace::PACE;
use crate::session::checks::Found;
use crate::session::demand::What;
use crate::session::{Session, session};
use crossbeam_channel::{Sender, bounded};
use detector::guest_tests::MAX_NAME;
use guest_symbols::VirtAddr;
use libc::{c_uint, c_void};
use parking_lot::Mutex;
use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

/// The CPUID leaf of markers: "leak".
pub const LEAF: u32 = 0x6c65_616b;
/// The instruction.
const CPUID: [u8; 2] = [0x0f, 0xa2];
/// Most bytes of a marker.
const MAX_TEXT: usize = 64 + MAX_NAME;
/// Most bytes of a word that is told of.
const MAX_WORD: usize = 64;
/// Most unknown markers that are told of.
const MAX_COMPLAINTS: u32 = 8;
/// Most markers whose text is still to come into memory; each is of a task in a system call.
const MAX_DEFERRED: usize = 64;
/// Most reports that wait to be written; more are written while the guest stands still, which slows it down.
const MAX_REPORTS: usize = 16;

/// Longest that a vCPU waits with its next marker.
const MAX_RUNNING: Duration = Duration::from_millis(100);

/// A marker whose text the process had not in memory yet when the call began.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Deferred {
    task: VirtAddr,
    /// Where a comm's text is, and its length; of a line for /dev/kmsg the log has a copy soon.
    comm: Option<(u64, usize)>,
}

static DEFERRED: Mutex<Vec<Deferred>> = Mutex::new(Vec::new());
static DEFERRED_COUNT: AtomicUsize = AtomicUsize::new(0);

/// A process writes to /proc/PID/comm.
pub fn comm(tracker: &Tracker, vcpu: c_uint, buf: u64, count: u64) {
    inject("comm");
    let count = count.min(MAX_TEXT as u64) as usize;
    let text = guest_text::user(tracker, buf, count);
    tell_or_defer(tracker, vcpu, text, Some((buf, count)));
}

/// A task gets its name: if it wrote that itself, the text is in memory now.
pub fn comm_copied(tracker: &Tracker, vcpu: c_uint) {
    if let Some((buf, count)) = take_deferred(tracker, true).and_then(|d| d.comm) {
        tell(tracker, vcpu, &guest_text::user(tracker, buf, count).bytes);
    }
}

/// A process writes to /dev/kmsg.
pub fn kmsg(tracker: &Tracker, vcpu: c_uint, iter: u64) {
    inject("kmsg");
    tell_or_defer(tracker, vcpu, tracker.text.iter(tracker, iter, MAX_TEXT), None);
}

/// A record is in the log, its `prb_reserved_entry` at `entry`: if it is what this task wrote to /dev/kmsg, that is text that
/// can be read.
pub fn kmsg_copied(tracker: &Tracker, vcpu: c_uint, entry: u64) {
    if take_deferred(tracker, false).is_some() {
        tell(tracker, vcpu, &tracker.text.record(tracker, entry));
    }
}

fn task(tracker: &Tracker) -> Option<VirtAddr> {
    tracker.context.task(&tracker.kernel.view(&tracker.ram), regs::read(arch::PER_CPU_BASE))
}

fn tell_or_defer(tracker: &Tracker, vcpu: c_uint, text: Text, comm: Option<(u64, usize)>) {
    if text.whole {
        return tell(tracker, vcpu, &text.bytes);
    }
    let Some(task) = task(tracker) else { return };
    let mut deferred = DEFERRED.lock();
    // One of a call that failed may have stayed.
    deferred.retain(|d| d.task != task);
    if deferred.len() == MAX_DEFERRED {
        deferred.remove(0);
    }
    deferred.push(Deferred { task, comm });
    DEFERRED_COUNT.store(deferred.len(), Ordering::Relaxed);
}

/// What waits is of a kernel that is gone.
pub fn forget() {
    DEFERRED.lock().clear();
    DEFERRED_COUNT.store(0, Ordering::Relaxed);
}

fn take_deferred(tracker: &Tracker, comm: bool) -> Option<Deferred> {
    // As nearly always.
    if DEFERRED_COUNT.load(Ordering::Relaxed) == 0 {
        return None;
    }
    let task = task(tracker)?;
    let mut deferred = DEFERRED.lock();
    let at = deferred.iter().position(|d| d.task == task && d.comm.is_some() == comm)?;
    let found = deferred.remove(at);
    DEFERRED_COUNT.store(deferred.len(), Ordering::Relaxed);
    Some(found)
}

fn tell(tracker: &Tracker, vcpu: c_uint, text: &[u8]) {
    match parse(text) {
        Some(Ok(command)) => obey(tracker, vcpu, command),
        Some(Err(word)) => {
            complain(&format!("\"{}\"", String::from_utf8_lossy(&word[..word.len().min(MAX_WORD)]).escape_debug()))
        }
        None => {}
    }
}

/// The guest may send any number of markers that are none.
fn complain(what: &str) {
    static COMPLAINTS: AtomicU32 = AtomicU32::new(0);
    if COMPLAINTS.fetch_add(1, Ordering::Relaxed) < MAX_COMPLAINTS {
        diagnostics::warning(&format!(
            "the guest's marker {what} is none: there are scan, mark, clear, test and test NAME"
        ));
    }
}

fn obey(tracker: &Tracker, vcpu: c_uint, command: Command<'_>) {
    let Some(session) = session() else { return };
    let what = match command {
        Command::Test(name) => {
            let ended = tracker.tests.lock().mark(name, tracker.sequence());
            if ended.is_some() && session.options.per_test {
                scan_after(vcpu, ended);
            }
            return;
        }
        Command::Scan => return scan_after(vcpu, tracker.tests.lock().running.clone()),
        Command::Mark(name) => What::Mark { name: name.map(detector::guest_tests::clean) },
        Command::Clear => What::Clear,
    };
    after(vcpu, what, None);
}

/// Scans when this block ends; the report is of the test `at`.
pub fn scan_after(vcpu: c_uint, at: Option<Arc<str>>) {
    let Some(session) = session() else { return };
    after(vcpu, What::Scan { min_age: session.options.min_age.unwrap_or_default() }, at);
}

fn after(index: c_uint, what: What, at: Option<Arc<str>>) {
    let Some(session) = session() else { return };
    // On this vCPU's thread, which holds no lock of QEMU's. Who stops the guest meanwhile waits too, and not for long.
    std::thread::sleep(PACE.rest(Instant::now()).min(MAX_RUNNING));
    let done = vcpu::exclusive_after(index as usize, Box::new(move |guest| do_now(guest, session, &what, at)));
    static TOLD: AtomicBool = AtomicBool::new(false);
    if let Err(why) = done
        && !TOLD.swap(true, Ordering::Relaxed)
    {
        diagnostics::error(&format!("the guest's markers have no effect: {why}; use a distribution's QEMU"));
    }
}

/// The guest is stopped.
fn do_now(guest: &GuestStopped, session: &'static Session, what: &What, at: Option<Arc<str>>) {
    let tracker = match session.tracked() {
        Ok(tracker) => tracker,
        Err(why) => return log::info!("no effect of a marker: {why}"),
    };
    inject("marker");
    let began = Instant::now();
    tracker.tests.lock().at = at;
    let done = stopped(guest, session, &tracker, what);
    tracker.tests.lock().at = None;
    session.paused(began.elapsed());
    PACE.paused(Instant::now(), began.elapsed());
    match done {
        Ok(Done::Found(found)) => {
            let mut reports = REPORTS.lock();
            reports.push_back((Arc::clone(&tracker), found, began.elapsed()));
            let full = reports.len() > MAX_REPORTS;
            drop(reports);
            match WAKE.get().filter(|_| !full) {
                Some(wake) => drop(wake.try_send(())),
                // Nobody who writes waits for a vCPU.
                None => flush(session),
            }
        }
        Ok(Done::Answer(answer)) => {
            log::info!("{what:?} by a marker");
            super::tell(&answer);
        }
        Err(why) => diagnostics::error(&format!("no result of a marker: {why}")),
    }
}

/// What a marker's scan found, of which kernel, and how long that stood still for it.
type Scanned = (Arc<Tracker>, Box<Found>, Duration);

static REPORTS: Mutex<VecDeque<Scanned>> = Mutex::new(VecDeque::new());
/// Held by who writes reports, so that they come in order.
static WRITING: Mutex<()> = Mutex::new(());
static WAKE: OnceLock<Sender<()>> = OnceLock::new();

/// Starts the thread that writes reports of markers. Without it they are written while the guest stands still.
pub fn start(session: &'static Session) {
    if !session.options.guest_markers && !session.options.per_test {
        return;
    }
    let (wake, woken) = bounded(1);
    let spawned = std::thread::Builder::new().name("libleak-markers".into()).spawn(move || {
        ffi::signals::block();
        ffi::guard(|| {
            woken.iter().for_each(|()| {
                inject("reports");
                flush(session);
            });
        });
    });
    if spawned.is_ok() {
        let _ = WAKE.set(wake);
    }
}

/// Writes the reports of markers until now: before any later report.
pub fn flush(session: &Session) {
    let _one = WRITING.lock();
    loop {
        let next = REPORTS.lock().pop_front();
        let Some((tracker, found, pause)) = next else { return };
        session.report(&tracker, &found, pause, false);
    }
}

/// Watches the CPUID instructions of a block that is being translated.
pub fn translate(tracker: &Tracker, block: Block) {
    let count = block.len();
    let (Some(first), Some(last)) = (block.insn(0), block.insn(count.wrapping_sub(1))) else { return };
    let (start, end) = (first.vaddr(), last.vaddr() + CPUID.len() as u64);
    // Nearly all blocks lie in one page and have the bytes nowhere.
    if start >> 12 == (end - 1) >> 12 && !tracker.ram.has_pair(first.host_address(), (end - start) as usize, CPUID) {
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
            current::with(|tracker| cpuid(tracker, vcpu));
        }
    });
}

fn cpuid(tracker: &Tracker, vcpu: c_uint) {
    let name = || {
        let text = match VirtAddr(regs::read(Reg::Rdx)) {
            VirtAddr(0) => Vec::new(),
            at if at.is_kernel() => tracker.kernel.read_string(&tracker.ram, at, MAX_NAME).into_bytes(),
            at => guest_text::user(tracker, at.0, MAX_NAME).bytes,
        };
        let end = text.iter().position(|b| *b == 0).unwrap_or(text.len());
        text[..end].to_vec()
    };
    fn some(name: &[u8]) -> Option<&[u8]> {
        Some(name.trim_ascii()).filter(|name| !name.is_empty())
    }
    match regs::read(Reg::Rcx) as u32 {
        1 => obey(tracker, vcpu, Command::Scan),
        2 => obey(tracker, vcpu, Command::Mark(some(&name()))),
        3 => obey(tracker, vcpu, Command::Clear),
        4 => obey(tracker, vcpu, Command::Test(some(&name()))),
        n => complain(&format!("by cpuid, number {n},")),
    }
}
