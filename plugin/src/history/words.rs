//! The tables of references, and which stores concern them.
//!
//! There is one set of tables in a QEMU process, which the kernels of all boots use in turn. So a
//! store finds them without a lock and without the thread's own data.

use super::stacks::Stacks;
use crate::ffi::ram::Ram;
use crate::ffi::sparse::Sparse;
use crate::ffi::stores::Store;
use detector::history::{Event, Id, References};
use guest_symbols::Kernel;
use guest_symbols::kernel::START_KERNEL_MAP;
use guest_symbols::memory::{GuestMemory, PhysAddr, VirtAddr};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

/// Bytes of a word.
pub(super) const WORD: u64 = 8;
/// Bits of the filter of vmalloc space, in words of 64.
const FILTER: usize = 1 << 10;

/// Stands for the address of the direct map after [`Words::give_up`].
const GIVEN_UP: u64 = u64::MAX;

/// The tables of this process. QEMU's callbacks carry no data that could hold them.
static WORDS: OnceLock<Words> = OnceLock::new();

/// References between words and objects of the current kernel.
pub(super) struct Words {
    pub references: References<Sparse>,
    pub stacks: Stacks,
    ram: Ram,
    /// Virtual address of the direct map; 0 before the first allocation. Early boot sets it.
    /// [`GIVEN_UP`] matches no address of the kernel.
    direct: AtomicU64,
    /// Physical addresses below have a history.
    limit: u64,
    /// Virtual addresses of the image, and its physical minus its virtual address.
    image: [AtomicU64; 3],
    /// Virtual addresses of the code that interrupts and exceptions enter. It saves all registers,
    /// also those whose values are not used any more.
    entry: [AtomicU64; 2],
    /// Pages of vmalloc space that may have words with references, by a hash.
    filter: Vec<AtomicU64>,
}

/// The tables, if there are any.
#[inline]
pub(super) fn words() -> Option<&'static Words> {
    WORDS.get()
}

