//! The hot path: what happens when a hooked function is entered, and when it returns.
//!
//! The stack slot of the return address identifies a call in progress. No other call can use that
//! slot until the call has returned, on whatever CPU. A call returns when the instruction at the
//! return address is about to execute and the stack pointer is just above the slot. This holds
//! across tail calls, return thunks, interrupts that allocate, sleeping and migration.
//!
//! Most return addresses are known when they are translated ([`super::callsite`]). The others are
//! learnt: on entry the return address is looked up. If it is neither watched nor translated yet,
//! it will be watched once it is translated.

use super::arch;
use super::current;
use super::guest_events::GuestEvents;
use super::pending::PendingCall;
use super::resolved::Action;
use super::return_watches::Watch;
use super::tracer_returns;
use super::tracker::Tracker;
use crate::ffi::regs;
use crate::ffi::{guard, inject};
use detector::objects::Kind;
use detector::stacks::StackId;
use guest_symbols::memory::{PAGE_SIZE, VirtAddr};
use guest_symbols::modules::Module;
use libc::{c_uint, c_void};
use std::sync::atomic::Ordering;

/// The largest block of pages: MAX_PAGE_ORDER (include/linux/mmzone.h).
const MAX_ORDER: u64 = 10;

impl Tracker {
    /// The function of a hook was entered.
    fn enter(&self, events: &dyn GuestEvents, vcpu: c_uint, number: u32) {
        inject("entry");
        let (hook, seen) = self.hooks.get(number);
        // Written only once: all CPUs read it all the time.
        if !seen.hit.load(Ordering::Relaxed) {
            seen.hit.store(true, Ordering::Relaxed);
        }
        match hook.action {
            Action::Alloc(_, size) => self.begin(number, size.map_or(0, regs::read), 0),
            Action::AllocPages(order) => self.begin(number, PAGE_SIZE << order.map_or(0, regs::read).min(MAX_ORDER), 0),
            Action::AllocPagesBulk(array) => self.begin(number, PAGE_SIZE, regs::read(array)),
            Action::Take => self.begin(number, 0, 0),
            Action::TakeBulk(count, array) => self.begin(number, regs::read(count) & 0xffff_ffff, regs::read(array)),
            Action::AllocBulk(count, array, _) => self.begin(number, regs::read(count), regs::read(array)),
            Action::Free(object) => self.free(regs::read(object), hook.addr),
            Action::FreeVmalloc(addr) => self.free_vmalloc(regs::read(addr)),
            Action::FreeBulk(count, array) => {
                let (count, array) = (regs::read(count), regs::read(array));
                self.array(array, count, |object| self.free(object, hook.addr));
            }
            Action::FreeRcu(head, object) => {
                let (head, object) = (regs::read(head), regs::read(object));
                // Up to 6.11 the second argument is the offset of the rcu_head; with a NULL head it
                // is the object.
                let object = if object < PAGE_SIZE { head.wrapping_sub(object) } else { object };
                self.free_rcu(object, hook.addr);
            }
            Action::ModuleLoad(module) => {
                self.loaded(Module::read(&self.guest.kernel, &self.guest.ram, VirtAddr(regs::read(module))));
            }
            Action::BpfSymbol(symbol) => {
                self.loaded(Module::read_bpf(&self.guest.kernel, &self.guest.ram, VirtAddr(regs::read(symbol))));
            }
            Action::SaveImage => self.keep_image(),
            Action::Event(event) => {
                if let Some(event) = event.map(|reg| Some(regs::read(reg))) {
                    events.event(self, vcpu, event);
                }
            }
        }
    }

