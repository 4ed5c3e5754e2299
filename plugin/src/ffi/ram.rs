//! Guest RAM, where QEMU has mapped it in this process.
//!
//! RAM that is there from the start stays. Other RAM may be plugged and unplugged
//! ([`super::layout`]):
//!
//! - A callback of a vCPU runs in a read-side critical section of QEMU's RCU (cpu_exec()). QEMU
//!   unmaps removed RAM after a grace period (qemu_ram_free()), and calls a notifier before that.
//!   From then on no callback finds that RAM.
//! - A check holds [`READERS`]. The notifier waits for it on QEMU's thread.
//! - An address outside of known RAM may be new RAM. So the layout is read again, though not at
//!   each such access.

pub use super::layout::RamError;
use super::layout::{self, Layout, Segment, View};
use super::witness::GuestStopped;
use guest_symbols::memory::{GuestMemory, MemoryError, PhysAddr, StoppedMemory};
use parking_lot::{Mutex, RwLock, RwLockReadGuard};
use std::ops::Range;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicPtr, AtomicU8, AtomicU32, AtomicU64, Ordering};
use std::time::Instant;

/// Minimum time in nanoseconds between two readings of the layout. A kernel takes longer to use
/// plugged memory, because it first writes a descriptor for each page.
const LOOK_AGAIN: u64 = 100_000;

/// The current layout; null before RAM was found. QEMU's notifier, which changes it, carries no
/// data that could hold it. Layouts are never freed; there is a new one each time that RAM is
/// plugged or unplugged.
static CURRENT: AtomicPtr<Layout> = AtomicPtr::new(std::ptr::null_mut());
/// Held while the layout is changed.
static CHANGES: Mutex<()> = Mutex::new(());
/// Held while RAM is read outside of vCPUs' callbacks.
static READERS: RwLock<()> = RwLock::new(());

/// The current layout.
#[inline]
fn current() -> &'static Layout {
    /// Before RAM was found.
    static NONE: Layout = Layout { segments: Vec::new(), ranges: Vec::new() };
    // SAFETY: the pointer is null, or a layout that `replace` has leaked.
    unsafe { CURRENT.load(Ordering::Acquire).as_ref() }.unwrap_or(&NONE)
}

/// Replaces the current layout, if this one differs.
fn replace(layout: Layout) {
    if *current() != layout {
        log::info!("guest RAM: {:x?}", layout.ranges);
        CURRENT.store(Box::into_raw(Box::new(layout)), Ordering::Release);
    }
}

/// Reads the layout. Call it on a thread that QEMU's RCU knows.
fn refresh() {
    let Some(view) = View::take() else { return };
    let _one = CHANGES.lock();
    // The view keeps its RAM mapped, so the new layout contains no unmapped RAM.
    let layout = view.layout();
    if !layout.segments.is_empty() {
        replace(layout);
    }
}

/// QEMU is about to unmap RAM. From now on it is not read.
fn removed(host: usize, len: usize) {
    let changes = CHANGES.lock();
    replace(current().without(host..host.saturating_add(len)));
    drop(changes);
    // Waits for a check that uses the old layout.
    drop(READERS.write());
}

/// Registers for removed RAM. To be called once, at install.
pub fn watch() {
    layout::on_ram_removed(removed);
}

/// Guest RAM by guest physical address. It can be read at any time. Slices are lent only by
/// [`Ram::stopped`].
#[derive(Clone)]
pub struct Ram {
    /// The first segment. In most guests there is no other. It is never unmapped.
    first: Segment,
}

impl Ram {
    /// Finds RAM, given the host address of a byte of guest code. Call it on a vCPU's thread.
    ///
    /// # Errors
    /// [`RamError`].
    pub fn find(code: *const u8) -> Result<Ram, RamError> {
        let layout = Layout::find(code as usize)?;
        let first = *layout.segments.first().ok_or(RamError::NotMapped(code as usize))?;
        let _one = CHANGES.lock();
        replace(layout);
        Ok(Ram { first })
    }

    /// The guest physical address of a host address.
    pub fn phys_of(&self, host: *const u8) -> Option<PhysAddr> {
        let host = host as usize;
        let in_segment = |s: &Segment| s.offset_of_host(host).map(|offset| PhysAddr(s.phys + offset));
        let in_any = || current().segments.iter().find_map(in_segment);
        if host == 0 {
            return None;
        }
        in_segment(&self.first).or_else(in_any).or_else(|| look_again().then(in_any).flatten())
    }

