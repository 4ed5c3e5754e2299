//! Hibernation: what was live when the kernel copied its memory for the image is live again when the image is restored.
//!
//! swsusp_save() (kernel/power/snapshot.c, 5.10 to 7.3) makes the copy. One CPU runs then, with interrupts off, and no slab object,
//! vmalloc block or per-CPU block is allocated or freed from its entry to the copy. So what is known at its entry is what the image has.
//! The kernel goes on meanwhile: it writes the image, and may be reset. When an image is restored, by this kernel or by another one
//! that booted for it, the copy is put back, if the image is the one of that moment.

use super::tracker::{Pending, Tracker};
use crate::ffi::memory;
use detector::objects::{Copied, LiveMap, Object};
use guest_symbols::memory::GuestMemory;
use std::collections::VecDeque;
use std::hash::{DefaultHasher, Hasher};
use std::sync::atomic::Ordering;

/// Bytes of each of the variables that tell one moment of a kernel from another.
const MOMENT: usize = 128;
/// What they are called: the registers of the CPU that hibernates (arch/x86/include/asm/suspend_64.h), and the clock, which
/// stands still then and has a reading of the TSC in it (kernel/time/timekeeping.c; the last from 7.0 on).
const OF_MOMENT: [&str; 3] = ["saved_context", "tk_core", "timekeeper_data"];

/// What was known of a kernel at the moment of its image.
pub struct Image {
    live: Copied,
    pages: Option<Copied>,
    pending: Vec<(u64, Pending)>,
    vfreed: VecDeque<u64>,
    jiffies: u64,
    moment: u64,
}

impl Image {
    /// The live maps of a tracker, and the copies of them.
    fn maps<'a>(&'a mut self, tracker: &'a Tracker) -> impl Iterator<Item = (&'a mut Copied, &'a LiveMap)> {
        let pages = self.pages.as_mut().zip(tracker.pages.as_ref().map(|pages| &pages.map));
        [(&mut self.live, &tracker.live)].into_iter().chain(pages)
    }

    /// Calls `each` for every object.
    pub(super) fn for_each(&self, mut each: impl FnMut(&Object)) {
        self.live.for_each(&mut each);
        self.pages.iter().for_each(|pages| pages.for_each(&mut each));
    }
}

impl Tracker {
    /// The only CPU that runs is about to copy memory for an image: keeps what is live. Nothing is kept without room for the copy,
    /// or when the live map is closed.
    #[cold]
    pub(super) fn keep_image(&self) {
        let mut kept = self.hibernated.lock();
        *kept = None;
        let pages = self.pages.as_ref().map(|pages| &pages.map);
        let bytes = Copied::bytes(&self.live) + pages.map_or(0, Copied::bytes);
        if self.closed.load(Ordering::Relaxed) || !memory::may_have(bytes) {
            log::info!("the guest hibernates, and there is no room to keep what is live");
            return;
        }
        let jiffies = self.check_time(false);
        *kept = Some(Image {
            live: Copied::of(&self.live),
            pages: pages.map(Copied::of),
            pending: self.pending.iter().map(|p| (*p.key(), *p.value())).collect(),
            vfreed: self.vfreed.lock().clone(),
            jiffies,
            moment: self.moment(),
        });
        log::info!("the guest hibernates with {} objects, which are kept in {bytes} bytes", self.live.len());
    }

    /// What tells this moment of the kernel from all others: all of it is in its image.
    fn moment(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        hasher.write_u64(self.context.jiffies(&self.ram));
        for symbol in OF_MOMENT.into_iter().filter_map(|name| self.kernel.symbol(name)) {
            let mut bytes = [0; MOMENT];
            // What cannot be read is the same at both moments.
            let _ = self.ram.read(self.kernel.image_phys(symbol), &mut bytes);
            hasher.write(&bytes);
        }
        hasher.finish()
    }

    /// Whether the kernel has hibernated, and what was live then is kept.
    pub fn has_image(&self) -> bool {
        self.hibernated.lock().is_some()
    }

    /// The kernel is gone, and comes again only by its image: gives up what is of no use then.
    pub fn keep_only_image(&self) {
        if let Some(image) = &mut *self.hibernated.lock() {
            for (copy, map) in image.maps(self) {
                copy.take_reported(map);
                map.release();
            }
        }
    }

    /// An image was restored, and nothing of it has run: if it is this kernel's, of the moment when it hibernated, brings back what was
    /// known then, and says so. What was reported since is not reported again.
    pub fn restore_image(&self) -> bool {
        let mut kept = self.hibernated.lock();
        let Some(mut image) = kept.take_if(|image| self.is_there() && image.moment == self.moment()) else {
            return false;
        };
        drop(kept);
        image.maps(self).for_each(|(copy, map)| {
            copy.take_reported(map);
            std::mem::take(copy).put_back(map);
        });
        let armed = image.pending.iter().filter(|(_, p)| p.armed).count() as u64;
        self.pending.clear();
        image.pending.into_iter().for_each(|(slot, pending)| _ = self.pending.insert(slot, pending));
        *self.armed.lock() = armed;
        self.show_armed();
        *self.vfreed.lock() = image.vfreed;
        self.jiffies.store(image.jiffies, Ordering::Release);
        self.clock.go_back(image.jiffies);
        self.tests.lock().forget(self.sequence());
        self.troubles.forget_this_time();
        self.read_loaded();
        true
    }
}