    /// An allocator was entered.
    fn begin(&self, hook: u32, size: u64, array: u64) {
        let rsp = regs::read(arch::STACK_POINTER);
        let Ok(ret) = self.guest.kernel.view(&self.guest.ram).read_u64(VirtAddr(rsp)) else {
            self.calls.missed.unreadable.fetch_add(1, Ordering::Relaxed);
            return;
        };
        // A traced function jumped to the allocator. The tracer's handler continues at the original
        // address.
        let ret =
            if self.unwinder.code().is_tracer(ret) { tracer_returns::original(&self.guest, ret, rsp) } else { ret };
        let (watch, look) = self.watches.called(ret);
        let (armed, doubtful) = (watch == Watch::WhileArmed, watch == Watch::Never);
        if doubtful {
            log::debug!("unwatched return to {ret:#x} from {}", self.hooks.get(hook).0.name);
            self.calls.missed.unwatched_returns.fetch_add(1, Ordering::Relaxed);
        }
        if look {
            self.limit_calls();
        }
        let sequence = self.objects.sequence();
        let call = PendingCall { hook, armed, doubtful, ret, sequence, size, array };
        if let Some(old) = self.calls.insert(rsp, call) {
            // With the same slot and return address, either the instruction was restarted, or the
            // allocator made a tail call to another allocator, which returns in its place.
            if old.ret != ret {
                log::debug!("unmatched return of {} to {:#x}", self.hooks.get(old.hook).0.name, old.ret);
                self.calls.missed.unmatched_returns.fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    /// The instruction at `ret` is about to execute.
    fn finish(&self, ret: u64) {
        let slot = arch::return_slot(regs::read(arch::STACK_POINTER));
        let Some(call) = self.calls.take(slot, ret) else { return };
        inject(if call.armed { "return-conditional" } else { "return" });
        if call.doubtful {
            self.calls.missed.unwatched_returns.fetch_sub(1, Ordering::Relaxed);
        }
        let (hook, seen) = self.hooks.get(call.hook);
        let rax = regs::read(arch::RETURN_VALUE);
        let find_stack = || self.unwinder.stack(&self.guest, hook.addr, ret, arch::sp_after_return(slot));
        match hook.action {
            Action::Take => return self.taken(rax, call, find_stack),
            Action::TakeBulk(..) => {
                let mut stack = None;
                return self.array(call.array, call.size, |object| {
                    self.taken(object, call, || *stack.get_or_insert_with(find_stack));
                });
            }
            _ => {}
        }
        // The allocation failed, or an inner allocator has been seen to return the same object.
        if rax == 0 || seen.wraps.load(Ordering::Relaxed) && self.objects.is_inside(rax, call.sequence) {
            return;
        }
        // A new stack would need memory.
        let stack = match self.objects.is_closed() {
            true => StackId::NONE,
            false => find_stack(),
        };
        match hook.action {
            Action::Alloc(kind, _) => self.allocated(rax, kind, call, stack),
            Action::AllocPages(_) => self.allocated(rax, Kind::Pages, call, stack),
            Action::AllocPagesBulk(_) => {
                self.array(call.array, rax, |page| self.allocated(page, Kind::Pages, call, stack))
            }
            Action::AllocBulk(_, _, boolean) => {
                let result = if boolean { rax & 0xff } else { rax & 0xffff_ffff };
                if result != 0 {
                    self.array(call.array, call.size, |object| self.allocated(object, Kind::Slab, call, stack));
                }
            }
            _ => {}
        }
    }
}

/// The bit position of a tracker's tag in the data of a callback. Kernel addresses have 48 bits.
pub(super) const TAG: u32 = 48;

impl Tracker {
    /// The data for [`on_entry`].
    pub(super) fn for_entry(&self, hook: u32) -> usize {
        usize::from(self.guest.tag()) << TAG | hook as usize
    }

    /// The data for [`on_return`].
    pub(super) fn for_return(&self, ret: u64) -> usize {
        usize::from(self.guest.tag()) << TAG | (ret as usize & ((1 << TAG) - 1))
    }

    /// Whether this tracker made the data of a callback.
    #[inline]
    pub(super) fn is_ours(&self, userdata: u64) -> bool {
        userdata >> TAG == u64::from(self.guest.tag())
    }
}

/// A hooked function is about to run.
pub(super) extern "C" fn on_entry(vcpu: c_uint, hook: *mut c_void) {
    guard(|| {
        current::with_events(|tracker, events| {
            if tracker.is_ours(hook as u64) {
                tracker.enter(events, vcpu, hook as usize as u32);
            }
        });
    });
}

/// An instruction that a call returns to is about to run.
pub(super) extern "C" fn on_return(_vcpu: c_uint, ret: *mut c_void) {
    guard(|| {
        current::with(|tracker| {
            if tracker.is_ours(ret as u64) {
                // The upper bits of kernel addresses are ones.
                tracker.finish(ret as u64 | !0 << TAG);
            }
        });
    });
}
