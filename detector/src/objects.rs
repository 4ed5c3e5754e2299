//! The map of live objects: what was allocated and not freed, as the events say.
//!
//! Written from every vCPU thread at once; it takes one shard's lock an event and allocates nothing but
//! when it grows.

use crate::stacks::StackId;
use dashmap::DashMap;
use dashmap::mapref::entry::Entry;
use serde::{Deserialize, Serialize};
use std::hash::{BuildHasherDefault, Hasher};
use std::sync::atomic::{AtomicU64, Ordering};

/// What an object is made of, which decides where its size and its memory are found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// A slab object; its size is the cache's, known to the slab itself.
    Slab,
    /// A kmalloc too large for the slab caches, made of pages.
    Large,
    /// A block of vmalloc space.
    Vmalloc,
    /// A per-CPU block; its address is the `__percpu` pointer, not a place in memory.
    Percpu,
    /// Pages from the page allocator; the address is that of the first in the direct map, where other objects may
    /// lie too: slabs are made of pages.
    Pages,
}

/// The call that allocated an object: of allocators that call each other, the outermost.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Site {
    /// Virtual address of the allocator function that was entered.
    pub allocator: u64,
    /// The return address of that call.
    pub caller: u64,
}

/// A live object.
#[derive(Debug, Clone, Copy)]
pub struct Object {
    /// What it is made of.
    pub kind: Kind,
    /// Handed to kfree_rcu(): nobody's any more, though its memory is not free yet.
    pub dying: bool,
    /// Already in a report.
    pub reported: bool,
    /// Size in bytes as requested; 0 for slab objects.
    pub size: u64,
    /// Its allocation site.
    pub site: Site,
    /// Its allocation's stack, from the innermost allocator on.
    pub stack: StackId,
    /// Rises with every allocation.
    pub sequence: u64,
    /// The guest's jiffies at allocation.
    pub jiffies: u64,
    /// Host time of the allocation, in milliseconds since the start of tracking.
    pub millis: u64,
    /// The task's pid, 0 in interrupts.
    pub pid: u32,
    /// The pid of its process, 0 in interrupts.
    pub tgid: u32,
    /// The CPU, as the kernel numbers them.
    pub cpu: u32,
    /// The task's comm, or `hardirq` or `softirq`; NUL-padded.
    pub comm: [u8; 16],
}

impl Object {
    /// An object whose allocation was not seen.
    pub const fn unseen(kind: Kind) -> Object {
        Object {
            kind,
            dying: false,
            reported: false,
            size: 0,
            site: Site { allocator: 0, caller: 0 },
            stack: StackId::NONE,
            sequence: 0,
            jiffies: 0,
            millis: 0,
            pid: 0,
            tgid: 0,
            cpu: 0,
            comm: [0; 16],
        }
    }
}

