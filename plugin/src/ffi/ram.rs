//! Guest RAM where QEMU has it mapped in this very process.
//!
//! What is there from the start stays. More may come and go ([`super::layout`]); then:
//!
//! - A callback of a vCPU runs inside of a read-side critical section of QEMU's RCU (cpu_exec()),
//!   and QEMU unmaps RAM that was taken away only after a grace period (qemu_ram_free()). It tells
//!   us before that, and from then on no callback finds that RAM.
//! - A check holds [`READERS`], and QEMU's thread waits for that before it goes on to take RAM
//!   away.
//! - An address that is no RAM may be one by now, so the layout is looked at again, though not all
//!   the time.

pub use super::layout::RamError;
use super::layout::{self, Layout, Segment, View};
use super::witness::GuestStopped;
use guest_symbols::memory::{GuestMemory, MemoryError, PhysAddr, StoppedMemory};
use parking_lot::{Mutex, RwLock, RwLockReadGuard};
use std::ops::Range;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicPtr, AtomicU8, AtomicU32, AtomicU64, Ordering};
use std::time::Instant;

/// Nanoseconds between two looks at an address that is no RAM, at least. A kernel takes longer to
/// make use of memory that was just plugged in: it writes a descriptor for each of its pages first.
const LOOK_AGAIN: u64 = 100_000;

/// Where RAM lies now; null before it was found. There is one QEMU, and its notifier, which changes
/// this, carries no data of ours. Layouts are never freed: there is one more each time that RAM
/// comes or goes.
static CURRENT: AtomicPtr<Layout> = AtomicPtr::new(std::ptr::null_mut());
/// Held by who changes it.
static CHANGES: Mutex<()> = Mutex::new(());
/// Held by who reads RAM and is no callback of a vCPU.
static READERS: RwLock<()> = RwLock::new(());

/// The layout now.
#[inline]
fn current() -> &'static Layout {
    /// Before RAM was found.
    static NONE: Layout = Layout { segments: Vec::new(), ranges: Vec::new() };
    // SAFETY: it is null, or a layout that was leaked by `replace`.
    unsafe { CURRENT.load(Ordering::Acquire).as_ref() }.unwrap_or(&NONE)
}

/// Makes this the layout, if it is another one.
fn replace(layout: Layout) {
    if *current() != layout {
        log::info!("guest RAM: {:x?}", layout.ranges);
        CURRENT.store(Box::into_raw(Box::new(layout)), Ordering::Release);
    }
}

/// Looks where RAM lies now. On a thread that QEMU's RCU knows.
fn refresh() {
    let Some(view) = View::take() else { return };
    let _one = CHANGES.lock();
    // What a view holds is not taken away before it is dropped, so nothing is entered here that is
    // gone.
    let layout = view.layout();
    if !layout.segments.is_empty() {
        replace(layout);
    }
}

/// RAM is taken away from QEMU: nobody reads it from now on. Called before it is unmapped.
fn removed(host: usize, len: usize) {
    let changes = CHANGES.lock();
    replace(current().without(host..host.saturating_add(len)));
    drop(changes);
    // A check that goes on with the old layout ends first.
    drop(READERS.write());
}

/// Has QEMU tell when RAM is taken away. To be called once, at install.
pub fn watch() {
    layout::on_ram_removed(removed);
}

/// Guest RAM, by physical address. Readable at any time; only [`Ram::stopped`] lends slices.
pub struct Ram {
    /// The first of the segments, which in most guests is all of them. It is there as long as QEMU
    /// is.
    first: Segment,
}

impl Ram {
    /// Finds RAM, given the host address of one byte of guest code. Call it on a vCPU's thread.
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

    /// The host address of `len` bytes at `at`.
    #[inline]
    fn host_of(&self, at: PhysAddr, len: usize) -> Option<usize> {
        match self.first.offset_of(at.0) {
            Some(offset) => host_in(&self.first, offset, len),
            None => elsewhere(at, len),
        }
    }

