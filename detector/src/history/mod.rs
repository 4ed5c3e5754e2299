//! Which words of memory refer to which live objects, followed store by store.
//!
//! Memory is numbered in words of 8 bytes by guest physical address. Three tables are kept, which
//! the caller provides, all zero at first:
//!
//! - `objects`: for each word, the object that it belongs to
//! - `cells`: for each word, the object that it has referred to since its last store
//! - `records`: for each object, how many words refer to it, and the last reference and its end
//!
//! A cell is true once all stores to its word have returned. Each store writes the cell, and then
//! reads the word again ([`References::store`]).
//!
//! - [`id`]: numbers of objects
//! - [`record`]: the record of an object
//! - `places`: which places in the table of records are in use

pub mod id;
mod places;
pub mod record;

use crate::live::stacks::StackId;
pub use id::{Id, MAX};
use places::Places;
use record::Record;
pub use record::{Ending, Lost, RECORD, Trace};
use std::ops::Deref;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

/// Entries of a table in 4 KiB.
const ENTRIES: usize = 1024;

/// A table of numbers.
pub trait Table: Deref<Target = [AtomicU32]> {
    /// Makes all of them 0.
    fn clear(&self);
}

impl Table for Vec<AtomicU32> {
    fn clear(&self) {
        self.iter().for_each(|number| number.store(0, Ordering::Relaxed));
    }
}

/// What happens at a store or a free, beyond the tables.
pub trait Event {
    /// The low half of the instruction's address.
    fn ip(&self) -> u32;
    /// The low half of the guest's jiffies.
    fn time(&self) -> u32;
    /// The current stack.
    fn stack(&self) -> StackId;
}

/// References between words and objects.
pub struct References<T> {
    objects: T,
    cells: T,
    records: T,
    places: Places,
    /// One bit for each 4 KiB of `objects` and `cells` that was written to.
    written: [Vec<AtomicU64>; 2],
    /// How many of them are set.
    pages: AtomicU64,
    /// Objects that got no record.
    unrecorded: AtomicU64,
}

/// Indexes into `written`.
const OBJECTS: usize = 0;
const CELLS: usize = 1;

impl<T: Table> References<T> {
    /// No references. The first two tables have one number for each word, and the last [`RECORD`]
    /// numbers for each object.
    pub fn new(objects: T, cells: T, records: T) -> References<T> {
        let bits = |table: &T| (0..table.len().div_ceil(64 * ENTRIES)).map(|_| AtomicU64::new(0)).collect();
        References {
            written: [bits(&objects), bits(&cells)],
            places: Places::new(records.len() / RECORD),
            objects,
            cells,
            records,
            pages: AtomicU64::new(0),
            unrecorded: AtomicU64::new(0),
        }
    }

    /// Forgets everything. What other threads enter at the same time may be forgotten in part.
    pub fn forget(&self) {
        [&self.objects, &self.cells, &self.records].into_iter().for_each(Table::clear);
        self.written.iter().flatten().for_each(|bits| bits.store(0, Ordering::Relaxed));
        self.pages.store(0, Ordering::Relaxed);
        self.places.forget();
    }

    /// Bytes of the tables that were written to.
    pub fn bytes(&self) -> u64 {
        self.pages.load(Ordering::Relaxed) * 4096 + self.places.most() as u64 * (RECORD * 4) as u64
    }

    /// How many objects got no record, for lack of room.
    pub fn unrecorded(&self) -> u64 {
        self.unrecorded.load(Ordering::Relaxed)
    }

    /// The object that a word belongs to.
    #[inline]
    pub fn object(&self, word: usize) -> Id {
        self.objects.get(word).map_or(Id::NONE, |id| Id(id.load(Ordering::Relaxed)))
    }

    /// The object that a word has referred to since its last store.
    pub fn target(&self, word: usize) -> Id {
        self.cells.get(word).map_or(Id::NONE, |id| Id(id.load(Ordering::Relaxed)))
    }

    /// Whether a live object has no reference outside of stacks, so that [`References::hold`] matters.
    #[inline]
    pub fn is_unreferenced(&self, id: Id) -> bool {
        self.record(id).is_some_and(Record::is_unreferenced)
    }

