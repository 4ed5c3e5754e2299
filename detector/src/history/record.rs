//! The record of an object: how many words refer to it, the last reference, and its end.

use super::id::{GONE, Id};
use super::{Event, Table};
use crate::live::stacks::StackId;
use std::sync::atomic::{AtomicU32, Ordering};

/// Numbers of a record. They are 40 bytes.
pub const RECORD: usize = 10;

/// Indexes into a record.
const STATE: usize = 0;
/// Words of the object, and the depth of [`HELD`].
const LEN: usize = 1;
/// How many words refer to it.
const COUNT: usize = 2;
/// The last word that referred to it, and the instruction that stored it; 0 if there was none.
const REFERENCE: usize = 3;
const STORED_BY: usize = 4;
/// The last word that ceased to refer to it, the instruction, and the time.
const END: usize = 5;
const ENDED_BY: usize = 6;
const TIME: usize = 7;
/// The stack at that time, and the [`Ending`].
const ENDED_AT: usize = 8;
/// A stack on which the object was held while no word referred to it.
const HELD: usize = 9;

/// Bits of the length in [`LEN`]. The depth has the others.
const LEN_BITS: u32 = 21;
/// Bits of the stack in [`ENDED_AT`]. The ending has the others.
const STACK_BITS: u32 = 30;

/// How a reference ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// Another value was stored to the word.
    Overwritten,
    /// The object that contains the word was freed.
    Freed,
    /// The word's memory was allocated anew.
    Reused,
}

/// The end of the last reference.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lost {
    /// The word that referred to the object.
    pub word: usize,
    /// The low half of the address of the instruction. 0 if none is known.
    pub ip: u32,
    /// The low half of the guest's jiffies.
    pub time: u32,
    /// How it ended.
    pub ending: Ending,
    /// The stack, if no other word referred to the object.
    pub stack: StackId,
}

/// What is known about an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Trace {
    /// How many words refer to it.
    pub count: u32,
    /// The last word outside of stacks that referred to it, and the low half of the address of the
    /// instruction that stored it.
    pub reference: Option<(usize, u32)>,
    /// Whether that word still refers to it.
    pub remains: bool,
    /// The end of the last reference that ended.
    pub lost: Option<Lost>,
    /// The stack on which it was held last, after all other references had ended.
    pub held: StackId,
}

/// The record of one object.
#[derive(Clone, Copy)]
pub(super) struct Record<'a>(&'a [AtomicU32]);

impl<'a> Record<'a> {
    /// The record at a place.
    #[inline]
    pub fn of(records: &'a impl Table, place: usize) -> Option<Record<'a>> {
        records.get(place * RECORD..(place + 1) * RECORD).map(Record)
    }

    #[inline]
    fn get(self, field: usize) -> u32 {
        self.0[field].load(Ordering::Relaxed)
    }

    #[inline]
    fn set(self, field: usize, value: u32) {
        self.0[field].store(value, Ordering::Relaxed);
    }

    /// The number of the place's last object, with [`GONE`] if it is gone; 0 if there was none.
    pub fn state(self) -> u32 {
        self.get(STATE)
    }

    /// The object.
    #[inline]
    pub fn id(self) -> Id {
        Id(self.get(STATE))
    }

    /// Takes the place for a new object. Returns whether no other thread has taken it.
    pub fn claim(self, old: u32, id: Id) -> bool {
        self.0[STATE].compare_exchange(old, id.0, Ordering::AcqRel, Ordering::Relaxed).is_ok()
    }

    /// The object is gone. Returns whether no other thread has said so.
    pub fn retire(self, id: Id) -> bool {
        self.claim(id.0, Id(id.0 | GONE))
    }

    /// A new object of `len` words.
    pub fn begin(self, len: usize) {
        (COUNT..RECORD).for_each(|field| self.set(field, 0));
        self.set(LEN, len.min((1 << LEN_BITS) - 1) as u32);
    }

    /// Words of the object.
    pub fn len(self) -> usize {
        (self.get(LEN) & ((1 << LEN_BITS) - 1)) as usize
    }

    /// A word refers to it. `is_new` is whether that word did not before.
    #[inline]
    pub fn refer(self, word: usize, ip: u32, is_new: bool) {
        if is_new {
            self.0[COUNT].fetch_add(1, Ordering::Relaxed);
        }
        self.set(REFERENCE, word as u32);
        self.set(STORED_BY, ip);
    }

    /// A word ceases to refer to it.
    pub fn lose(self, word: usize, ending: Ending, event: &impl Event) {
        let before = self.0[COUNT].fetch_update(Ordering::Relaxed, Ordering::Relaxed, |count| count.checked_sub(1));
        let before = before.unwrap_or(0);
        let stack = if before == 1 { event.stack() } else { StackId::NONE };
        self.set(END, word as u32);
        self.set(ENDED_BY, event.ip());
        self.set(TIME, event.time());
        self.set(ENDED_AT, stack.0 & ((1 << STACK_BITS) - 1) | (ending as u32 + 1) << STACK_BITS);
        self.set(HELD, 0);
        self.set(LEN, self.len() as u32);
    }

    /// Whether no word refers to it.
    #[inline]
    pub fn is_unreferenced(self) -> bool {
        self.get(COUNT) == 0
    }

    /// Its address was stored to a stack.
    #[inline]
    pub fn hold(self, depth: u32, event: &impl Event) {
        let before = self.get(LEN);
        let depth = depth.min(u32::MAX >> LEN_BITS);
        if self.get(COUNT) == 0 && depth > before >> LEN_BITS {
            self.set(LEN, self.len() as u32 | depth << LEN_BITS);
            self.set(HELD, event.stack().0);
        }
    }

    /// All of it. Whether the reference remains is not known here.
    pub fn trace(self) -> Trace {
        let ended_at = self.get(ENDED_AT);
        let ending = match ended_at >> STACK_BITS {
            1 => Some(Ending::Overwritten),
            2 => Some(Ending::Freed),
            3 => Some(Ending::Reused),
            _ => None,
        };
        let lost = ending.map(|ending| Lost {
            word: self.get(END) as usize,
            ip: self.get(ENDED_BY),
            time: self.get(TIME),
            ending,
            stack: StackId(ended_at & ((1 << STACK_BITS) - 1)),
        });
        let reference = (self.get(STORED_BY) != 0).then(|| (self.get(REFERENCE) as usize, self.get(STORED_BY)));
        Trace { count: self.get(COUNT), reference, remains: false, lost, held: StackId(self.get(HELD)) }
    }
}
