//! Reboots: one QEMU runs several kernels in turn. The last report of a kernel is made when it
//! ends, and then the next kernel is searched for.
//!
//! On a reset, the last check runs just before QEMU resets the machine. At that time the vCPUs are
//! stopped, and memory and registers are unchanged. On a kexec, the kernel calls `machine_kexec()`
//! (arch/x86/kernel/machine_kexec_64.c, 5.10 to 7.3) with all other CPUs stopped; that function is
//! hooked. A loaded snapshot contains the tracked kernel at another time, or another kernel. Which
//! one is decided when the guest runs again, because only then all of it is loaded.

use super::Session;
use super::hibernation::Hibernated;
use crate::diagnostics;
use crate::ffi::witness::GuestStopped;
use crate::ffi::{inject, lifecycle, panics, vcpu};
use crate::hooks::current;
use libc::c_uint;
use parking_lot::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::time::Instant;

/// State of the search for the guest's kernel.
#[derive(Default)]
pub(super) struct Search {
    /// QEMU has translated a block of the guest.
    pub blocks: AtomicBool,
    /// Blocks in the kernel's half that were translated since the search began.
    pub kernel_blocks: AtomicU32,
    /// Searches done.
    pub searches: AtomicU32,
    /// The search has succeeded, or failed for good.
    pub settled: AtomicBool,
    /// The last kernel is still running towards its end. Its blocks are not those of the next
    /// kernel.
    pub leaving: AtomicBool,
    /// A snapshot was loaded, and it is not known yet whether it contains the tracked kernel.
    pub is_loaded: AtomicBool,
    /// An image of hibernation is being restored: the next kernel starts in the middle.
    pub restoring: AtomicBool,
    /// Kernels that hibernated and may come back, the last one first.
    pub hibernated: Mutex<Vec<Hibernated>>,
    /// Kernels found.
    pub boots: AtomicU64,
}

impl Search {
    /// Starts a new search.
    fn restart(&self, leaving: bool) {
        self.leaving.store(leaving, Ordering::Relaxed);
        self.kernel_blocks.store(0, Ordering::Relaxed);
        self.searches.store(0, Ordering::Relaxed);
        self.restoring.store(false, Ordering::Relaxed);
        self.settled.store(false, Ordering::Release);
    }

    /// An image of hibernation is about to be restored.
    pub fn await_image(&self) {
        self.restoring.store(true, Ordering::Relaxed);
    }
}

impl Session {
    /// Registers handlers for resets and loaded snapshots.
    pub(super) fn watch_ends() {
        let ends = lifecycle::Ends {
            reset: |stopped| super::session().into_iter().for_each(|session| session.reset(stopped)),
            load: |stopped| super::session().into_iter().for_each(|session| session.load(stopped)),
        };
        if !lifecycle::on_ends(ends) {
            log::info!("this QEMU does not report resets");
        }
    }

    /// The machine is about to be reset.
    fn reset(&self, stopped: &GuestStopped) {
        self.take_up_loaded();
        if current::tracker().is_none() {
            // Firmware ran, or a kernel that cannot be tracked, which was reported.
            return;
        }
        log::info!("the machine is reset");
        self.leave(stopped, false);
    }

    /// A snapshot is about to be loaded. Also called before a reset, after `reset` has ended the
    /// tracking.
    fn load(&self, stopped: &GuestStopped) {
        self.take_up_loaded();
        let Some(tracker) = current::tracker() else {
            // The snapshot may contain a kernel that can be tracked.
            return self.search.restart(false);
        };
        log::info!("a snapshot is loaded");
        self.conclude(stopped, false);
        tracker.leave_this_time();
        self.search.is_loaded.store(true, Ordering::Release);
    }

    /// If a snapshot was loaded, finds out whether it contains the tracked kernel. Call it before
    /// the guest is examined, in a callback of a vCPU or while all vCPUs are stopped.
    #[inline]
    pub fn take_up_loaded(&self) {
        if self.search.is_loaded.load(Ordering::Acquire) {
            self.loaded();
        }
    }

    #[cold]
    fn loaded(&self) {
        // Other vCPUs wait here: until this is done they cannot tell which kernel their blocks
        // belong to.
        let _one = self.symbols.lock();
        if !self.search.is_loaded.load(Ordering::Acquire) {
            return;
        }
        match current::tracker() {
            Some(tracker) if tracker.guest.is_there() => tracker.read_loaded(),
            Some(_) => {
                log::info!("it is of another boot");
                self.restart(false);
            }
            None => {}
        }
        self.search.is_loaded.store(false, Ordering::Release);
    }

