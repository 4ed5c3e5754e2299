//! Allocations and frees enter the live map. A guest that goes back in time empties it.

use super::context::Who;
use super::memory_budget;
use super::pending::PendingCall;
use super::stores::{Entered, Storing};
use super::tracker::Tracker;
use super::troubles::Trouble;
use crate::history::History;
use detector::objects::{Allocation, Inserted, Kind, Object, Removed};
use detector::stacks::StackId;
use guest_symbols::memory::{PAGE_SIZE, VirtAddr};
use std::sync::atomic::Ordering;

/// ZERO_SIZE_PTR (include/linux/slab.h). Like NULL, it is returned and freed, but is not an object.
const ZERO_SIZE_PTR: u64 = 16;
/// PCPU_MIN_ALLOC_SIZE (include/linux/percpu.h).
const PERCPU_ALIGN: u64 = 4;
/// Most objects of a bulk operation; the rest are ignored.
const MAX_BULK: u64 = 1 << 16;
/// Limits are checked once in this many allocations.
const EVERY: u64 = 1 << 10;
/// The last value of `system_state` before init runs (include/linux/kernel.h).
const SYSTEM_SCHEDULING: u32 = 1;

impl Tracker {
    /// An object was allocated at virtual address `addr`, by a call that has returned.
    pub(super) fn allocated(&self, addr: u64, kind: Kind, call: PendingCall, stack: StackId) {
        let is_error = addr.wrapping_neg() < PAGE_SIZE;
        if addr <= ZERO_SIZE_PTR || is_error || (kind != Kind::Percpu && !VirtAddr(addr).is_kernel()) {
            return;
        }
        if self.objects.is_closed() {
            // An inner allocator has counted the object already.
            let is_counted = || self.hooks.get(call.hook).1.wraps.load(Ordering::Relaxed);
            return self.objects.displace(&self.guest, addr, kind, call.sequence, is_counted);
        }
        let object = self.object(kind, stack);
        let size = match kind {
            Kind::Slab => 0,
            Kind::Large | Kind::Pages => call.size,
            Kind::Vmalloc => call.size.next_multiple_of(PAGE_SIZE),
            Kind::Percpu => call.size.next_multiple_of(PERCPU_ALIGN),
        };
        if kind == Kind::Pages && self.objects.insert_pages(&self.guest, addr, object, size, call.sequence) {
            return;
        }
        match self.objects.insert(addr, object, size, call.sequence) {
            Inserted::New | Inserted::Replaced if self.history.is_some() => {
                self.begin_history(addr, kind, size, call.ret);
            }
            Inserted::New | Inserted::NoRoom => {}
            Inserted::Inside => self.hooks.get(call.hook).1.wraps.store(true, Ordering::Relaxed),
            Inserted::Replaced => log::debug!("missed free of {addr:#x}, allocated again by {:#x}", call.ret),
        }
    }

    /// The history of an object begins.
    fn begin_history(&self, addr: u64, kind: Kind, size: u64, ret: u64) {
        if let Some(history) = &self.history {
            history.allocated(&self.guest, addr, kind, size, &Storing { tracker: self, at: ret });
        }
    }

    /// A function that takes objects from a cache returned `addr`. A live object that was not
    /// allocated during the call now belongs to the caller. `stack` gives the stack of the call.
    pub(super) fn taken(&self, addr: u64, call: PendingCall, stack: impl FnOnce() -> StackId) {
        if self.objects.is_closed() {
            return;
        }
        if let Some(kind) = self.objects.kept_since(addr, call.sequence) {
            self.objects.take(addr, self.object(kind, stack()), call.sequence);
        }
    }

    /// The entry for an object that the current vCPU's task gets now.
    fn object(&self, kind: Kind, stack: StackId) -> Object {
        let jiffies = self.check_time(false);
        self.time.tick(jiffies);
        let Who { comm, pid, tgid, cpu } = self.guest.who();
        let (comm, sequence) = (self.objects.comm(comm), self.objects.next_sequence());
        if sequence.is_multiple_of(EVERY) {
            self.limit_objects();
        }
        if sequence.is_multiple_of(memory_budget::EVERY) {
            self.look_at_memory();
        }
        Allocation { kind, stack, sequence, jiffies, pid, tgid, cpu, comm }.into()
    }