    /// The host address of `len` bytes at guest physical address `at`.
    #[inline]
    fn host_of(&self, at: PhysAddr, len: usize) -> Option<usize> {
        match self.first.offset_of(at.0) {
            Some(offset) => host_in(&self.first, offset, len),
            None => elsewhere(at, len),
        }
    }

    /// Whether the `len` bytes of guest code at host address `host` contain two bytes in a row. All
    /// of them lie in one page. It is called for every block, so it searches words for the second
    /// byte first, which should be the rarer one.
    #[inline]
    pub fn has_pair(&self, host: *const u8, len: usize, pair: [u8; 2]) -> bool {
        const ONES: u64 = 0x0101_0101_0101_0101;
        let (start, wanted) = (host as usize, ONES * u64::from(pair[1]));
        if self.phys_of(host).is_none() {
            return false;
        }
        // SAFETY: RAM is mapped in whole pages, for longer than this callback. The aligned words
        // with the bytes lie in one page. A vCPU may write at the same time, so the loads are
        // atomic.
        let word = |at: usize| u64::from_le(unsafe { (*(at as *const AtomicU64)).load(Ordering::Relaxed) });
        let has_second = |word: u64| {
            let differs = word ^ wanted;
            differs.wrapping_sub(ONES) & !differs & (ONES << 7) != 0
        };
        let words = || (start & !7..start + len).step_by(8);
        if !words().any(|at| has_second(word(at))) {
            return false;
        }
        let mut before = 0;
        words()
            .flat_map(|at| (at..).zip(word(at).to_le_bytes()))
            .filter(|(at, _)| (start..start + len).contains(at))
            .any(|(_, byte)| {
                let both = [before, byte] == pair;
                before = byte;
                both
            })
    }

    /// RAM that can be lent as slices. Call it on a thread that QEMU's RCU knows.
    pub fn stopped<'a>(&self, stopped: &'a GuestStopped) -> StoppedRam<'a> {
        // Locked first, so that no RAM of the layout is unmapped.
        let readers = READERS.read_recursive();
        refresh();
        StoppedRam { layout: current(), _readers: readers, _stopped: stopped }
    }
}

/// The host address of `len` bytes, `offset` into a segment.
#[inline]
fn host_in(segment: &Segment, offset: u64, len: usize) -> Option<usize> {
    (segment.len - offset >= len as u64).then_some(segment.host + offset as usize)
}

/// The host address of `len` bytes at guest physical address `at` in a layout.
#[inline]
fn host_of(layout: &Layout, at: PhysAddr, len: usize) -> Option<usize> {
    let found = |s: &Segment| s.offset_of(at.0).map(|offset| (*s, offset));
    let (segment, offset) = layout.segments.iter().find_map(found)?;
    host_in(&segment, offset, len)
}

/// As [`host_of`] for the current layout, which is read again if it lacks the address.
fn elsewhere(at: PhysAddr, len: usize) -> Option<usize> {
    host_of(current(), at, len).or_else(|| look_again().then(|| host_of(current(), at, len)).flatten())
}

/// Reads the layout again, unless that was just done. Returns whether it was read. Call it on a
/// thread that QEMU's RCU knows.
#[cold]
fn look_again() -> bool {
    /// Times are counted from here, so that they fit into an atomic word.
    static START: OnceLock<Instant> = OnceLock::new();
    /// When the layout may be read again. All threads share the layout.
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let now = START.get_or_init(Instant::now).elapsed().as_nanos() as u64;
    if NEXT.load(Ordering::Relaxed) > now {
        return false;
    }
    refresh();
    NEXT.store(now + LOOK_AGAIN, Ordering::Relaxed);
    true
}

