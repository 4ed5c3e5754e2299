//! Live objects, and what is kept of objects besides: names of tasks, and what could not be
//! entered.

use super::guest::Guest;
use crate::ffi::inject;
use detector::clock::Clock;
use detector::comms::{Comm, CommId, Comms};
use detector::frozen::Objects;
use detector::objects::{Counters, Inserted, Kind, LiveMap, Object, Removed};
use guest_symbols::memory::GuestMemory;
use guest_symbols::pages::Maps;
use parking_lot::Mutex;
use std::cell::Cell;
use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};

/// Room for live objects from the start. More is made as it is needed: the denser the table, the
/// more of it is in caches.
const CAPACITY: usize = 1 << 12;
/// Bytes of RAM for each live object, unless the user says how many there may be. The least slab
/// objects have 8 bytes, and of these alone no guest is made: 300 is the average.
const BYTES_AN_OBJECT: u64 = 16;
/// vfree() hands blocks on to vfree_atomic() and back; so many of the last ones are remembered.
const RECENT_VFREES: usize = 256;

thread_local! {
    /// The name of a task that this thread saw last, and its number: nearly every allocation is of
    /// the same task as the one before, and so looks nothing up that threads share.
    static LAST_COMM: Cell<(Comm, CommId)> = Cell::default();
}

/// Forgets what this thread remembers of a kernel that is gone.
pub(super) fn forget() {
    LAST_COMM.take();
}

/// Most live objects, unless the user says how many there may be.
pub(super) fn default_most(ram: &impl GuestMemory) -> usize {
    let bytes: u64 = ram.ranges().iter().map(|r| r.end - r.start).sum();
    usize::try_from(bytes / BYTES_AN_OBJECT).unwrap_or(usize::MAX)
}

/// Pages as they were given out.
struct Pages {
    /// By address in the direct map.
    map: LiveMap,
    /// Bytes of a page descriptor.
    descriptor: u64,
}

/// Live objects.
pub struct LiveObjects {
    live: LiveMap,
    /// With `pages=on`, pages as they were given out last; those that were given back are among
    /// them.
    pages: Option<Pages>,
    /// Names of tasks.
    comms: Comms,
    /// The sequence number of the next object.
    sequence: AtomicU64,
    /// Blocks that vfree() freed last.
    vfreed: Mutex<VecDeque<u64>>,
    /// Nothing new is entered any more: see [`super::memory_budget`].
    closed: AtomicBool,
    /// Since then, allocations less frees.
    unentered: AtomicI64,
}

impl LiveObjects {
    /// None, with room for `most`. `descriptor` is the size of a page descriptor in bytes, if pages
    /// are tracked too.
    pub fn new(most: usize, descriptor: Option<u64>) -> LiveObjects {
        let map = || LiveMap::with_capacity(CAPACITY).with_most(most);
        LiveObjects {
            live: map(),
            pages: descriptor.map(|descriptor| Pages { map: map(), descriptor }),
            comms: Comms::default(),
            sequence: AtomicU64::new(1),
            vfreed: Mutex::new(VecDeque::with_capacity(RECENT_VFREES)),
            closed: AtomicBool::new(false),
            unentered: AtomicI64::new(0),
        }
    }

    /// The map of objects, and that of pages.
    pub(super) fn maps(&self) -> impl Iterator<Item = &LiveMap> {
        [&self.live].into_iter().chain(self.pages.as_ref().map(|pages| &pages.map))
    }

    /// Events until now; those of pages are not among them.
    pub fn counters(&self) -> Counters {
        self.live.counters()
    }

    /// Live objects and pages.
    pub fn count(&self) -> u64 {
        self.maps().map(|map| map.len() as u64).sum()
    }

    /// Calls `each` for every live object.
    pub(super) fn for_each(&self, mut each: impl FnMut(&Object)) {
        self.maps().for_each(|map| map.for_each(&mut each));
    }

    /// Every live object, ascending by address; with `pages=on`, pages too, at whose address there
    /// may be an object as well. `now` is the time in jiffies and in milliseconds.
    pub fn copy(&self, clock: &Clock, now: (u64, u64)) -> Objects {
        let maps: Vec<&LiveMap> = self.maps().collect();
        Objects::of(&maps, &self.comms, clock, now)
    }

    /// Gives the maps' memory back. Nobody needs them any more.
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

    /// The sequence number of the next object: every object that is live now has a lesser one.
    #[inline]
    pub fn sequence(&self) -> u64 {
        self.sequence.load(Ordering::Relaxed)
    }

    /// A sequence number for an object.
    #[inline]
    pub(super) fn next_sequence(&self) -> u64 {
        self.sequence.fetch_add(1, Ordering::Relaxed)
    }

    /// The number of a task's name, which is mostly the one that this thread saw last.
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

    /// Whether nothing new is entered any more.
    #[inline]
    pub(super) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Relaxed)
    }

    /// Enters nothing new from now on. Returns whether this is news.
    pub(super) fn close(&self) -> bool {
        !self.closed.swap(true, Ordering::Relaxed)
    }

    /// Objects that were allocated since the maps were closed, as far as they are live.
    pub(super) fn unentered(&self) -> u64 {
        self.unentered.load(Ordering::Relaxed).max(0) as u64
    }

    /// Whether an object allocated since `sequence` has that address in it.
    #[inline]
    pub(super) fn is_inside(&self, addr: u64, sequence: u64) -> bool {
        self.live.is_inside(addr, sequence)
    }

    /// Enters an object at virtual address `addr`, of `size` bytes, allocated by a call since
    /// `sequence`.
    #[inline]
    pub(super) fn insert(&self, addr: u64, object: Object, size: u64, sequence: u64) -> Inserted {
        self.live.insert(addr, object, size, sequence)
    }

    /// Enters pages whose first page's descriptor is at virtual address `page`, if pages are
    /// tracked. Returns whether they are.
    pub(super) fn insert_pages(&self, guest: &Guest, page: u64, object: Object, size: u64, sequence: u64) -> bool {
        let Some(pages) = &self.pages else { return false };
        pages.map.insert(pages.address_of(guest, page), object, size, sequence);
        true
    }

    /// An allocation is not entered: what was known at its address is not what is there now.
    /// `is_counted` is whether an allocator that was called inside has counted it.
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

    /// Takes an object out.
    #[inline]
    pub(super) fn remove(&self, addr: u64) -> Removed {
        self.live.remove(addr)
    }

    /// An object is freed after a grace period.
    pub(super) fn retire(&self, addr: u64) -> Removed {
        self.live.retire(addr)
    }

    /// Takes a vmalloc block out. Returns whether it was unknown, and was not freed by another
    /// function just before.
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

    /// An object was freed that was not known. `is_expected` is whether the guest was in another
    /// time when it was allocated.
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
