//! The map of live objects: what was allocated and not freed, as the events say.
//!
//! Written from every vCPU thread at once; it takes one shard's lock an event and allocates nothing but
//! when it grows.

mod copied;

pub use crate::object::{Allocation, Kind, Object};
use crate::striped::Striped;
pub use copied::Copied;
use dashmap::DashMap;
use dashmap::mapref::entry::Entry;
use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};
use std::sync::atomic::{AtomicBool, Ordering};

/// Bytes of objects by address and kind: pages may start where another object does.
pub(crate) type Sizes = HashMap<(u64, Kind), u64>;

/// What an insertion met.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Inserted {
    /// A new object.
    New,
    /// The same allocation as seen at a function inside the call, whose stack has both.
    Inside,
    /// Another object was live at the address: its free was missed.
    Replaced,
    /// Nothing: the map is full.
    NoRoom,
}

/// What a free met.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Removed {
    /// A live object.
    Object,
    /// An object that kfree_rcu() had been given: the end of its grace period.
    Dying,
    /// Nothing known at the address.
    Unknown,
}

/// Spreads addresses, whose low bits are all alike, over shards and buckets.
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
        // Fibonacci hashing; the shift brings the well-mixed high bits down to where tables look.
        let h = n.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        self.0 = h ^ (h >> 32);
    }
}

/// Live objects by address, with the counters that tell whether the events can be trusted.
#[derive(Default)]
pub struct LiveMap {
    map: AddressMap<Object>,
    /// Bytes as requested, of what is no slab object.
    sizes: AddressMap<u64>,
    counters: Striped<4>,
    /// Most objects; 0 is no bound.
    most: usize,
    /// No object is entered any more.
    full: AtomicBool,
    /// It was full, now or before.
    was_full: AtomicBool,
}

/// The numbers of the counters.
const ALLOCATIONS: usize = 0;
const FREES: usize = 1;
const UNKNOWN_FREES: usize = 2;
const MISSED_FREES: usize = 3;

/// Of the places of a table, one in so many may be left when another is full.
const UNEVEN: usize = 16;

type AddressMap<V> = DashMap<u64, V, BuildHasherDefault<AddressHasher>>;

/// [`LiveMap`]'s counters at one moment.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counters {
    /// Objects entered.
    pub allocations: u64,
    /// Objects removed, or given to kfree_rcu().
    pub frees: u64,
    /// Frees of addresses not in the map.
    pub unknown_frees: u64,
    /// Allocations at an address that was still live.
    pub missed_frees: u64,
}

impl LiveMap {
    /// An empty map with room for `capacity` objects.
    pub fn with_capacity(capacity: usize) -> LiveMap {
        LiveMap { map: DashMap::with_capacity_and_hasher(capacity, Default::default()), ..LiveMap::default() }
    }

    /// The same with room for `most` objects at most, give or take those that are entered between two calls of
    /// [`LiveMap::look_for_room`].
    #[must_use]
    pub fn with_most(self, most: usize) -> LiveMap {
        LiveMap { most, ..self }
    }

    /// Looks whether it is full. To be called now and then, since it takes all locks. Until it has room again, what is allocated is not
    /// entered, and what is freed is still removed, so what is in it is live.
    pub fn look_for_room(&self) {
        let full = self.most != 0 && self.map.len() >= self.most;
        self.full.store(full, Ordering::Relaxed);
        if full {
            self.was_full.store(true, Ordering::Relaxed);
        }
    }

    /// Whether it was ever full: there are objects that are not in it then.
    pub fn was_full(&self) -> bool {
        self.was_full.load(Ordering::Relaxed)
    }

    /// Most objects; 0 is no bound.
    pub fn most(&self) -> usize {
        self.most
    }