/// Fills `buf` from RAM at a host address.
///
/// # Safety
/// `buf.len()` bytes at `host` are RAM, and stay mapped until this returns.
unsafe fn copy(host: usize, buf: &mut [u8]) {
    let mut done = 0;
    while done < buf.len() {
        let (from, rest) = (host + done, &mut buf[done..]);
        // SAFETY: the caller guarantees that the bytes are mapped. Each load is aligned and does
        // not exceed the rest. A vCPU may write at the same time; atomic loads return the old or
        // the new value.
        done += unsafe {
            if from % 8 == 0 && rest.len() >= 8 {
                rest[..8].copy_from_slice(&(*(from as *const AtomicU64)).load(Ordering::Relaxed).to_ne_bytes());
                8
            } else if from % 4 == 0 && rest.len() >= 4 {
                rest[..4].copy_from_slice(&(*(from as *const AtomicU32)).load(Ordering::Relaxed).to_ne_bytes());
                4
            } else {
                rest[0] = (*(from as *const AtomicU8)).load(Ordering::Relaxed);
                1
            }
        };
    }
}

/// The word at a host address.
///
/// # Safety
/// 8 bytes at `host` are RAM, and stay mapped until this returns.
#[inline]
unsafe fn word(host: usize) -> u64 {
    if host.is_multiple_of(8) {
        // SAFETY: the word is mapped and aligned. Relaxed atomic loads may race with the guest's
        // stores.
        return u64::from_le(unsafe { (*(host as *const AtomicU64)).load(Ordering::Relaxed) });
    }
    let mut buf = [0; 8];
    // SAFETY: the caller guarantees that the bytes are mapped.
    unsafe { copy(host, &mut buf) };
    u64::from_le_bytes(buf)
}

impl GuestMemory for Ram {
    fn read(&self, at: PhysAddr, buf: &mut [u8]) -> Result<(), MemoryError> {
        let host = self.host_of(at, buf.len()).ok_or(MemoryError::NoRam(at))?;
        // SAFETY: `host_of` has checked that all bytes lie in RAM. The first segment stays mapped.
        // This module's comment explains why the others outlive a callback.
        unsafe { copy(host, buf) };
        Ok(())
    }

    fn ranges(&self) -> &[Range<u64>] {
        &current().ranges
    }

    #[inline]
    fn contains(&self, at: PhysAddr) -> bool {
        self.first.offset_of(at.0).is_some() || current().segments.iter().any(|s| s.offset_of(at.0).is_some())
    }

    #[inline]
    fn read_u64(&self, at: PhysAddr) -> Result<u64, MemoryError> {
        let host = self.host_of(at, 8).ok_or(MemoryError::NoRam(at))?;
        // SAFETY: as above.
        Ok(unsafe { word(host) })
    }
}

/// RAM of a stopped guest. While this exists, no RAM is unmapped.
pub struct StoppedRam<'a> {
    layout: &'a Layout,
    _readers: RwLockReadGuard<'static, ()>,
    _stopped: &'a GuestStopped,
}

impl StoppedRam<'_> {
    /// Writes to RAM as a device does: QEMU throws away code that it translated there, and marks
    /// the pages as changed. Returns whether all bytes were written. If not, none or only the first
    /// were. No slice of the RAM can be lent out meanwhile.
    pub fn write(&mut self, at: PhysAddr, bytes: &[u8]) -> bool {
        // What is no RAM is a device.
        host_of(self.layout, at, bytes.len()).is_some() && layout::write_physical(at.0, bytes)
    }
}

impl GuestMemory for StoppedRam<'_> {
    fn read(&self, at: PhysAddr, buf: &mut [u8]) -> Result<(), MemoryError> {
        let host = host_of(self.layout, at, buf.len()).ok_or(MemoryError::NoRam(at))?;
        // SAFETY: all bytes are RAM of the layout. The guard keeps it mapped.
        unsafe { copy(host, buf) };
        Ok(())
    }

    fn ranges(&self) -> &[Range<u64>] {
        &self.layout.ranges
    }

    #[inline]
    fn read_u64(&self, at: PhysAddr) -> Result<u64, MemoryError> {
        let host = host_of(self.layout, at, 8).ok_or(MemoryError::NoRam(at))?;
        // SAFETY: as above.
        Ok(unsafe { word(host) })
    }
}

impl StoppedMemory for StoppedRam<'_> {
    fn slice(&self, at: PhysAddr, len: usize) -> Option<&[u8]> {
        let host = host_of(self.layout, at, len)?;
        // SAFETY: the guard keeps the RAM mapped, and outlives the slice. The witness proves that
        // nothing writes to it.
        Some(unsafe { std::slice::from_raw_parts(host as *const u8, len) })
    }
}
