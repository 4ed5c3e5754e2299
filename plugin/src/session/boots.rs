//! One kernel after the other in one QEMU: how one ends, and that the next is looked for.
//!
//! A machine that is reset keeps its memory until firmware and the next kernel write to it, so the last look at a kernel is
//! taken when QEMU is about to reset, with the vCPUs stopped and their registers as they were. A kernel that starts another
//! by itself, by kexec, does so in `machine_kexec()` (arch/x86/kernel/machine_kexec_64.c, 5.10 to 7.3), with all other CPUs
//! stopped: that is hooked. A snapshot that is loaded brings the tracked kernel's past or future, or another kernel: which is seen when
//! the guest runs again, since that is when all of it is there.

use super::Session;
use super::hibernation::Hibernated;
use crate::ffi::{host, inject, panics};
use crate::hooks::current;
use crate::output;
use crate::triggers::{console, marker};
use libc::c_uint;
use parking_lot::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::time::Instant;

/// How the search for the guest's kernel goes.
#[derive(Default)]
pub(super) struct Search {
    /// Some block of the guest was translated.
    pub blocks: AtomicBool,
    /// Blocks of a kernel since the search began.
    pub kernel_blocks: AtomicU32,
    /// Searches made.
    pub searches: AtomicU32,
    /// No further search: it succeeded, or failed for good.
    pub settled: AtomicBool,
    /// The last kernel is on its way out: what is still translated of it is not the next one.
    pub leaving: AtomicBool,
    /// A snapshot was loaded, and nobody has looked yet whether the kernel in it is the tracked one.
    pub is_loaded: AtomicBool,
    /// An image of hibernation is being restored: the next kernel begins in the middle.
    pub restoring: AtomicBool,
    /// Kernels that hibernated and may come back, the last one first.
    pub hibernated: Mutex<Vec<Hibernated>>,
    /// Kernels found.
    pub boots: AtomicU64,
}

impl Search {
    /// Starts again.
    fn restart(&self, leaving: bool) {
        self.leaving.store(leaving, Ordering::Relaxed);
        self.kernel_blocks.store(0, Ordering::Relaxed);
        self.searches.store(0, Ordering::Relaxed);
        self.restoring.store(false, Ordering::Relaxed);
        self.settled.store(false, Ordering::Release);
    }

    /// An image is about to be restored.
    pub fn await_image(&self) {
        self.restoring.store(true, Ordering::Relaxed);
    }
}

impl Session {
    /// Has the ends of kernels told to us.
    pub(super) fn watch_ends() {
        let ends = host::Ends {
            reset: || super::session().into_iter().for_each(Session::reset),
            load: || super::session().into_iter().for_each(Session::load),
        };
        if !host::on_ends(ends) {
            log::info!("this QEMU does not tell of resets");
        }
    }

    /// The machine is about to be reset: every vCPU is stopped.
    fn reset(&self) {
        self.take_up_loaded();
        if current::tracker().is_none() {
            // Firmware, or a kernel of which it was said already that it cannot be tracked.
            return;
        }
        log::info!("the machine is reset");
        self.leave(false);
    }

    /// A snapshot is about to be loaded: every vCPU is stopped. Or the machine is about to be reset, and nothing is tracked any more.
    fn load(&self) {
        self.take_up_loaded();
        let Some(tracker) = current::tracker() else {
            // What comes may be a kernel that can be tracked.
            return self.search.restart(false);
        };
        log::info!("a snapshot is loaded");
        self.conclude(false);
        tracker.leave_this_time();
        self.search.is_loaded.store(true, Ordering::Release);
    }

    /// Before anything is made of the guest: if it was loaded from a snapshot, takes up the kernel in it. In a callback of a vCPU,
    /// or every vCPU is stopped.
    #[inline]
    pub fn take_up_loaded(&self) {
        if self.search.is_loaded.load(Ordering::Acquire) {
            self.loaded();
        }
    }

    #[cold]
    fn loaded(&self) {
        // Others wait: only then can they tell whose their blocks are.
        let _one = self.symbols.lock();
        if !self.search.is_loaded.load(Ordering::Acquire) {
            return;
        }
        match current::tracker() {
            Some(tracker) if tracker.is_there() => tracker.read_loaded(),
            Some(_) => {
                log::info!("it is of another boot");
                self.restart(false);
            }
            None => {}
        }
        self.search.is_loaded.store(false, Ordering::Release);
    }

