//! What an allocation or a free that was seen does to the live map, and a guest that goes back in time.

use super::arch;
use super::context::Who;
use super::tracker::{Pending, Tracker};
use crate::ffi::inject;
use crate::ffi::regs;
use crate::hooks::troubles::Trouble;
use detector::comms::{Comm, CommId};
use detector::objects::{Allocation, Inserted, Kind, Removed};
use detector::stacks::StackId;
use guest_symbols::memory::{PAGE_SIZE, VirtAddr};
use guest_symbols::pages::Maps;
use std::cell::Cell;
use std::sync::atomic::Ordering;

/// ZERO_SIZE_PTR and NULL are freed and returned, and are no objects (include/linux/slab.h).
pub(super) const ZERO_SIZE_PTR: u64 = 16;
/// PCPU_MIN_ALLOC_SIZE (include/linux/percpu.h).
const PERCPU_ALIGN: u64 = 4;
/// Largest bulk operation believed.
const MAX_BULK: u64 = 1 << 16;
/// Of so many allocations one is the time to look at what grows with them.
const EVERY: u64 = 1 << 10;
/// Of `system_state` (include/linux/kernel.h), the last before init runs.
const SYSTEM_SCHEDULING: u32 = 1;
/// vfree() hands blocks on to vfree_atomic() and back; so many of the last ones are remembered.
pub(super) const RECENT_VFREES: usize = 256;

thread_local! {
    static LAST_COMM: Cell<(Comm, CommId)> = Cell::default();
}

/// What this thread remembers is of a kernel that is gone.
pub(super) fn forget() {
    LAST_COMM.take();
}

impl Tracker {
    pub(super) fn allocated(&self, addr: u64, kind: Kind, pending: Pending, stack: StackId) {
        let is_error = addr.wrapping_neg() < PAGE_SIZE;
        if addr <= ZERO_SIZE_PTR || is_error || (kind != Kind::Percpu && !VirtAddr(addr).is_kernel()) {
            return;
        }
        if self.closed.load(Ordering::Relaxed) {
            return self.not_entered(addr, kind, pending);
        }
        let jiffies = self.check_time(false);
        self.clock.tick(jiffies, || self.millis());
        let Who { comm, pid, tgid, cpu } =
            self.context.who(&self.kernel.view(&self.ram), regs::read(arch::PER_CPU_BASE));
        let (comm, sequence) = (self.comm(comm), self.sequence.fetch_add(1, Ordering::Relaxed));
        if sequence.is_multiple_of(EVERY) {
            self.bound_objects();
        }
        if sequence.is_multiple_of(super::memory_budget::EVERY) {
            self.look_at_memory();
        }
        let object = Allocation { kind, stack, sequence, jiffies, pid, tgid, cpu, comm }.into();
        let size = match kind {
            Kind::Slab => 0,
            Kind::Large | Kind::Pages => pending.size,
            Kind::Vmalloc => pending.size.next_multiple_of(PAGE_SIZE),
            Kind::Percpu => pending.size.next_multiple_of(PERCPU_ALIGN),
        };
        if let (Kind::Pages, Some(pages)) = (kind, &self.pages) {
            let address = Maps::read(&self.kernel, &self.ram).address_of(addr, pages.descriptor);
            pages.map.insert(address, object, size, pending.sequence);
            return;
        }
        match self.live.insert(addr, object, size, pending.sequence) {
            Inserted::New | Inserted::NoRoom => {}
            Inserted::Inside => self.hooks[pending.hook as usize].1.wraps.store(true, Ordering::Relaxed),
            Inserted::Replaced => log::debug!("missed free of {addr:#x}, allocated again by {:#x}", pending.ret),
        }
    }

    /// The number of a task's name, which is mostly the one that this thread saw last.
    fn comm(&self, comm: Comm) -> CommId {
        LAST_COMM.with(|last| {
            let (name, id) = last.get();
            if name == comm && id != CommId::default() {
                return id;
            }
            let id = self.comms.intern(comm);
            last.set((comm, id));
            id
        })
    }