    /// Whether two bytes stand one after the other among the `len` bytes of guest code at `host`,
    /// which are of one page. For blocks by the thousand, so it looks at words, for the second
    /// byte, which is to be the rarer one in code.
    #[inline]
    pub fn has_pair(&self, host: *const u8, len: usize, pair: [u8; 2]) -> bool {
        const ONES: u64 = 0x0101_0101_0101_0101;
        let (start, wanted) = (host as usize, ONES * u64::from(pair[1]));
        if self.phys_of(host).is_none() {
            return false;
        }
        // SAFETY: RAM is mapped in whole pages, for longer than this callback, and the bytes, and
        // so the aligned words that they are of, lie in one page of it. A vCPU may write at the
        // same time: the loads are atomic.
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

    /// RAM as slices, as it lies now. On a thread that QEMU's RCU knows.
    pub fn stopped<'a>(&self, stopped: &'a GuestStopped) -> StoppedRam<'a> {
        // First, so that nothing of the layout goes away any more.
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

/// The host address of `len` bytes at `at` of a layout.
#[inline]
fn host_of(layout: &Layout, at: PhysAddr, len: usize) -> Option<usize> {
    let found = |s: &Segment| s.offset_of(at.0).map(|offset| (*s, offset));
    let (segment, offset) = layout.segments.iter().find_map(found)?;
    host_in(&segment, offset, len)
}

/// As [`host_of`] of the layout now, after a look whether it has changed.
fn elsewhere(at: PhysAddr, len: usize) -> Option<usize> {
    host_of(current(), at, len).or_else(|| look_again().then(|| host_of(current(), at, len)).flatten())
}

/// There is no RAM where it was thought to be: looks where it lies now, but for when that was just
/// done. On a thread that QEMU's RCU knows.
#[cold]
fn look_again() -> bool {
    /// Times are counted from here on, so that they fit into an atomic word.
    static START: OnceLock<Instant> = OnceLock::new();
    /// When to look again, for all threads: there is one layout.
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
/// All of `buf`'s length there is RAM, mapped until this returns.
unsafe fn copy(host: usize, buf: &mut [u8]) {
    let mut done = 0;
    while done < buf.len() {
        let (from, rest) = (host + done, &mut buf[done..]);
        // SAFETY: by this function's own contract it is mapped; each load is aligned and of no more
        // than the rest. A vCPU may write at the same time: atomic loads then give the old or the
        // new value.
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
/// Its 8 bytes are RAM, mapped until this returns.
#[inline]
unsafe fn word(host: usize) -> u64 {
    if host.is_multiple_of(8) {
        // SAFETY: mapped and aligned; relaxed atomic loads may race with the guest's stores.
        return u64::from_le(unsafe { (*(host as *const AtomicU64)).load(Ordering::Relaxed) });
    }
    let mut buf = [0; 8];
    // SAFETY: the caller's.
    unsafe { copy(host, &mut buf) };
    u64::from_le_bytes(buf)
}

impl GuestMemory for Ram {
    fn read(&self, at: PhysAddr, buf: &mut [u8]) -> Result<(), MemoryError> {
        let host = self.host_of(at, buf.len()).ok_or(MemoryError::NoRam(at))?;
        // SAFETY: `host_of` has seen that all of `buf` lies in RAM. The first segment stays; of the
        // others this module's comment tells why they outlive a callback.
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

/// [`Ram`] while nothing writes to it. As long as there is one, none of it goes away.
pub struct StoppedRam<'a> {
    layout: &'a Layout,
    _readers: RwLockReadGuard<'static, ()>,
    _stopped: &'a GuestStopped,
}

impl GuestMemory for StoppedRam<'_> {
    fn read(&self, at: PhysAddr, buf: &mut [u8]) -> Result<(), MemoryError> {
        let host = host_of(self.layout, at, buf.len()).ok_or(MemoryError::NoRam(at))?;
        // SAFETY: all of it is RAM of the layout, which the guard keeps.
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
        // SAFETY: mapped as long as the guard lives, which is as long as the slice at least; and
        // nothing writes to it, as the witness proves.
        Some(unsafe { std::slice::from_raw_parts(host as *const u8, len) })
    }
}