    /// A CPU is about to run the next kernel, which this one has loaded. In the callback of that vCPU.
    pub fn kexec(&'static self, vcpu: c_uint) {
        let done = host::exclusive_after(vcpu as usize, Box::new(|| self.leave(true)));
        if let Err(why) = done {
            log::info!("a kexec could not be waited for: {why}");
        }
    }

    /// QEMU has thrown away what it had translated, as it does while it loads a snapshot. No vCPU runs.
    pub fn flushed(&self) {
        let Some(tracker) = current::tracker().filter(|_| !host::tells_ends()) else { return };
        // With QEMU 10.0 memory is loaded by then, and none of it has run. Or there was only no more room for translations.
        match tracker.is_there() {
            true => _ = tracker.check_time(true),
            false => self.lost(),
        }
    }

    /// Code at a kernel image's addresses is not the tracked kernel's: it is that of a guest's guest, or that kernel is gone, which
    /// QEMU did not tell. Says whether it is gone. In the callback of a vCPU.
    pub(super) fn is_gone(&self) -> bool {
        // One at a time: when it is another's turn, the next kernel may have been found.
        let _one = self.symbols.lock();
        let Some(tracker) = current::tracker() else { return true };
        let gone = !tracker.is_there();
        if gone {
            self.lost();
        }
        gone
    }

    /// What was tracked is gone without a last look at it.
    fn lost(&self) {
        output::warning(
            "the guest was loaded from a snapshot of another boot, and QEMU did not tell before: what had leaked until then and was not reported yet is lost; ask for a scan before loadvm (scan=, control=)",
        );
        self.restart(false);
    }

    /// Every vCPU is stopped: makes the last report of a kernel, and starts to look for the next.
    fn leave(&self, still_runs: bool) {
        self.conclude(false);
        self.restart(still_runs);
    }

    /// Forgets a kernel, and starts to look for the next.
    pub(super) fn restart(&self, still_runs: bool) {
        marker::forget();
        console::forget();
        let marks = std::mem::take(&mut *self.marks.lock());
        self.keep_hibernated(marks);
        *self.failure.lock() = None;
        current::set(None);
        self.search.restart(still_runs);
    }

    /// Every vCPU is stopped, and the kernel comes to its end: makes the last report of it, which is the `last` of all when
    /// QEMU exits.
    pub(super) fn conclude(&self, last: bool) {
        let halted = panics::halted();
        let tracker = match self.known() {
            Ok(tracker) => tracker,
            // Of each kernel there was a report; firmware came after the last one.
            Err(_) if current::tracker().is_none() && self.is_between() => return,
            Err(why) if halted.is_some() => {
                return output::error(&format!(
                    "no result: an internal error had ended the tracking, and by then {why}"
                ));
            }
            Err(why) => return output::error(&why),
        };
        if let Some(Err(why)) = halted.map(|since| self.take_up(&tracker, since)) {
            return output::error(&format!("no result: an internal error had ended the tracking, and {why}"));
        }
        inject("exit");
        marker::flush(self);
        if let Some(times) = &tracker.times {
            times.log(tracker.stacks.len());
        }
        // What had no end is told of all the same: the guest may have crashed in it, or was turned off for it.
        let mut tests = tracker.tests.lock();
        tests.at = tests.end(tracker.sequence());
        drop(tests);
        let began = Instant::now();
        match self.last_scan(&tracker) {
            // Without them, all that was freed since would be reported.
            Ok(found) if halted.is_some() && found.outcome.audit.is_none() => output::error(
                "no result: an internal error had ended the tracking, and the kernel's slabs do not say what was freed since",
            ),
            Ok(found) => {
                self.report(&tracker, &found, began.elapsed(), last);
            }
            Err(e) => output::error(&format!("no result: {e}")),
        }
    }

    /// Whether a kernel was here, and nothing was seen of the next.
    pub(super) fn is_between(&self) -> bool {
        let search = &self.search;
        search.boots.load(Ordering::Relaxed) > 0 && search.kernel_blocks.load(Ordering::Relaxed) == 0
    }
}
