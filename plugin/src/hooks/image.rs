//! The copy of a kernel's live map and pending calls, made at the time of its hibernation image.
//!
//! swsusp_save() (kernel/power/snapshot.c, 5.10 to 7.3) copies memory for the image. Only one CPU
//! runs then, with interrupts disabled. No slab object, vmalloc block or per-CPU block is allocated
//! or freed from its entry to the copy. So a copy made at its entry describes the image.

use super::objects::LiveObjects;
use super::pending::{PendingCall, PendingCalls};
use detector::objects::{Copied, LiveMap, Object};
use std::collections::VecDeque;

/// The copy of a kernel at the time of its image.
pub(super) struct Image {
    /// The live objects, and with `pages=on` the pages.
    maps: Vec<Copied>,
    calls: Vec<(u64, PendingCall)>,
    vfreed: VecDeque<u64>,
    /// The guest's clock at that moment.
    pub jiffies: u64,
    /// Identifies the moment.
    pub moment: u64,
}

impl Image {
    /// Bytes of host memory that [`Image::new`] takes.
    pub fn bytes(objects: &LiveObjects) -> u64 {
        objects.maps().map(Copied::bytes).sum()
    }

    /// Makes the copy. The maps must not change meanwhile.
    pub fn new(objects: &LiveObjects, calls: &PendingCalls, jiffies: u64, moment: u64) -> Image {
        Image {
            maps: objects.maps().map(Copied::of).collect(),
            calls: calls.copy(),
            vfreed: objects.recent_vfrees(),
            jiffies,
            moment,
        }
    }

    /// The copies, each with the map that it was made of.
    fn pairs<'a>(&'a mut self, objects: &'a LiveObjects) -> impl Iterator<Item = (&'a mut Copied, &'a LiveMap)> {
        self.maps.iter_mut().zip(objects.maps())
    }

    /// Calls `each` for every object.
    pub fn for_each(&self, mut each: impl FnMut(&Object)) {
        self.maps.iter().for_each(|map| map.for_each(&mut each));
    }

    /// Empties the maps: the kernel is gone, and only its image can bring it back. Objects that
    /// were reported since stay reported.
    pub fn keep_alone(&mut self, objects: &LiveObjects) {
        for (copy, map) in self.pairs(objects) {
            copy.take_reported(map);
            map.release();
        }
    }

    /// Puts the copy back into the maps. Objects that were reported since stay reported.
    pub fn put_back(mut self, objects: &LiveObjects, calls: &PendingCalls) {
        for (copy, map) in self.pairs(objects) {
            copy.take_reported(map);
            std::mem::take(copy).put_back(map);
        }
        calls.put_back(self.calls);
        objects.set_recent_vfrees(self.vfreed);
    }
}