    /// The guest's jiffies, after a look whether they went back. Besides each allocation, QEMU's throwing away its
    /// translations is a moment to look: it does so while it loads a snapshot, with the guest's memory loaded and before
    /// any of it runs. `flushed` says that this is such a moment.
    pub fn check_time(&self, flushed: bool) -> u64 {
        // In this order: the host may hold this thread up between the two, while other CPUs see later ticks.
        let latest = self.jiffies.load(Ordering::Acquire);
        let jiffies = self.context.jiffies(&self.ram);
        if jiffies > latest {
            self.jiffies.fetch_max(jiffies, Ordering::AcqRel);
        } else if jiffies < latest {
            self.rewind(latest, jiffies, flushed);
        }
        jiffies
    }

    /// Time went back: the guest was loaded from a snapshot of its past, or the same kernel started again in the same
    /// place. What was live is not what is; the kernel's own books say what is, at the next check.
    #[cold]
    fn rewind(&self, latest: u64, jiffies: u64, flushed: bool) {
        // Of several CPUs that notice, one acts.
        if self.jiffies.compare_exchange(latest, jiffies, Ordering::AcqRel, Ordering::Relaxed).is_ok() {
            self.rewinds.fetch_add(1, Ordering::Relaxed);
            let state = self.kernel.variable(&self.ram, "system_state").map_or(0, |state| state as u32);
            if !flushed && state > SYSTEM_SCHEDULING {
                self.trouble(&Trouble::TimeWentBack);
            }
            self.forget_all();
        }
    }

    /// A snapshot is about to be loaded, of this boot's past or future or of another boot, and every vCPU is stopped.
    pub fn leave_this_time(&self) {
        self.rewinds.fetch_add(1, Ordering::Relaxed);
        self.jiffies.store(0, Ordering::Release);
        self.forget_all();
        self.troubles.forget_this_time();
    }

    /// The guest is in another time: of what was live then and of the calls in progress nothing holds.
    fn forget_all(&self) {
        self.live.clear();
        self.clock.clear();
        self.tests.lock().forget(self.sequence.load(Ordering::Relaxed));
        if let Some(pages) = &self.pages {
            pages.map.clear();
        }
        let mut armed = 0;
        self.pending.retain(|_, p| {
            armed += i64::from(p.armed);
            false
        });
        self.arm(-armed);
    }

    pub(super) fn free(&self, addr: u64) {
        if addr > ZERO_SIZE_PTR && self.live.remove(addr) == Removed::Unknown {
            self.unknown_free(addr);
        }
    }

    /// What was live before a rewind is not known, nor what there was no room for.
    pub(super) fn unknown_free(&self, addr: u64) {
        let is_closed = self.closed.load(Ordering::Relaxed);
        if is_closed {
            self.unentered.fetch_sub(1, Ordering::Relaxed);
        }
        if is_closed || self.rewinds() > 0 || self.live.was_full() {
            self.live.forgive_unknown_free();
        } else {
            log::debug!("unknown free of {addr:#x}");
        }
    }

    pub(super) fn free_vmalloc(&self, addr: u64) {
        if addr == 0 {
            return;
        }
        let mut recent = self.vfreed.lock();
        inject("vfree");
        match self.live.remove(addr) {
            Removed::Unknown if recent.contains(&addr) => self.live.forgive_unknown_free(),
            Removed::Unknown => self.unknown_free(addr),
            Removed::Object | Removed::Dying => {
                if recent.len() == RECENT_VFREES {
                    recent.pop_front();
                }
                recent.push_back(addr);
            }
        }
    }

    pub(super) fn array(&self, at: u64, count: u64, mut each: impl FnMut(u64)) {
        // There may be a list in its place.
        if at == 0 {
            return;
        }
        for i in 0..count.min(MAX_BULK) {
            match self.kernel.read_u64(&self.ram, VirtAddr(at).offset(8 * i)) {
                Ok(object) => each(object),
                Err(_) => {
                    self.doubts.unreadable.fetch_add(1, Ordering::Relaxed);
                    return;
                }
            }
        }
    }
}
