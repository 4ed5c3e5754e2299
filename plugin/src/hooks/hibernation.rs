//! Hibernation: the live objects at the time of the image are live again when the image is
//! restored.
//!
//! The kernel continues after the image is made: it writes the image, and may be reset. Later this
//! kernel, or another one that boots for this purpose, restores the image. The copy of the live map
//! is put back if it belongs to the image.

use super::image::Image;
use super::tracker::Tracker;
use crate::ffi::allocator;
use crate::history::History;
use guest_symbols::memory::GuestMemory;
use std::hash::{DefaultHasher, Hasher};

/// Bytes of each variable that distinguishes one moment of a kernel from another.
const MOMENT: usize = 128;
/// These variables: the registers of the CPU that hibernates (arch/x86/include/asm/suspend_64.h),
/// and the clock (kernel/time/timekeeping.c; the last name from 7.0 on). The clock is stopped then,
/// and contains a reading of the TSC.
const OF_MOMENT: [&str; 3] = ["saved_context", "tk_core", "timekeeper_data"];

impl Tracker {
    /// Copies the live map before the kernel copies its memory for an image. Only one CPU runs
    /// then. Nothing is kept if there is no room for it, or if the live map is incomplete.
    #[cold]
    pub(super) fn keep_image(&self) {
        let mut kept = self.time.hibernated();
        *kept = None;
        let bytes = Image::bytes(&self.objects);
        if self.objects.is_closed() || !allocator::may_have(bytes) {
            log::info!("the guest hibernates, and there is no room to keep the live objects");
            return;
        }
        let jiffies = self.check_time(false);
        *kept = Some(Image::new(&self.objects, &self.calls, jiffies, self.moment()));
        log::info!("the guest hibernates with {} objects; the copy has {bytes} bytes", self.objects.count());
    }

    /// A hash that identifies this moment of the kernel. Its input is part of the image.
    fn moment(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        hasher.write_u64(self.guest.jiffies());
        let kernel = &self.guest.kernel;
        for symbol in OF_MOMENT.into_iter().filter_map(|name| kernel.symbol(name)) {
            let mut bytes = [0; MOMENT];
            // A variable that cannot be read is the same at both moments.
            let _ = self.guest.ram.read(kernel.image_phys(symbol), &mut bytes);
            hasher.write(&bytes);
        }
        hasher.finish()
    }

    /// Whether the kernel has hibernated and the copy of its live map is kept.
    pub fn has_image(&self) -> bool {
        self.time.hibernated().is_some()
    }

    /// The kernel is gone, and only its image can bring it back. Frees everything else.
    pub fn keep_only_image(&self) {
        if let Some(image) = &mut *self.time.hibernated() {
            image.keep_alone(&self.objects);
        }
    }

    /// An image was restored, and none of its code has run. If it is the image of the copy, puts
    /// the copy back. Returns whether it is.
    pub fn restore_image(&self) -> bool {
        let mut kept = self.time.hibernated();
        let is_kept = |image: &mut Image| self.guest.is_there() && image.moment == self.moment();
        let Some(image) = kept.take_if(is_kept) else { return false };
        drop(kept);
        let jiffies = image.jiffies;
        image.put_back(&self.objects, &self.calls);
        self.history.iter().for_each(History::forget);
        self.time.resume(jiffies);
        self.tests.lock().forget(self.objects.sequence());
        self.troubles.forget_this_time();
        self.read_loaded();
        true
    }
}