/// What an insertion met.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Inserted {
    /// A new object.
    New,
    /// The same allocation seen before at an inner function; the outer call site was taken over, and the inner stack stays,
    /// which has both.
    Refined,
    /// Another object was live at the address: its free was missed.
    Replaced,
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
pub struct LiveMap {
    map: DashMap<u64, Object, BuildHasherDefault<AddressHasher>>,
    allocations: AtomicU64,
    frees: AtomicU64,
    unknown_frees: AtomicU64,
    missed_frees: AtomicU64,
}

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
        LiveMap {
            map: DashMap::with_capacity_and_hasher(capacity, Default::default()),
            allocations: AtomicU64::new(0),
            frees: AtomicU64::new(0),
            unknown_frees: AtomicU64::new(0),
            missed_frees: AtomicU64::new(0),
        }
    }

    /// Enters an allocation. `since` is the next sequence number when the allocator was entered: an object
    /// already live at the address with that or a later one was entered by a function inside this call, and only
    /// its site is replaced, by the outer one.
    pub fn insert(&self, addr: u64, object: Object, since: u64) -> Inserted {
        match self.map.entry(addr) {
            Entry::Vacant(v) => {
                v.insert(object);
                self.allocations.fetch_add(1, Ordering::Relaxed);
                Inserted::New
            }
            Entry::Occupied(mut o) => {
                let old = o.get_mut();
                if old.sequence >= since && !old.dying {
                    old.site = object.site;
                    return Inserted::Refined;
                }
                let missed = !old.dying;
                *old = object;
                self.allocations.fetch_add(1, Ordering::Relaxed);
                if !missed {
                    return Inserted::New;
                }
                self.missed_frees.fetch_add(1, Ordering::Relaxed);
                Inserted::Replaced
            }
        }
    }

    /// Removes the object at `addr`.
    pub fn remove(&self, addr: u64) -> Removed {
        match self.map.remove(&addr) {
            Some((_, object)) if object.dying => Removed::Dying,
            Some(_) => {
                self.frees.fetch_add(1, Ordering::Relaxed);
                Removed::Object
            }
            None => {
                self.unknown_frees.fetch_add(1, Ordering::Relaxed);
                Removed::Unknown
            }
        }
    }

    /// Forgets the object at `addr` if it is the one with that sequence number: the kernel has freed it where nobody
    /// looked.
    pub fn forget(&self, addr: u64, sequence: u64) {
        self.map.remove_if(&addr, |_, object| object.sequence == sequence);
    }

    /// Forgets all objects.
    pub fn clear(&self) {
        self.map.clear();
    }

    /// Marks the object at `addr` as given to kfree_rcu(). Its entry stays, so that the free to come, which
    /// some kernels do not show, is known.
    pub fn retire(&self, addr: u64) -> Removed {
        match self.map.get_mut(&addr) {
            Some(mut object) if !object.dying => {
                object.dying = true;
                self.frees.fetch_add(1, Ordering::Relaxed);
                Removed::Object
            }
            Some(_) => Removed::Dying,
            None => {
                self.unknown_frees.fetch_add(1, Ordering::Relaxed);
                Removed::Unknown
            }
        }
    }

    /// Takes back one unknown free that turned out to be known.
    pub fn forgive_unknown_free(&self) {
        self.unknown_frees.fetch_sub(1, Ordering::Relaxed);
    }

    /// Marks an object as reported.
    pub fn set_reported(&self, addr: u64) {
        if let Some(mut object) = self.map.get_mut(&addr) {
            object.reported = true;
        }
    }

    /// All objects, those given to kfree_rcu() too, ascending by address.
    pub fn snapshot(&self) -> Vec<(u64, Object)> {
        let mut all: Vec<_> = self.map.iter().map(|e| (*e.key(), *e.value())).collect();
        all.sort_unstable_by_key(|(addr, _)| *addr);
        all
    }

    /// The object at exactly `addr`.
    pub fn get(&self, addr: u64) -> Option<Object> {
        self.map.get(&addr).map(|o| *o)
    }

    /// The counters.
    pub fn counters(&self) -> Counters {
        Counters {
            allocations: self.allocations.load(Ordering::Relaxed),
            frees: self.frees.load(Ordering::Relaxed),
            unknown_frees: self.unknown_frees.load(Ordering::Relaxed),
            missed_frees: self.missed_frees.load(Ordering::Relaxed),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn object(sequence: u64, caller: u64) -> Object {
        Object { site: Site { allocator: 1, caller }, sequence, ..Object::unseen(Kind::Slab) }
    }

    #[test]
    fn an_outer_allocator_refines_and_a_missed_free_replaces() {
        let map = LiveMap::with_capacity(4);
        assert_eq!(map.insert(0x1000, object(5, 10), 4), Inserted::New);
        // The outer function was entered when the next number was 5, which the inner one's object then got.
        assert_eq!(map.insert(0x1000, object(6, 20), 5), Inserted::Refined);
        assert_eq!(map.get(0x1000).unwrap().site.caller, 20);
        assert_eq!(map.insert(0x1000, object(9, 30), 8), Inserted::Replaced);
        let c = map.counters();
        assert_eq!((c.allocations, c.missed_frees), (2, 1));
    }

    #[test]
    fn kfree_rcu_frees_once() {
        let map = LiveMap::with_capacity(4);
        map.insert(0x1000, object(1, 0), 0);
        assert_eq!(map.retire(0x1000), Removed::Object);
        assert!(map.snapshot().iter().all(|(_, o)| o.dying));
        assert_eq!(map.remove(0x1000), Removed::Dying);
        assert_eq!(map.remove(0x1000), Removed::Unknown);
        // Where the later free is not seen, the address is simply used again.
        map.insert(0x2000, object(2, 0), 1);
        map.retire(0x2000);
        assert_eq!(map.insert(0x2000, object(3, 0), 2), Inserted::New);
        assert_eq!(map.counters().frees, 2);
    }
}