    /// The record of a live object.
    #[inline]
    fn record(&self, id: Id) -> Option<Record<'_>> {
        let record = Record::of(&self.records, id.place())?;
        (id.is_object() && record.id() == id).then_some(record)
    }

    /// Notes that 4 KiB of a table are written to.
    #[inline]
    fn write(&self, table: usize, entry: usize) {
        let (page, map) = (entry / ENTRIES, &self.written[table]);
        let (Some(bits), bit) = (map.get(page / 64), 1 << (page % 64)) else { return };
        if bits.load(Ordering::Relaxed) & bit == 0 && bits.fetch_or(bit, Ordering::Relaxed) & bit == 0 {
            self.pages.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// An object of `len` words was allocated at `word`. What was there is no object any more, and
    /// refers to nothing.
    pub fn begin(&self, word: usize, len: usize, event: &impl Event) {
        let id = self.places.take(&self.records).unwrap_or(Id::NONE);
        match Record::of(&self.records, id.place()) {
            Some(record) if id.is_object() => record.begin(len),
            _ => _ = self.unrecorded.fetch_add(1, Ordering::Relaxed),
        }
        let end = word.saturating_add(len).min(self.objects.len()).min(self.cells.len());
        let mut last = Id::NONE;
        for at in word..end {
            if at == word || at.is_multiple_of(ENTRIES) {
                self.write(OBJECTS, at);
            }
            let old = Id(self.objects[at].swap(id.0, Ordering::AcqRel));
            if old != Id::NONE && old != last {
                last = old;
                self.drop_record(old);
            }
            self.clear(at, Ending::Reused, event);
        }
    }

    /// The object at `word` is freed: its words refer to nothing.
    pub fn end(&self, word: usize, event: &impl Event) {
        let id = self.object(word);
        let Some(record) = self.record(id) else { return };
        let len = record.len();
        self.drop_record(id);
        for at in word..word.saturating_add(len).min(self.objects.len()).min(self.cells.len()) {
            let _ = self.objects[at].compare_exchange(id.0, 0, Ordering::AcqRel, Ordering::Relaxed);
            self.clear(at, Ending::Freed, event);
        }
    }

    /// An object is gone.
    fn drop_record(&self, id: Id) {
        if let Some(record) = self.record(id)
            && record.retire(id)
        {
            self.places.give_back();
        }
    }

    /// A word refers to nothing any more.
    #[inline]
    fn clear(&self, word: usize, ending: Ending, event: &impl Event) {
        let cell = &self.cells[word];
        if cell.load(Ordering::Relaxed) != 0 {
            self.lose(Id(cell.swap(0, Ordering::AcqRel)), word, ending, event);
        }
    }

    /// Something was stored to a word. `read` returns the object that the word's current value
    /// points into. It is called again after the cell was written, since another CPU may have
    /// stored to the word in between.
    #[inline]
    pub fn store(&self, word: usize, read: impl Fn() -> Id, event: &impl Event) {
        let Some(cell) = self.cells.get(word) else { return };
        let new = read();
        if new == Id::NONE && cell.load(Ordering::Relaxed) == 0 {
            return;
        }
        self.replace(word, cell, new, read, event);
    }

    fn replace(&self, word: usize, cell: &AtomicU32, mut new: Id, read: impl Fn() -> Id, event: &impl Event) {
        loop {
            // A reference from inside keeps no object alive.
            let kept = if new == self.object(word) { Id::NONE } else { new };
            self.write(CELLS, word);
            let old = Id(cell.swap(kept.0, Ordering::AcqRel));
            if let Some(record) = self.record(kept) {
                record.refer(word, event.ip(), old != kept);
            }
            if old != kept {
                self.lose(old, word, Ending::Overwritten, event);
            }
            let again = read();
            if again == new {
                return;
            }
            new = again;
        }
    }

    fn lose(&self, id: Id, word: usize, ending: Ending, event: &impl Event) {
        if let Some(record) = self.record(id) {
            record.lose(word, ending, event);
        }
    }

    /// An object's address was stored to a stack, at `depth` words from the stack's lowest
    /// address. Kept is the highest of those places while no other memory refers to the object.
    #[inline]
    pub fn hold(&self, id: Id, depth: u32, event: &impl Event) {
        if let Some(record) = self.record(id) {
            record.hold(depth, event);
        }
    }

    /// What is known about the object at `word`.
    pub fn trace(&self, word: usize) -> Option<Trace> {
        let id = self.object(word);
        let record = self.record(id)?;
        let mut trace = record.trace();
        trace.remains = trace.reference.is_some_and(|(word, _)| self.target(word) == id);
        Some(trace)
    }
}

#[cfg(test)]
mod tests;
