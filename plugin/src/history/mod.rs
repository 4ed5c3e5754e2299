//! The history of references, for `history=on`: which words of the guest's memory refer to which
//! objects ([`detector::history`]).
//!
//! - [`words`]: the tables, and which stores concern them
//! - [`slab_size`]: sizes of slab objects
//! - [`stacks`]: which memory is stacks
//!
//! Words of the direct map and of the kernel's image are found by arithmetic, and others in the
//! vCPU's TLB. Objects of slabs and large `kmalloc()` have a history; they lie in the direct map.

mod slab_size;
mod stacks;
mod words;

use crate::ffi::ram::Ram;
use crate::ffi::sparse::Sparse;
use crate::ffi::stores::Store;
use crate::hooks::guest::Guest;
use checker::loss::Traces;
use detector::history::{Event, MAX, RECORD, References, Trace};
use detector::objects::Kind;
use guest_symbols::Kernel;
use guest_symbols::memory::GuestMemory;
use slab_size::SlabSizes;
use words::{WORD, Words, words};

/// Physical addresses from here on have no history: words are numbered with 32 bits.
const LIMIT: u64 = 1 << 35;
/// Most objects with a history for each MiB of RAM.
const OBJECTS_A_MIB: u64 = 1 << 13;

/// Why there is no history.
#[derive(Debug, Clone, Copy, thiserror::Error)]
pub enum HistoryError {
    /// The host gives no address space for the tables.
    #[error("the host has no address space for the history of references: nothing says where leaks were lost")]
    NoSpace,
    /// BTF lacks what is needed.
    #[error("the kernel's types lack a member that the history needs: nothing says where leaks were lost")]
    Types,
}

/// The history of one kernel.
pub struct History {
    words: &'static Words,
    slabs: SlabSizes,
}

impl History {
    /// No history yet.
    ///
    /// # Errors
    /// [`HistoryError`].
    pub fn new(kernel: &Kernel, ram: &Ram) -> Result<History, HistoryError> {
        let end = ram.ranges().iter().map(|range| range.end).max().unwrap_or(0);
        let limit = end.min(LIMIT);
        let slabs = SlabSizes::new(kernel, limit).ok_or(HistoryError::Types)?;
        let make = || {
            let words = (limit / WORD) as usize;
            let objects = (((limit >> 20) + 1) * OBJECTS_A_MIB).min(MAX as u64) as usize;
            Some(References::new(Sparse::new(words)?, Sparse::new(words)?, Sparse::new(objects * RECORD)?))
        };
        let words = Words::get(ram, limit, make).ok_or(HistoryError::NoSpace)?;
        words.start(kernel);
        Ok(History { words, slabs })
    }

    /// Bytes of host memory in use.
    pub fn bytes(&self) -> u64 {
        self.words.references.bytes()
    }

    /// How many objects have no history, for lack of room.
    pub fn unrecorded(&self) -> u64 {
        self.words.references.unrecorded()
    }

    /// Ends the history for good, and frees its memory. Returns whether there was one.
    pub fn give_up(&self) -> bool {
        self.words.give_up()
    }

    /// Forgets everything: the guest is in another time.
    pub fn forget(&self) {
        self.words.forget();
    }

    /// An object was allocated at a virtual address. `size` is in bytes; slabs know the sizes of
    /// their objects.
    pub fn allocated(&self, guest: &Guest, addr: u64, kind: Kind, size: u64, event: &impl Event) {
        self.words.find_direct_map(&guest.kernel, &guest.ram);
        let Some(word) = self.words.word(addr) else { return };
        let size = match kind {
            Kind::Slab => self.slabs.size_of(&guest.kernel, &guest.ram, word as u64 * WORD),
            Kind::Large => Some(size),
            Kind::Vmalloc | Kind::Percpu | Kind::Pages => None,
        };
        if let Some(size) = size {
            self.words.references.begin(word, size.div_ceil(WORD) as usize, event);
        }
    }

    /// The object at a virtual address is freed.
    pub fn freed(&self, addr: u64, event: &impl Event) {
        if let Some(word) = self.words.word(addr) {
            self.words.references.end(word, event);
        }
    }

    /// A block of vmalloc space is freed. It may have been a stack.
    pub fn freed_area(&self, addr: u64) {
        self.words.stacks.remove(addr);
    }

    /// The guest's kernel has stored something. `sp` reads the stack pointer.
    pub fn stored(&self, store: &Store, sp: impl FnOnce() -> u64, event: &impl Event) {
        self.words.stored(store, sp, event);
    }
}

/// Whether a store may concern the history of the current kernel.
#[inline]
pub fn concerns(store: &Store) -> bool {
    words().is_some_and(|words| words.concerns(store))
}

impl Traces for History {
    fn trace(&self, addr: u64, kind: Kind) -> Option<Trace> {
        let word = self.words.word(addr).filter(|_| matches!(kind, Kind::Slab | Kind::Large))?;
        self.words.references.trace(word)
    }
}