    /// A vCPU is about to start the next kernel by kexec. To be called in a callback of that vCPU.
    pub fn kexec(&'static self, index: c_uint) {
        let done = vcpu::exclusive_after(index as usize, Box::new(|stopped| self.leave(stopped, true)));
        if let Err(why) = done {
            log::info!("a kexec could not be waited for: {why}");
        }
    }

    /// QEMU has flushed its translations, as it does while it loads a snapshot. No vCPU runs.
    pub fn flushed(&self) {
        let Some(tracker) = current::tracker().filter(|_| !lifecycle::tells_ends()) else { return };
        // In QEMU 10.0 the memory is loaded by now and has not run. A flush also occurs when the
        // buffer for translations is full.
        match tracker.guest.is_there() {
            true => _ = tracker.check_time(true),
            false => self.lost(),
        }
    }

    /// Returns whether the tracked kernel is gone. Foreign code was found at the addresses of a
    /// kernel image: it is a nested guest's, or QEMU did not report the end of the kernel. To be
    /// called in a callback of a vCPU.
    pub(super) fn is_gone(&self) -> bool {
        // One vCPU at a time: while this one waited, another may have found the next kernel.
        let _one = self.symbols.lock();
        let Some(tracker) = current::tracker() else { return true };
        let gone = !tracker.guest.is_there();
        if gone {
            self.lost();
        }
        gone
    }

    /// The tracked kernel is gone and was not checked.
    fn lost(&self) {
        diagnostics::warning(
            "QEMU loaded a snapshot of another boot without notice; leaks that were not reported before are lost; ask for a scan before loadvm (scan=, control=)",
        );
        self.restart(false);
    }

    /// Makes the last report of a kernel, and starts to search for the next.
    fn leave(&self, stopped: &GuestStopped, still_runs: bool) {
        self.conclude(stopped, false);
        self.restart(still_runs);
    }

    /// Forgets a kernel, and starts to search for the next.
    pub(super) fn restart(&self, still_runs: bool) {
        let marks = std::mem::take(&mut *self.marks.lock());
        self.keep_hibernated(marks);
        *self.failure.lock() = None;
        current::set(None);
        self.search.restart(still_runs);
    }

    /// Makes the last report of a kernel. `last` is whether QEMU exits, so that it is the last
    /// report of all.
    pub(super) fn conclude(&self, stopped: &GuestStopped, last: bool) {
        let halted = panics::halted();
        let tracker = match self.known() {
            Ok(tracker) => tracker,
            // The last kernel has been reported. Only firmware ran since.
            Err(_) if current::tracker().is_none() && self.is_between() => return,
            Err(why) if halted.is_some() => {
                return diagnostics::error(&format!(
                    "no result: an internal error had ended the tracking, and by then {why}"
                ));
            }
            Err(why) => return diagnostics::error(&why.to_string()),
        };
        if let Some(Err(why)) = halted.map(|since| self.take_up(&tracker, since)) {
            return diagnostics::error(&format!("no result: an internal error had ended the tracking, and {why}"));
        }
        inject("exit");
        self.flush_reports();
        tracker.unwinder.log_times();
        // A test that has not ended is reported too: the guest may have crashed in it.
        let mut tests = tracker.tests.lock();
        tests.at = tests.end(tracker.objects.sequence());
        drop(tests);
        let began = Instant::now();
        match self.last_scan(stopped, &tracker) {
            // Without slab metadata, objects freed since the panic would be reported.
            Ok(found) if halted.is_some() && found.outcome.audit.is_none() => diagnostics::error(
                "no result: an internal error had ended the tracking, and the kernel's slabs cannot show what was freed since",
            ),
            Ok(found) => {
                self.report(&tracker, &found, began.elapsed(), last);
            }
            Err(e) => diagnostics::error(&format!("no result: {e}")),
        }
    }

    /// Whether a kernel has ended and no block of another has been translated.
    pub(super) fn is_between(&self) -> bool {
        let search = &self.search;
        search.boots.load(Ordering::Relaxed) > 0 && search.kernel_blocks.load(Ordering::Relaxed) == 0
    }
}
