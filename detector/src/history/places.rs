//! Which places in the table of records are in use.

use super::Table;
use super::id::{GENERATIONS, GONE, Id, MAX, PLACE};
use super::record::Record;
use std::sync::atomic::{AtomicU32, Ordering};

/// Places at the start. There are always about twice as many places as objects, so that a place is
/// used again late.
const LEAST: u32 = 1 << 16;
/// Places that are tried for one object.
const TRIES: u32 = 64;
/// Which places are in use.
pub(super) struct Places {
    /// Places of the table.
    all: u32,
    /// Places that are used so far.
    most: AtomicU32,
    /// How many places were tried so far.
    next: AtomicU32,
    /// Places in use.
    used: AtomicU32,
}

impl Places {
    pub fn new(all: usize) -> Places {
        let all = all.min(MAX) as u32;
        let none = || AtomicU32::new(0);
        Places { all, most: AtomicU32::new(LEAST.min(all)), next: none(), used: none() }
    }

    /// The number of places that may have been used.
    pub fn most(&self) -> usize {
        self.most.load(Ordering::Relaxed) as usize
    }

    /// Takes a place for a new object, whose number is returned. `None` if there is no room.
    pub fn take(&self, records: &impl Table) -> Option<Id> {
        for _ in 0..TRIES {
            let most = self.most.load(Ordering::Relaxed);
            // Long-lived objects would fill whole runs of places, so places are not tried in order.
            let scattered = self.next.fetch_add(1, Ordering::Relaxed).wrapping_mul(0x9e37_79b1);
            let place = ((u64::from(scattered) * u64::from(most)) >> 32) as u32;
            let Some(record) = Record::of(records, place as usize) else { continue };
            let old = record.state();
            if old != 0 && old & GONE == 0 {
                continue;
            }
            // Generation 0 is that of no object.
            let generation = ((old & !GONE) >> PLACE) + 1;
            let id = Id(if generation < GENERATIONS { generation } else { 1 } << PLACE | place);
            if record.claim(old, id) {
                let used = self.used.fetch_add(1, Ordering::Relaxed) + 1;
                if used > most / 2 && most < self.all {
                    self.most.store(most.saturating_mul(2).min(self.all), Ordering::Relaxed);
                }
                return Some(id);
            }
        }
        None
    }

    /// An object is gone.
    pub fn give_back(&self) {
        let _ = self.used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |used| used.checked_sub(1));
    }

    /// No place is in use.
    pub fn forget(&self) {
        self.next.store(0, Ordering::Relaxed);
        self.used.store(0, Ordering::Relaxed);
    }
}