    /// Enters an allocation of `size` bytes as requested, which for slab objects the slab knows. `since` is the next sequence number
    /// when the allocator was entered: an object already live at the address with that or a later one was entered by a
    /// function inside this call, and stays.
    pub fn insert(&self, addr: u64, object: Object, size: u64, since: u64) -> Inserted {
        let inserted = match self.map.entry(addr) {
            Entry::Vacant(_) if self.full.load(Ordering::Relaxed) => return Inserted::NoRoom,
            Entry::Vacant(v) => {
                v.insert(object);
                Inserted::New
            }
            Entry::Occupied(mut o) => {
                let old = o.get_mut();
                let was_dying = old.is_dying();
                if old.sequence() >= since && !was_dying {
                    return Inserted::Inside;
                }
                *old = object;
                if was_dying { Inserted::New } else { Inserted::Replaced }
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

    /// Whether a live object at exactly `addr` was entered before the sequence number `since`, and of what kind it is. When a
    /// function returns that was entered at `since`, such an object was kept somewhere, and was taken from there.
    #[inline]
    pub fn kept_since(&self, addr: u64, since: u64) -> Option<Kind> {
        self.map.get(&addr).filter(|o| o.sequence() < since && !o.is_dying()).map(|o| o.kind())
    }

    /// The object of which [`LiveMap::kept_since`] told is from now on `object`, of the same kind: who took it has it. Its address
    /// and size stay, and it counts as the same allocation.
    pub fn take(&self, addr: u64, object: Object, since: u64) {
        if let Some(mut old) = self.map.get_mut(&addr)
            && old.sequence() < since
            && !old.is_dying()
            && old.kind() == object.kind()
        {
            *old = object;
        }
    }

    /// Whether [`LiveMap::insert`] would find the object of a function inside the call.
    #[inline]
    pub fn is_inside(&self, addr: u64, since: u64) -> bool {
        self.map.get(&addr).is_some_and(|o| o.sequence() >= since && !o.is_dying())
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
        if object.is_dying() {
            return Removed::Dying;
        }
        self.counters.add(FREES, 1);
        Removed::Object
    }

    /// Forgets all objects.
    pub fn clear(&self) {
        self.map.clear();
        self.sizes.clear();
    }

    /// Marks the object at `addr` as given to kfree_rcu(). Its entry stays, so that the free to come, which
    /// some kernels do not show, is known.
    pub fn retire(&self, addr: u64) -> Removed {
        match self.map.get_mut(&addr) {
            Some(mut object) if !object.is_dying() => {
                object.set_dying();
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

    /// Takes back one unknown free that turned out to be known.
    pub fn forgive_unknown_free(&self) {
        self.counters.add(UNKNOWN_FREES, u64::MAX);
    }

    /// Marks an object as reported.
    pub fn set_reported(&self, addr: u64) {
        if let Some(mut object) = self.map.get_mut(&addr) {
            object.set_reported();
        }
    }

    /// The object at exactly `addr`.
    pub fn get(&self, addr: u64) -> Option<Object> {
        self.map.get(&addr).map(|o| *o)
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.map.len()
    }

    /// For how many more entries the tables have room before one of them grows, give or take what they are filled unevenly; and the bytes
    /// that all of them take after that, at most. A table doubles, and both it and its successor are there for a moment.
    pub fn room(&self) -> (usize, u64) {
        fn of<V: Copy>(map: &AddressMap<V>) -> (usize, u64) {
            let (len, capacity) = (map.len(), map.capacity());
            // Seven of eight places may be taken, and each has a byte besides its entry.
            let bytes = capacity as u64 / 7 * 8 * (size_of::<(u64, V)>() as u64 + 1);
            (capacity.saturating_sub(len + capacity / UNEVEN), 2 * bytes)
        }
        let ((objects, bytes), (sizes, more)) = (of(&self.map), of(&self.sizes));
        (objects.min(sizes), bytes + more)
    }

    /// Gives up all memory, and all objects; the counters stay.
    pub fn release(&self) {
        self.clear();
        self.map.shrink_to_fit();
        self.sizes.shrink_to_fit();
    }

    /// Something else is at `addr` now, of which nothing is known, unless it was entered with that sequence number or a later one.
    pub fn displace(&self, addr: u64, since: u64) {
        let old = self.map.remove_if(&addr, |_, object| object.sequence() < since || object.is_dying());
        if let Some((_, object)) = old {
            self.removed(addr, &object);
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.map.is_empty()
    }

    /// Calls `each` for every object. A part of the map is locked meanwhile: `each` must not come back to it.
    pub fn for_each(&self, mut each: impl FnMut(&Object)) {
        self.map.iter().for_each(|entry| each(entry.value()));
    }

    /// Adds all objects, those given to kfree_rcu() too, to `list` in any order, and their bytes to `sizes`.
    pub(crate) fn copy_to(&self, list: &mut Vec<(u64, Object)>, sizes: &mut Sizes) {
        list.extend(self.map.iter().map(|e| (*e.key(), *e.value())));
        for entry in &self.sizes {
            if let Some(object) = self.map.get(entry.key()) {
                sizes.insert((*entry.key(), object.kind()), *entry.value());
            }
        }
    }

    /// The counters.
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
