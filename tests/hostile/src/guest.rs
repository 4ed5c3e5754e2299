//! The guest of a snapshot. The input overwrites some words of its memory.
//!
//! An input is a list of [`Patch`]es of 14 bytes. Most patches hit words of the kernel's
//! structures, which a check of the unmodified guest reads one by one. The new value may be the
//! address or the value of another such word. Lists then form cycles, or lead from one structure to
//! another.

use crate::input::Input;
use guest_symbols::memory::{GuestMemory, MemoryError, OwnedMemory, PhysAddr, StoppedMemory};
use guest_symbols::{Kernel, VirtAddr};
use snapshot::Snapshot;
use std::cell::RefCell;
use std::collections::BTreeSet;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

/// Most patches of one input.
const MAX_PATCHES: usize = 48;
/// Bytes of a patch.
const PATCH: usize = 14;

/// A guest whose memory can be overwritten.
pub struct Guest {
    snapshot: Snapshot,
    memory: OwnedMemory,
    /// Words that are read one by one, and runs that are read at once. Both ascend.
    places: Vec<u64>,
    runs: Vec<Range<u64>>,
    image: Range<u64>,
    direct_map: u64,
    ram: u64,
}

/// A word to overwrite.
struct Patch {
    at: u64,
    value: u64,
}

impl Guest {
    /// Loads the snapshot, and records the words that `reads` reads.
    ///
    /// # Panics
    /// If there is no snapshot.
    pub fn new(reads: impl Fn(&Snapshot, &Recorder<'_>)) -> Guest {
        let path = path();
        let snapshot = Snapshot::open(&path).unwrap_or_else(|why| panic!("{why}; scripts/golden makes it"));
        let moment = snapshot.moment();
        let recorder = Recorder { memory: moment.memory, words: Mutex::default(), runs: Mutex::default() };
        reads(&snapshot, &recorder);
        let places: Vec<u64> = recorder.words.into_inner().unwrap().into_iter().collect();
        let runs = recorder.runs.into_inner().unwrap().into_iter().map(|(start, end)| start..end).collect();
        let kernel = moment.kernel;
        let phys = |name: &str| kernel.symbol(name).map(|at| kernel.image_phys(at).0);
        let image = phys("_text").unwrap_or(0)..phys("_end").unwrap_or(0);
        let direct_map = kernel.variable(moment.memory, "page_offset_base").unwrap_or(0xffff_8880_0000_0000);
        let memory = copy(moment.memory);
        let ram = memory.ranges().iter().map(|r| r.end - r.start).sum();
        assert!(!places.is_empty(), "nothing was read of {}", path.display());
        Guest { memory, places, runs, image, direct_map, ram, snapshot }
    }

    /// The unmodified snapshot.
    pub fn snapshot(&self) -> &Snapshot {
        &self.snapshot
    }

    /// Its kernel.
    pub fn kernel(&self) -> &Kernel {
        self.snapshot.moment().kernel
    }

    /// Its memory.
    pub fn memory(&self) -> &OwnedMemory {
        &self.memory
    }

    /// The number of words that are read one by one.
    pub fn places(&self) -> usize {
        self.places.len()
    }

    /// The virtual address of the physical address `at` in the direct map.
    pub fn direct(&self, at: u64) -> VirtAddr {
        VirtAddr(self.direct_map.wrapping_add(at))
    }

    /// Calls `act` with the guest while the patches of the input are applied.
    pub fn spoilt<T>(&mut self, input: &mut Input<'_>, act: impl FnOnce(&Guest) -> T) -> T {
        let mut patches = Vec::new();
        for _ in 0..MAX_PATCHES {
            if input.0.len() < PATCH {
                break;
            }
            patches.push(self.patch(input));
        }
        let bytes: Vec<(u64, Vec<u8>)> = patches.iter().map(|p| (p.at, p.value.to_le_bytes().to_vec())).collect();
        self.with(&bytes, act)
    }

    /// Calls `act` with the guest while these bytes are at these physical addresses. Bytes outside
    /// of RAM are ignored.
    pub fn with<T>(&mut self, bytes: &[(u64, Vec<u8>)], act: impl FnOnce(&Guest) -> T) -> T {
        // Restored on drop, so also if `act` panics.
        struct Spoilt<'a>(&'a mut Guest, Vec<(u64, Vec<u8>)>);
        impl Drop for Spoilt<'_> {
            fn drop(&mut self) {
                for (at, bytes) in self.1.iter().rev() {
                    self.0.memory.write(*at, bytes);
                }
            }
        }
        let mut spoilt = Spoilt(self, Vec::new());
        for (at, bytes) in bytes {
            let Some(place) = spoilt.0.memory.slice_mut(PhysAddr(*at), bytes.len()) else { continue };
            let before = place.to_vec();
            place.copy_from_slice(bytes);
            spoilt.1.push((*at, before));
        }
        act(spoilt.0)
    }

    fn patch(&self, input: &mut Input<'_>) -> Patch {
        let (kind, form, number, argument) = (input.u8(), input.u8(), input.u32() as usize, input.u64());
        let near = u64::from(kind >> 4) * 8;
        let at = match kind % 8 {
            0..=4 => self.place(number),
            5 | 6 => match self.runs.get(number % self.runs.len().max(1)) {
                Some(run) => {
                    run.start + (u64::from(number as u32).wrapping_mul(0x9e37_79b9) % (run.end - run.start)) / 8 * 8
                }
                None => self.place(number),
            },
            _ => self.phys(number as u64 * 8),
        };
        let at = if kind % 8 < 5 { at } else { at + near };
        let old = self.memory.read_u64(PhysAddr(at)).unwrap_or(0);
        let other = self.place(argument as usize);
        let shift = u64::from((argument >> 32) as u8);
        let value = match form % 10 {
            0 => argument,
            1 => self.virt(other).wrapping_add(shift),
            2 => self.memory.read_u64(PhysAddr(other)).unwrap_or(0),
            3 => old.wrapping_add_signed((argument as i16).into()),
            4 => old ^ 1 << (argument % 64),
            5 => argument & 0xff,
            6 => u64::MAX << (argument % 64),
            7 => 1 << (argument % 64),
            // Only the low half, or only the high half.
            8 => old & !0xffff_ffff | argument & 0xffff_ffff,
            _ => old & 0xffff_ffff | argument << 32,
        };
        Patch { at, value }
    }

    fn place(&self, number: usize) -> u64 {
        self.places[number % self.places.len()]
    }

    /// The physical address of the byte with this number in RAM.
    fn phys(&self, number: u64) -> u64 {
        let mut rest = number % self.ram;
        for range in self.memory.ranges() {
            if rest < range.end - range.start {
                return range.start + rest;
            }
            rest -= range.end - range.start;
        }
        0
    }

    fn virt(&self, phys: u64) -> u64 {
        if self.image.contains(&phys) {
            phys.wrapping_sub(self.kernel().image_phys(VirtAddr(0)).0)
        } else {
            self.direct(phys).0
        }
    }
}