    /// Returns the guest's jiffies, and checks that they did not go back. Each allocation calls
    /// this. So does a flush of QEMU's translations (`flushed`): while QEMU loads a snapshot, it
    /// flushes them after the guest's memory is loaded and before the guest runs.
    pub fn check_time(&self, flushed: bool) -> u64 {
        let (jiffies, is_back) = self.time.advance(|| self.guest.jiffies());
        if is_back {
            self.rewound(flushed);
        }
        jiffies
    }

    /// Time went back: QEMU loaded a snapshot of the guest's past, or the same kernel started again
    /// in the same place. The live map no longer holds. The next check takes live objects from the
    /// kernel's allocator metadata.
    #[cold]
    fn rewound(&self, flushed: bool) {
        let state = self.guest.kernel.variable(&self.guest.ram, "system_state").map_or(0, |state| state as u32);
        if !flushed && state > SYSTEM_SCHEDULING {
            self.troubles.warn(&Trouble::TimeWentBack);
        }
        self.forget_all();
    }

    /// QEMU is about to load a snapshot of this boot's past or future, or of another boot. All
    /// vCPUs are stopped.
    pub fn leave_this_time(&self) {
        self.time.leave();
        self.forget_all();
        self.troubles.forget_this_time();
    }

    /// The guest is in another time: live objects and pending calls are no longer valid.
    fn forget_all(&self) {
        self.objects.clear();
        self.time.forget();
        self.tests.lock().forget(self.objects.sequence());
        self.calls.clear();
        self.history.iter().for_each(History::forget);
    }

    /// The object at virtual address `addr` is freed by the function at `function`, which was just
    /// entered.
    pub(super) fn free(&self, addr: u64, function: u64) {
        self.end_history(addr, function);
        if addr > ZERO_SIZE_PTR && self.objects.remove(addr) == Removed::Unknown {
            self.unknown_free(addr);
        }
    }

    /// The object at virtual address `addr` is freed after a grace period, by the function at
    /// `function`, which was just entered.
    pub(super) fn free_rcu(&self, addr: u64, function: u64) {
        self.end_history(addr, function);
        if addr > ZERO_SIZE_PTR && self.objects.retire(addr) == Removed::Unknown {
            self.unknown_free(addr);
        }
    }

    /// The words of the object at virtual address `addr` refer to nothing any more.
    fn end_history(&self, addr: u64, function: u64) {
        if let Some(history) = &self.history {
            history.freed(addr, &Entered::new(self, function));
        }
    }

    /// An unknown object was freed. This is expected after a rewind, which forgets live objects.
    fn unknown_free(&self, addr: u64) {
        self.objects.unknown_free(addr, self.time.rewinds() > 0);
    }

    /// The vmalloc block at virtual address `addr` is freed.
    pub(super) fn free_vmalloc(&self, addr: u64) {
        if let Some(history) = &self.history {
            history.freed_area(addr);
        }
        if addr != 0 && self.objects.remove_vmalloc(addr) {
            self.unknown_free(addr);
        }
    }

    /// Calls `each` with the words of an array at virtual address `at`.
    pub(super) fn array(&self, at: u64, count: u64, mut each: impl FnMut(u64)) {
        // The caller may have passed a list instead of an array.
        if at == 0 {
            return;
        }
        for i in 0..count.min(MAX_BULK) {
            match self.guest.kernel.read_u64(&self.guest.ram, VirtAddr(at).offset(8 * i)) {
                Ok(object) => each(object),
                Err(_) => {
                    self.calls.missed.unreadable.fetch_add(1, Ordering::Relaxed);
                    return;
                }
            }
        }
    }
}
