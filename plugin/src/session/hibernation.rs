//! Hibernation: memory is brought back from an image, and another kernel goes on than the one that ran, or the same one at an
//! earlier moment.
//!
//! The kernel that restores the image ends in `restore_image` (arch/x86/power/hibernate_asm_64.S, 5.10 to 7.3), on the only
//! CPU that runs. From there code in a page of its own, in the direct map, copies what is left of the image and jumps to
//! `restore_registers` of the kernel in the image. That is the first block that lies where kernel images lie.

use super::Session;
use super::checks::Marks;
use crate::ffi::host;
use crate::hooks::current;
use crate::hooks::tracker::Tracker;
use crate::output;
use libc::c_uint;
use std::sync::Arc;

/// Kernels that hibernated and are kept. One that restores an image may have hibernated itself.
const MAX_HIBERNATED: usize = 2;

/// A kernel that hibernated, and is gone.
pub(super) struct Hibernated {
    tracker: Arc<Tracker>,
    marks: Marks,
}

impl Session {
    /// A CPU is about to restore an image. In the callback of that vCPU.
    pub fn restore_image(&'static self, vcpu: c_uint) {
        let done = host::exclusive_after(vcpu as usize, Box::new(|| self.leave_for_image(true)));
        if let Err(why) = done {
            log::info!("a resume from hibernation could not be waited for: {why}");
            self.leave_for_image(false);
        }
        // Of the kernel in the image everything is to be seen from the start.
        host::flush_translations();
    }

    /// Makes the last report of the kernel that restores an image, if every vCPU is stopped.
    fn leave_for_image(&self, is_stopped: bool) {
        log::info!("the guest resumes from hibernation");
        if is_stopped {
            self.conclude(false);
        } else {
            output::warning(
                "the guest resumed from hibernation, and this QEMU cannot stop it for that: what had leaked until then and was not reported yet is lost",
            );
        }
        self.restart(false);
        self.search.await_image();
    }

    /// The current kernel goes: keeps what is needed should it be resumed, until it is, or others have hibernated since. Boots may come
    /// between, as of a kernel that panics before it has found the image.
    pub(super) fn keep_hibernated(&self, marks: Marks) {
        let Some(tracker) = current::tracker().filter(|tracker| tracker.has_image()) else { return };
        tracker.keep_only_image();
        let mut all = self.search.hibernated.lock();
        all.truncate(MAX_HIBERNATED - 1);
        all.insert(0, Hibernated { tracker, marks });
    }

    /// An image was restored: if it is of a kernel that was tracked, tracks that again, and says so. In a callback of the only vCPU that
    /// runs.
    pub(super) fn take_up_image(&self) -> bool {
        let all = std::mem::take(&mut *self.search.hibernated.lock());
        let Some(found) = all.into_iter().find(|hibernated| hibernated.tracker.restore_image()) else {
            log::info!("the kernel in the image was not tracked when it hibernated");
            return false;
        };
        *self.marks.lock() = found.marks;
        current::set(Some(found.tracker));
        output::line(
            "note: the guest was resumed from hibernation, and what was live when it hibernated is live again",
        );
        true
    }
}
