//! Live objects and pages, names of tasks, and the number of objects that could not be entered.

use super::guest::Guest;
use crate::ffi::inject;
use detector::clock::{Clock, Reading};
use detector::comms::{Comm, CommId, Comms};
use detector::frozen::Objects;
use detector::objects::{Counters, Inserted, Kind, LiveMap, Object, Removed};
use guest_symbols::memory::GuestMemory;
use guest_symbols::pages::Maps;
use parking_lot::Mutex;
use std::cell::Cell;
use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};

/// Initial capacity of the live map. It grows as needed: a dense table uses caches better.
const CAPACITY: usize = 1 << 12;
/// Bytes of RAM for each live object in the default limit. The smallest slab objects have 8 bytes,
/// but the average is 300.
const BYTES_AN_OBJECT: u64 = 16;
/// Most blocks that are remembered as just freed. vfree() and vfree_atomic() call each other, so
/// one block may be freed twice.
const RECENT_VFREES: usize = 256;

thread_local! {
    /// The last name of a task on this thread, and its number. Nearly every allocation has the same
    /// task as the one before, and then looks up nothing that threads share.
    static LAST_COMM: Cell<(Comm, CommId)> = Cell::default();
}

/// Forgets what this thread remembers about an earlier kernel.
pub(super) fn forget() {
    LAST_COMM.take();
}

/// The default limit of live objects.
pub(super) fn default_most(ram: &impl GuestMemory) -> usize {
    let bytes: u64 = ram.ranges().iter().map(|r| r.end - r.start).sum();
    usize::try_from(bytes / BYTES_AN_OBJECT).unwrap_or(usize::MAX)
}

/// Allocated pages.
struct Pages {
    /// By address in the direct map.
    map: LiveMap,
    /// Bytes of a page descriptor.
    descriptor: u64,
}

/// A counter in its own cache lines: every allocation writes it, and all CPUs read what is beside
/// it.
#[repr(align(128))]
struct Sequence(AtomicU64);

/// Live objects.
pub struct LiveObjects {
    live: LiveMap,
    /// With `pages=on`, allocated pages. Freed pages stay in the map: page descriptors tell which
    /// are free.
    pages: Option<Pages>,
    /// Names of tasks.
    comms: Comms,
    /// The sequence number of the next object.
    sequence: Sequence,
    /// Blocks that vfree() freed last.
    vfreed: Mutex<VecDeque<u64>>,
    /// No new objects are entered. See [`super::memory_budget`].
    closed: AtomicBool,
    /// Allocations minus frees since then.
    unentered: AtomicI64,
}

impl LiveObjects {
    /// No objects, with a limit of `most`. `descriptor` is the size of a page descriptor in bytes,
    /// if pages are tracked.
    pub fn new(most: usize, descriptor: Option<u64>) -> LiveObjects {
        let map = || LiveMap::with_capacity(CAPACITY).with_most(most);
        LiveObjects {
            live: map(),
            pages: descriptor.map(|descriptor| Pages { map: map(), descriptor }),
            comms: Comms::default(),
            sequence: Sequence(AtomicU64::new(1)),
            vfreed: Mutex::new(VecDeque::with_capacity(RECENT_VFREES)),
            closed: AtomicBool::new(false),
            unentered: AtomicI64::new(0),
        }
    }

    /// The map of objects, and that of pages.
    pub(super) fn maps(&self) -> impl Iterator<Item = &LiveMap> {
        [&self.live].into_iter().chain(self.pages.as_ref().map(|pages| &pages.map))
    }

    /// The counters of objects. Pages are not counted.
    pub fn counters(&self) -> Counters {
        self.live.counters()
    }

    /// The number of live objects and pages.
    pub fn count(&self) -> u64 {
        self.maps().map(|map| map.len() as u64).sum()
    }

    /// Calls `each` for every live object.
    pub(super) fn for_each(&self, mut each: impl FnMut(&Object)) {
        self.maps().for_each(|map| map.for_each(&mut each));
    }

    /// A copy of all live objects, ascending by address. With `pages=on` it contains pages, which
    /// may have the address of an object. `now` is the time.
    pub fn copy(&self, clock: &Clock, now: Reading) -> Objects {
        let maps: Vec<&LiveMap> = self.maps().collect();
        Objects::of(&maps, &self.comms, clock, now)
    }

    /// Frees the maps' memory. They are not used any more.
    pub fn release(&self) {
        self.maps().for_each(LiveMap::release);
    }

    /// Forgets all objects.
    pub(super) fn clear(&self) {
        self.maps().for_each(LiveMap::clear);
    }

    /// Remembers that an object was reported.
    pub fn set_reported(&self, addr: u64, kind: Kind) {
        match (kind, &self.pages) {
            (Kind::Pages, Some(pages)) => pages.map.set_reported(addr),
            _ => self.live.set_reported(addr),
        }
    }

    /// The sequence number of the next object. All objects that are live now have lower ones.
    #[inline]
    pub fn sequence(&self) -> u64 {
        self.sequence.0.load(Ordering::Relaxed)
    }

