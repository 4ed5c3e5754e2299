//! Stores and frees enter the history of references.

use super::arch;
use super::calls::TAG;
use super::current;
use super::tracker::Tracker;
use crate::ffi::inject;
use crate::ffi::regs;
use crate::ffi::stores::{OnStore, Store};
use crate::history;
use detector::history::Event;
use detector::stacks::StackId;
use guest_symbols::memory::VirtAddr;

/// An instruction that stores, or that runs next after an allocation.
pub(super) struct Storing<'a> {
    pub tracker: &'a Tracker,
    /// Its virtual address.
    pub at: u64,
}

impl Event for Storing<'_> {
    fn ip(&self) -> u32 {
        self.at as u32
    }

    fn time(&self) -> u32 {
        self.tracker.guest.jiffies() as u32
    }

    fn stack(&self) -> StackId {
        // The registers are those before the instruction, as at a fault. Unwinding takes the
        // address of the next instruction.
        let sp = regs::read(arch::STACK_POINTER);
        self.tracker.unwinder.stack(&self.tracker.guest, self.at, self.at + 1, sp)
    }
}

/// A function that was just entered.
pub(super) struct Entered<'a> {
    tracker: &'a Tracker,
    /// Its virtual address.
    at: u64,
    /// The address that it returns to. 0 if it cannot be read.
    ret: u64,
    sp: u64,
}

impl<'a> Entered<'a> {
    /// The function at virtual address `at`. Call it in the callback of its entry.
    pub fn new(tracker: &'a Tracker, at: u64) -> Entered<'a> {
        let sp = regs::read(arch::STACK_POINTER);
        let ret = tracker.guest.kernel.read_u64(&tracker.guest.ram, VirtAddr(sp)).unwrap_or(0);
        Entered { tracker, at, ret, sp }
    }
}

impl Event for Entered<'_> {
    fn ip(&self) -> u32 {
        self.ret as u32
    }

    fn time(&self) -> u32 {
        self.tracker.guest.jiffies() as u32
    }

    fn stack(&self) -> StackId {
        self.tracker.unwinder.stack(&self.tracker.guest, self.at, self.ret, arch::sp_after_return(self.sp))
    }
}

/// The handler of stores.
pub(super) struct Stores;

impl OnStore for Stores {
    fn stored(store: Store, data: u64) {
        if !history::concerns(&store) {
            return;
        }
        current::with(|tracker| {
            if let Some(history) = &tracker.history
                && tracker.is_ours(data)
            {
                inject("store");
                let event = Storing { tracker, at: data | !0 << TAG };
                history.stored(&store, || regs::read(arch::STACK_POINTER), &event);
            }
        });
    }
}