fn path() -> PathBuf {
    match std::env::var_os("LIBLEAK_FUZZ_SNAPSHOT") {
        Some(path) => path.into(),
        None => Path::new(env!("CARGO_MANIFEST_DIR")).join("../golden/snapshot"),
    }
}

fn copy(from: &OwnedMemory) -> OwnedMemory {
    const PAGE: usize = 4096;
    let mut to = OwnedMemory::sparse(from.ranges().to_vec()).expect("as much memory as there is already");
    for range in from.ranges() {
        for at in (range.start..range.end).step_by(PAGE) {
            let page = from.run(PhysAddr(at), PAGE);
            if page.iter().any(|b| *b != 0) {
                to.write(at, page);
            }
        }
    }
    to
}

/// A memory that records reads.
pub struct Recorder<'a> {
    memory: &'a OwnedMemory,
    words: Mutex<BTreeSet<u64>>,
    runs: Mutex<BTreeSet<(u64, u64)>>,
}

impl GuestMemory for Recorder<'_> {
    fn read(&self, at: PhysAddr, buf: &mut [u8]) -> Result<(), MemoryError> {
        if buf.len() <= 64 {
            self.words.lock().unwrap().extend((at.0 & !7..at.0 + buf.len() as u64).step_by(8));
        } else {
            self.runs.lock().unwrap().insert((at.0, at.0 + buf.len() as u64));
        }
        self.memory.read(at, buf)
    }

    fn ranges(&self) -> &[Range<u64>] {
        self.memory.ranges()
    }
}

impl StoppedMemory for Recorder<'_> {
    fn slice(&self, at: PhysAddr, len: usize) -> Option<&[u8]> {
        let found = self.memory.slice(at, len)?;
        if len > 0 {
            self.runs.lock().unwrap().insert((at.0, at.0 + len as u64));
        }
        Some(found)
    }
}

/// A memory with a limit on reads. A real check that reads more would stop the guest for too long.
pub struct Budget<'a> {
    memory: &'a OwnedMemory,
    /// Remaining reads, and remaining bytes.
    reads: AtomicU64,
    bytes: AtomicU64,
}

impl<'a> Budget<'a> {
    /// Allows this many reads, and this many bytes in runs.
    pub fn new(memory: &'a OwnedMemory, reads: u64, bytes: u64) -> Budget<'a> {
        Budget { memory, reads: AtomicU64::new(reads), bytes: AtomicU64::new(bytes) }
    }

    fn take(&self, bytes: usize) {
        // Only one thread reads.
        let (reads, left) = (self.reads.load(Ordering::Relaxed), self.bytes.load(Ordering::Relaxed));
        assert!(reads > 0, "too many reads");
        assert!(left >= bytes as u64, "too many bytes are read");
        self.reads.store(reads - 1, Ordering::Relaxed);
        self.bytes.store(left - bytes as u64, Ordering::Relaxed);
    }
}

impl GuestMemory for Budget<'_> {
    fn read(&self, at: PhysAddr, buf: &mut [u8]) -> Result<(), MemoryError> {
        self.take(buf.len());
        self.memory.read(at, buf)
    }

    fn ranges(&self) -> &[Range<u64>] {
        self.memory.ranges()
    }
}

impl StoppedMemory for Budget<'_> {
    fn slice(&self, at: PhysAddr, len: usize) -> Option<&[u8]> {
        let found = self.memory.slice(at, len)?;
        self.take(len);
        Some(found)
    }
}

/// Loads the guest once per thread, and calls `act` with it.
pub fn with(
    guest: &'static std::thread::LocalKey<RefCell<Option<Guest>>>,
    make: impl FnOnce() -> Guest,
    act: impl FnOnce(&mut Guest),
) {
    guest.with(|guest| act(guest.borrow_mut().get_or_insert_with(make)));
}