    /// Takes the next sequence number.
    #[inline]
    pub(super) fn next_sequence(&self) -> u64 {
        self.sequence.0.fetch_add(1, Ordering::Relaxed)
    }

    /// The number of a task's name.
    pub(super) fn comm(&self, comm: Comm) -> CommId {
        LAST_COMM.with(|last| {
            let (name, id) = last.get();
            if name == comm && id != CommId::default() {
                return id;
            }
            let id = self.comms.intern(comm);
            last.set((comm, id));
            id
        })
    }

    /// Whether there were more names of tasks than are kept.
    pub(super) fn are_comms_cut(&self) -> bool {
        self.comms.is_cut()
    }

    /// Whether the maps are closed, so that no new objects are entered.
    #[inline]
    pub(super) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Relaxed)
    }

    /// Closes the maps. Returns whether they were open.
    pub(super) fn close(&self) -> bool {
        !self.closed.swap(true, Ordering::Relaxed)
    }

    /// Live objects that were allocated since the maps were closed.
    pub(super) fn unentered(&self) -> u64 {
        self.unentered.load(Ordering::Relaxed).max(0) as u64
    }

    /// Whether an object with at least sequence number `sequence` contains the address.
    #[inline]
    pub(super) fn is_inside(&self, addr: u64, sequence: u64) -> bool {
        self.live.is_inside(addr, sequence)
    }

    /// The kind of a live object at virtual address `addr` that is older than sequence number
    /// `sequence`.
    #[inline]
    pub(super) fn kept_since(&self, addr: u64, sequence: u64) -> Option<Kind> {
        self.live.kept_since(addr, sequence)
    }

    /// Replaces what is known of the object for which [`LiveObjects::kept_since`] returned a kind.
    pub(super) fn take(&self, addr: u64, object: Object, sequence: u64) {
        self.live.take(addr, object, sequence);
    }

    /// Blocks that vfree() freed last, to be kept with an image of hibernation.
    pub(super) fn recent_vfrees(&self) -> VecDeque<u64> {
        self.vfreed.lock().clone()
    }

    /// Sets these blocks again.
    pub(super) fn set_recent_vfrees(&self, blocks: VecDeque<u64>) {
        *self.vfreed.lock() = blocks;
    }

    /// Enters an object of `size` bytes at virtual address `addr`. Its call began at sequence
    /// number `sequence`.
    #[inline]
    pub(super) fn insert(&self, addr: u64, object: Object, size: u64, sequence: u64) -> Inserted {
        self.live.insert(addr, object, size, sequence)
    }

    /// Enters pages, given the virtual address `page` of the first page's descriptor. Returns false
    /// if pages are not tracked.
    pub(super) fn insert_pages(&self, guest: &Guest, page: u64, object: Object, size: u64, sequence: u64) -> bool {
        let Some(pages) = &self.pages else { return false };
        pages.map.insert(pages.address_of(guest, page), object, size, sequence);
        true
    }

    /// Counts an allocation that is not entered, and removes an older object at its address.
    /// `is_counted` is whether an inner allocator has counted it.
    pub(super) fn displace(
        &self,
        guest: &Guest,
        addr: u64,
        kind: Kind,
        sequence: u64,
        is_counted: impl FnOnce() -> bool,
    ) {
        if let (Kind::Pages, Some(pages)) = (kind, &self.pages) {
            return pages.map.displace(pages.address_of(guest, addr), sequence);
        }
        if !is_counted() {
            self.unentered.fetch_add(1, Ordering::Relaxed);
        }
        self.live.displace(addr, sequence);
    }

    /// Removes an object.
    #[inline]
    pub(super) fn remove(&self, addr: u64) -> Removed {
        self.live.remove(addr)
    }

    /// Marks an object that is freed after a grace period.
    pub(super) fn retire(&self, addr: u64) -> Removed {
        self.live.retire(addr)
    }

    /// Removes a vmalloc block. Returns true if it was unknown, and another function had not just
    /// freed it.
    pub(super) fn remove_vmalloc(&self, addr: u64) -> bool {
        let mut recent = self.vfreed.lock();
        inject("vfree");
        match self.live.remove(addr) {
            Removed::Unknown if recent.contains(&addr) => self.live.forgive_unknown_free(),
            Removed::Unknown => return true,
            Removed::Object | Removed::Dying => {
                if recent.len() == RECENT_VFREES {
                    recent.pop_front();
                }
                recent.push_back(addr);
            }
        }
        false
    }

    /// Counts the free of an unknown object. `is_expected` is whether the guest's time went back
    /// before.
    pub(super) fn unknown_free(&self, addr: u64, is_expected: bool) {
        let is_closed = self.is_closed();
        if is_closed {
            self.unentered.fetch_sub(1, Ordering::Relaxed);
        }
        if is_closed || is_expected || self.live.was_full() {
            self.live.forgive_unknown_free();
        } else {
            log::debug!("unknown free of {addr:#x}");
        }
    }
}

impl Pages {
    /// The address in the direct map of the page whose descriptor is at virtual address `page`.
    fn address_of(&self, guest: &Guest, page: u64) -> u64 {
        Maps::read(&guest.kernel, &guest.ram).address_of(page, self.descriptor)
    }
}
