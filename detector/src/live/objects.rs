//! The map of live objects: objects whose allocation was seen and whose free was not.
//!
//! Every vCPU thread writes to it. An event takes the lock of one shard, and allocates memory only
//! when a table grows.

mod copied;

pub use crate::live::object::{Allocation, Kind, Object};
use crate::live::striped::Striped;
pub use copied::Copied;
use dashmap::DashMap;
use dashmap::mapref::entry::Entry;
use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};
use std::sync::atomic::{AtomicBool, Ordering};

/// Sizes in bytes by address and kind. Pages may start at the address of another object.
pub(crate) type Sizes = HashMap<(u64, Kind), u64>;

/// The result of an insertion.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Inserted {
    /// A new object.
    New,
    /// The object of a nested allocator call was already there. Its stack contains both calls.
    Inside,
    /// Another object was live at the address. Its free was missed.
    Replaced,
    /// The object was not entered, since the map is full.
    NoRoom,
}

/// The result of a free.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Removed {
    /// A live object.
    Object,
    /// An object that was passed to `kfree_rcu()` before. Its grace period has ended.
    Dying,
    /// The address is not in the map.
    Unknown,
}

/// Hashes addresses. Their low bits are mostly equal, so they are spread over shards and buckets.
#[derive(Default)]
pub struct AddressHasher(u64);

impl Hasher for AddressHasher {
    fn finish(&self) -> u64 {
        self.0
    }
    fn write(&mut self, _: &[u8]) {
        unreachable!("addresses are hashed as u64");
    }
    fn write_u64(&mut self, n: u64) {
        // Fibonacci hashing. The shift moves the well-mixed high bits to where the tables look.
        let h = n.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        self.0 = h ^ (h >> 32);
    }
}

/// Live objects by address, and counters that show whether the events are complete.
#[derive(Default)]
pub struct LiveMap {
    map: AddressMap<Object>,
    /// Bytes as requested, for objects that are not in slabs.
    sizes: AddressMap<u64>,
    counters: Striped<4>,
    /// Most objects; 0 is no bound.
    most: usize,
    /// Whether new objects are rejected.
    full: AtomicBool,
    /// Whether the map was ever full.
    was_full: AtomicBool,
}

/// The room in [`LiveMap`]'s tables.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Room {
    /// Entries that can be added before a table grows, approximately.
    pub entries: usize,
    /// Bytes that all tables take while the next one grows, at most.
    pub bytes: u64,
}

/// Indexes into the counters.
const ALLOCATIONS: usize = 0;
const FREES: usize = 1;
const UNKNOWN_FREES: usize = 2;
const MISSED_FREES: usize = 3;

/// One in this many entries of a table may be free when another shard is full.
const UNEVEN: usize = 16;

type AddressMap<V> = DashMap<u64, V, BuildHasherDefault<AddressHasher>>;

/// The counters of a [`LiveMap`] at one moment.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counters {
    /// Allocations entered into the map.
    pub allocations: u64,
    /// Objects removed, or passed to `kfree_rcu()`.
    pub frees: u64,
    /// Frees of addresses that are not in the map.
    pub unknown_frees: u64,
    /// Allocations at an address where an object was still live.
    pub missed_frees: u64,
}

impl LiveMap {
    /// An empty map with room for `capacity` objects.
    pub fn with_capacity(capacity: usize) -> LiveMap {
        LiveMap { map: DashMap::with_capacity_and_hasher(capacity, Default::default()), ..LiveMap::default() }
    }

    /// Bounds the number of objects. The bound is checked by [`LiveMap::look_for_room`] only, so
    /// the map may exceed it by the objects entered between two calls.
    #[must_use]
    pub fn with_most(self, most: usize) -> LiveMap {
        LiveMap { most, ..self }
    }

    /// Checks the bound. It takes all locks, so it should be called rarely. A full map rejects new
    /// objects and still removes freed ones, so every object in it is live.
    pub fn look_for_room(&self) {
        let full = self.most != 0 && self.map.len() >= self.most;
        self.full.store(full, Ordering::Relaxed);
        if full {
            self.was_full.store(true, Ordering::Relaxed);
        }
    }

    /// Whether the map was ever full. Some live objects are then missing from it.
    pub fn was_full(&self) -> bool {
        self.was_full.load(Ordering::Relaxed)
    }

    /// Most objects; 0 is no bound.
    pub fn most(&self) -> usize {
        self.most
    }

    /// Enters an allocation of `size` bytes as requested. The size of a slab object is ignored.
    ///
    /// `since` is the next sequence number at the time when the allocator was entered. An object at
    /// the address with this or a later number comes from a nested call. It stays.
    pub fn insert(&self, addr: u64, object: Object, size: u64, since: u64) -> Inserted {
        let inserted = match self.map.entry(addr) {
            Entry::Vacant(_) if self.full.load(Ordering::Relaxed) => return Inserted::NoRoom,
            Entry::Vacant(v) => {
                v.insert(object);
                Inserted::New
            }
            Entry::Occupied(mut o) => {
                let old = o.get_mut();
                let was_rcu_pending = old.is_rcu_pending();
                if old.sequence() >= since && !was_rcu_pending {
                    return Inserted::Inside;
                }
                *old = object;
                if was_rcu_pending { Inserted::New } else { Inserted::Replaced }
            }
        };
        if object.kind() != Kind::Slab {
            self.sizes.insert(addr, size);
        }
        self.counters.add(ALLOCATIONS, 1);
        if inserted == Inserted::Replaced {
            self.counters.add(MISSED_FREES, 1);
        }
        inserted
    }