impl Words {
    /// Makes the tables, unless an earlier boot has. `None` if `make` fails.
    pub fn get(ram: &Ram, limit: u64, make: impl FnOnce() -> Option<References<Sparse>>) -> Option<&'static Words> {
        if WORDS.get().is_none() {
            let zero = || AtomicU64::new(0);
            let words = Words {
                references: make()?,
                stacks: Stacks::default(),
                ram: ram.clone(),
                direct: zero(),
                limit,
                image: [zero(), zero(), zero()],
                entry: [zero(), zero()],
                filter: (0..FILTER).map(|_| zero()).collect(),
            };
            let _ = WORDS.set(words);
        }
        WORDS.get()
    }

    /// Another kernel uses the tables from now on.
    pub fn start(&self, kernel: &Kernel) {
        self.direct.store(0, Ordering::Relaxed);
        self.forget();
        let symbol = |name| kernel.symbols.lookup(name).unwrap_or(0);
        let (start, end) = (symbol("_text"), symbol("_end"));
        let offset = kernel.image_phys(VirtAddr(start)).0.wrapping_sub(start);
        // arch/x86/kernel/vmlinux.lds.S, 5.10 to 7.3.
        let entry = [symbol("__entry_text_start"), symbol("__entry_text_end")];
        let values = [start, end, offset].into_iter().chain(entry);
        for (of, value) in self.image.iter().chain(&self.entry).zip(values) {
            of.store(value, Ordering::Relaxed);
        }
    }

    /// Forgets everything: the guest is in another time.
    pub fn forget(&self) {
        self.references.forget();
        self.filter.iter().for_each(|bits| bits.store(0, Ordering::Relaxed));
    }

    /// Ends the history of this kernel. Returns whether there was one.
    pub fn give_up(&self) -> bool {
        let was_on = self.direct.swap(GIVEN_UP, Ordering::Relaxed) != GIVEN_UP;
        self.forget();
        was_on
    }

    /// Reads where the direct map is, if that is not known.
    #[inline]
    pub fn find_direct_map(&self, kernel: &Kernel, ram: &Ram) {
        if self.direct.load(Ordering::Relaxed) == 0 {
            let base = kernel.variable(ram, "page_offset_base");
            self.direct.store(base.unwrap_or(GIVEN_UP), Ordering::Relaxed);
        }
    }

    /// The number of the word at a virtual address of the direct map.
    #[inline]
    pub fn word(&self, at: u64) -> Option<usize> {
        let direct = self.direct.load(Ordering::Relaxed);
        let phys = at.wrapping_sub(direct);
        (phys < self.limit && direct != GIVEN_UP).then_some((phys / WORD) as usize)
    }

    /// The object that an address points into.
    #[inline]
    pub fn points_into(&self, address: u64) -> Id {
        self.word(address).map_or(Id::NONE, |word| self.references.object(word))
    }

    /// The physical address of an address in the image.
    #[inline]
    fn in_image(&self, at: u64) -> Option<u64> {
        let [start, end, offset] = &self.image;
        let is_inside = at >= start.load(Ordering::Relaxed) && at < end.load(Ordering::Relaxed);
        is_inside.then(|| at.wrapping_add(offset.load(Ordering::Relaxed)))
    }

    /// Whether an instruction, given the low half of its address, is of the code that interrupts
    /// enter.
    fn is_entry(&self, ip: u32) -> bool {
        let [start, end] = &self.entry;
        (start.load(Ordering::Relaxed) as u32..end.load(Ordering::Relaxed) as u32).contains(&ip)
    }

    /// The bit of a page of vmalloc space in the filter.
    #[inline]
    fn bit(&self, at: u64) -> (&AtomicU64, u64) {
        let hash = (at >> 12).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 48;
        (&self.filter[hash as usize / 64 % FILTER], 1 << (hash % 64))
    }

    /// Whether a store may make or end a reference, or shows who holds an object.
    #[inline]
    pub fn concerns(&self, store: &Store) -> bool {
        let direct = self.direct.load(Ordering::Relaxed);
        // User space, and what is before the first allocation.
        if direct == 0 || direct == GIVEN_UP || store.at < direct.min(START_KERNEL_MAP) {
            return false;
        }
        let phys = store.at.wrapping_sub(direct);
        let phys = if phys < self.limit { Some(phys) } else { self.in_image(store.at) };
        if let Some(phys) = phys {
            // The word is read from memory, which is faster than asking QEMU for the value.
            let (word, bytes) = (phys / WORD, store.bytes());
            return phys % WORD + bytes > WORD
                || self.references.target(word as usize) != Id::NONE
                || bytes == WORD && self.read(word) != Id::NONE;
        }
        let Some(value) = store.value() else { return true };
        let to = self.points_into(value);
        if self.stacks.is_known(store.at) {
            return to != Id::NONE && self.references.is_unreferenced(to);
        }
        let (bits, bit) = self.bit(store.at);
        to != Id::NONE || bits.load(Ordering::Relaxed) & bit != 0
    }

    /// The object that the value of a word points into.
    #[inline]
    fn read(&self, word: u64) -> Id {
        self.ram.read_u64(PhysAddr(word * WORD)).map_or(Id::NONE, |value| self.points_into(value))
    }

    /// The guest's kernel has stored something. `sp` reads the stack pointer.
    pub fn stored(&self, store: &Store, sp: impl FnOnce() -> u64, event: &impl Event) {
        let phys = store.at.wrapping_sub(self.direct.load(Ordering::Relaxed));
        if phys < self.limit {
            return self.stored_at(phys, store.bytes(), event);
        }
        if let Some(phys) = self.in_image(store.at) {
            return self.stored_at(phys, store.bytes(), event);
        }
        if let Some(depth) = self.stacks.depth(store.at, sp()) {
            let id = store.value().map_or(Id::NONE, |value| self.points_into(value));
            if id.is_object() && !self.is_entry(event.ip()) {
                self.references.hold(id, depth, event);
            }
        } else if !self.stacks.contain(store.at)
            && let Some(phys) = store.phys().filter(|phys| phys.0 < self.limit)
        {
            let (bits, bit) = self.bit(store.at);
            bits.fetch_or(bit, Ordering::Relaxed);
            self.stored_at(phys.0, store.bytes(), event);
        }
    }

    /// The words of `len` bytes at a physical address were written to.
    fn stored_at(&self, phys: u64, len: u64, event: &impl Event) {
        let (first, last) = (phys / WORD, (phys + len - 1) / WORD);
        for word in first..=last {
            // A part of a word makes no reference, but ends one.
            if len >= WORD || self.references.target(word as usize) != Id::NONE {
                self.references.store(word as usize, || self.read(word), event);
            }
        }
    }
}
