//! Hibernation: an image replaces the guest's memory. Then another kernel continues, or the same
//! one at an earlier moment.
//!
//! The kernel that restores the image ends in `restore_image` (arch/x86/power/hibernate_asm_64.S,
//! 5.10 to 7.3), on the only CPU that runs. Code in another page of the direct map then copies the
//! rest of the image. It jumps to `restore_registers` of the kernel in the image. This is the first
//! block at the addresses of kernel images.

use super::Session;
use super::checks::Marks;
use crate::diagnostics;
use crate::ffi::vcpu;
use crate::ffi::witness::GuestStopped;
use crate::hooks::current;
use crate::hooks::tracker::Tracker;
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
    /// A vCPU is about to restore an image. To be called in a callback of that vCPU.
    pub fn restore_image(&'static self, index: c_uint) {
        let work = Box::new(|stopped: &GuestStopped| self.leave_for_image(Some(stopped)));
        if let Err(why) = vcpu::exclusive_after(index as usize, work) {
            log::info!("a resume from hibernation could not be waited for: {why}");
            self.leave_for_image(None);
        }
        // Blocks of the kernel in the image are to be translated again.
        vcpu::flush_translations();
    }

    /// Makes the last report of the kernel that restores an image, if the guest is stopped.
    fn leave_for_image(&self, stopped: Option<&GuestStopped>) {
        log::info!("the guest resumes from hibernation");
        match stopped {
            Some(stopped) => self.conclude(stopped, false),
            None => diagnostics::warning(
                "the guest resumed from hibernation, and this QEMU cannot stop it then; leaks that were not reported before are lost; ask for a scan before the guest resumes (scan=, control=)",
            ),
        }
        self.restart(false);
        self.search.await_image();
    }

    /// The current kernel ends. Keeps the state that is needed if it is resumed. The state is kept
    /// until the kernel is resumed, or until other kernels have hibernated. Other boots may come
    /// between, for example of a kernel that panics before it has found the image.
    pub(super) fn keep_hibernated(&self, marks: Marks) {
        let Some(tracker) = current::tracker().filter(|tracker| tracker.has_image()) else { return };
        tracker.keep_only_image();
        let mut all = self.search.hibernated.lock();
        all.truncate(MAX_HIBERNATED - 1);
        all.insert(0, Hibernated { tracker, marks });
    }

    /// An image was restored. If its kernel was tracked before, tracks it again. Returns whether it
    /// was. To be called in a callback of the only vCPU that runs.
    pub(super) fn take_up_image(&'static self) -> bool {
        let all = std::mem::take(&mut *self.search.hibernated.lock());
        let Some(found) = all.into_iter().find(|hibernated| hibernated.tracker.restore_image()) else {
            log::info!("the kernel in the image was not tracked when it hibernated");
            return false;
        };
        *self.marks.lock() = found.marks;
        current::set(Some((found.tracker, (self.listen)(self))));
        diagnostics::line(
            "note: the guest was resumed from hibernation; objects that were live when it hibernated are live again",
        );
        true
    }
}