    /// The kind of a live object at exactly `addr` that was entered before the sequence number
    /// `since`. A function that was entered at `since` and returns this object took it from a
    /// cache.
    #[inline]
    pub fn kept_since(&self, addr: u64, since: u64) -> Option<Kind> {
        self.map.get(&addr).filter(|o| o.sequence() < since && !o.is_rcu_pending()).map(|o| o.kind())
    }

    /// Replaces the object that [`LiveMap::kept_since`] found by `object`, which has the same kind.
    /// The taker owns it from now on. Its address and size stay, and no allocation is counted.
    pub fn take(&self, addr: u64, object: Object, since: u64) {
        if let Some(mut old) = self.map.get_mut(&addr)
            && old.sequence() < since
            && !old.is_rcu_pending()
            && old.kind() == object.kind()
        {
            *old = object;
        }
    }

    /// Whether [`LiveMap::insert`] would return [`Inserted::Inside`].
    #[inline]
    pub fn is_inside(&self, addr: u64, since: u64) -> bool {
        self.map.get(&addr).is_some_and(|o| o.sequence() >= since && !o.is_rcu_pending())
    }

    fn removed(&self, addr: u64, object: &Object) {
        if object.kind() != Kind::Slab {
            self.sizes.remove(&addr);
        }
    }

    /// Removes the object at `addr`.
    pub fn remove(&self, addr: u64) -> Removed {
        let Some((_, object)) = self.map.remove(&addr) else {
            self.counters.add(UNKNOWN_FREES, 1);
            return Removed::Unknown;
        };
        self.removed(addr, &object);
        if object.is_rcu_pending() {
            return Removed::Dying;
        }
        self.counters.add(FREES, 1);
        Removed::Object
    }

    /// Removes all objects. The counters stay.
    pub fn clear(&self) {
        self.map.clear();
        self.sizes.clear();
    }

    /// Marks the object at `addr` as passed to `kfree_rcu()`. The entry stays until its memory is
    /// freed. Some kernels do not show that free.
    pub fn retire(&self, addr: u64) -> Removed {
        match self.map.get_mut(&addr) {
            Some(mut object) if !object.is_rcu_pending() => {
                object.set_rcu_pending();
                self.counters.add(FREES, 1);
                Removed::Object
            }
            Some(_) => Removed::Dying,
            None => {
                self.counters.add(UNKNOWN_FREES, 1);
                Removed::Unknown
            }
        }
    }

    /// Takes back one unknown free, after its object was identified.
    pub fn forgive_unknown_free(&self) {
        self.counters.add(UNKNOWN_FREES, u64::MAX);
    }

    /// Marks the object at `addr` as reported.
    pub fn set_reported(&self, addr: u64) {
        if let Some(mut object) = self.map.get_mut(&addr) {
            object.set_reported();
        }
    }

    /// The object that starts at `addr`.
    pub fn get(&self, addr: u64) -> Option<Object> {
        self.map.get(&addr).map(|o| *o)
    }

    /// The number of objects.
    pub fn len(&self) -> usize {
        self.map.len()
    }

    /// The room before a table grows. A growing table doubles, and the old and the new one exist
    /// together for a moment.
    pub fn room(&self) -> Room {
        fn of<V: Copy>(map: &AddressMap<V>) -> Room {
            let (len, capacity) = (map.len(), map.capacity());
            // Hash tables fill seven of eight entries. Each entry has a control byte.
            let bytes = capacity as u64 / 7 * 8 * (size_of::<(u64, V)>() as u64 + 1);
            Room { entries: capacity.saturating_sub(len + capacity / UNEVEN), bytes: 2 * bytes }
        }
        let (objects, sizes) = (of(&self.map), of(&self.sizes));
        Room { entries: objects.entries.min(sizes.entries), bytes: objects.bytes + sizes.bytes }
    }

    /// Removes all objects and releases the memory of the tables. The counters stay.
    pub fn release(&self) {
        self.clear();
        self.map.shrink_to_fit();
        self.sizes.shrink_to_fit();
    }

    /// Removes the object at `addr` without counting a free, because something unknown is there
    /// now. An object entered with the sequence number `since` or a later one stays.
    pub fn displace(&self, addr: u64, since: u64) {
        let old = self.map.remove_if(&addr, |_, object| object.sequence() < since || object.is_rcu_pending());
        if let Some((_, object)) = old {
            self.removed(addr, &object);
        }
    }

    /// Whether the map is empty.
    pub fn is_empty(&self) -> bool {
        self.map.is_empty()
    }

    /// Calls `each` for every object. A shard is locked meanwhile, so `each` must not use the map.
    pub fn for_each(&self, mut each: impl FnMut(&Object)) {
        self.map.iter().for_each(|entry| each(entry.value()));
    }

    /// Appends all objects to `list` in any order, and their sizes to `sizes`. Objects passed to
    /// `kfree_rcu()` are included.
    pub(crate) fn copy_to(&self, list: &mut Vec<(u64, Object)>, sizes: &mut Sizes) {
        list.extend(self.map.iter().map(|e| (*e.key(), *e.value())));
        for entry in &self.sizes {
            if let Some(object) = self.map.get(entry.key()) {
                sizes.insert((*entry.key(), object.kind()), *entry.value());
            }
        }
    }

    /// The current counters.
    pub fn counters(&self) -> Counters {
        Counters {
            allocations: self.counters.get(ALLOCATIONS),
            frees: self.counters.get(FREES),
            unknown_frees: self.counters.get(UNKNOWN_FREES),
            missed_frees: self.counters.get(MISSED_FREES),
        }
    }
}

#[cfg(test)]
mod tests;
