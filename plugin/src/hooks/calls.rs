//! The hot path: what happens when a hooked function is entered, and when it returns.
//!
//! A call in progress is known by the stack slot of its return address, which no other call can use until
//! it has returned, on whatever CPU that happens. A return is recognised when the instruction at the return
//! address is about to execute with the stack pointer just above that slot: this holds across tail calls,
//! return thunks, interrupts that allocate, sleeping and migration.
//!
//! Which return addresses need watching is mostly known when they are translated ([`super::callsite`]). The
//! rest is learnt: on entry the return address is looked up, and where it is not watched yet but also not
//! translated yet, it will be watched when it is.

use super::allocations::ZERO_SIZE_PTR;
use super::arch;
use super::current;
use super::resolved::Action;
use super::return_watches::Watch;
use super::tracker::{Pending, Tracker};
use crate::ffi::regs;
use crate::ffi::{guard, inject};
use crate::session::session;
use crate::triggers::{console, marker};
use detector::objects::{Kind, Removed};
use detector::stacks::StackId;
use guest_symbols::memory::{PAGE_SIZE, VirtAddr};
use guest_symbols::modules::Module;
use libc::{c_uint, c_void};
use std::sync::atomic::Ordering;

/// The largest block of pages: MAX_PAGE_ORDER (include/linux/mmzone.h).
const MAX_ORDER: u64 = 10;

impl Tracker {
    fn enter(&self, vcpu: c_uint, number: u32) {
        inject("entry");
        let (hook, seen) = &self.hooks[number as usize];
        // Written once, since all CPUs read it all the time.
        if !seen.hit.load(Ordering::Relaxed) {
            seen.hit.store(true, Ordering::Relaxed);
        }
        match hook.action {
            Action::Alloc(_, size) => self.begin(number, size.map_or(0, regs::read), 0),
            Action::AllocPages(order) => self.begin(number, PAGE_SIZE << order.map_or(0, regs::read).min(MAX_ORDER), 0),
            Action::AllocPagesBulk(array) => self.begin(number, PAGE_SIZE, regs::read(array)),
            Action::AllocBulk(count, array, _) => self.begin(number, regs::read(count), regs::read(array)),
            Action::Free(object) => self.free(regs::read(object)),
            Action::FreeVmalloc(addr) => self.free_vmalloc(regs::read(addr)),
            Action::FreeBulk(count, array) => {
                let (count, array) = (regs::read(count), regs::read(array));
                self.array(array, count, |object| self.free(object));
            }
            Action::FreeRcu(head, object) => {
                let (head, object) = (regs::read(head), regs::read(object));
                // To 6.11 the second argument is the rcu_head's offset, but for a NULL head the object.
                let object = if object < PAGE_SIZE { head.wrapping_sub(object) } else { object };
                if object > ZERO_SIZE_PTR && self.live.retire(object) == Removed::Unknown {
                    self.unknown_free(object);
                }
            }
            Action::ModuleLoad(module) => {
                self.loaded(Module::read(&self.kernel, &self.ram, VirtAddr(regs::read(module))));
            }
            Action::BpfSymbol(symbol) => {
                self.loaded(Module::read_bpf(&self.kernel, &self.ram, VirtAddr(regs::read(symbol))));
            }
            Action::Kexec => session().into_iter().for_each(|session| session.kexec(vcpu)),
            Action::WriteComm(buf, count) => marker::comm(self, vcpu, regs::read(buf), regs::read(count)),
            Action::SetComm => marker::comm_copied(self, vcpu),
            Action::WriteKmsg(from) => marker::kmsg(self, vcpu, regs::read(from)),
            Action::Printk(entry) => {
                let entry = regs::read(entry);
                marker::kmsg_copied(self, vcpu, entry);
                console::printk(self, vcpu, entry);
            }
            Action::PrintkPart(entry) => marker::kmsg_copied(self, vcpu, regs::read(entry)),
            Action::WriteTty(tty, buf, count) => {
                console::tty(self, vcpu, regs::read(tty), regs::read(buf), regs::read(count));
            }
            Action::WritePort(buf, count) => console::port(self, vcpu, regs::read(buf), regs::read(count)),
        }
    }

    /// An allocator was entered.
    fn begin(&self, hook: u32, size: u64, array: u64) {
        let rsp = regs::read(arch::STACK_POINTER);
        let Ok(ret) = self.kernel.view(&self.ram).read_u64(VirtAddr(rsp)) else {
            self.doubts.unreadable.fetch_add(1, Ordering::Relaxed);
            return;
        };
        // Jumped to by a function that a tracer watches: its handler jumps on to the original address.
        let ret = if self.code.is_tracer(ret) { self.untraced(ret, rsp) } else { ret };
        let (watch, look) = self.watches.called(ret);
        let (armed, doubtful) = (watch == Watch::WhileArmed, watch == Watch::Never);
        if doubtful {
            log::debug!("unwatched return to {ret:#x} from {}", self.hooks[hook as usize].0.name);
            self.doubts.unwatched_returns.fetch_add(1, Ordering::Relaxed);
        }
        if look {
            self.bound_calls();
        }
        let sequence = self.sequence.load(Ordering::Relaxed);
        let old = self.pending.insert(rsp, Pending { hook, armed, doubtful, ret, sequence, size, array });
        if armed {
            self.arm(1);
        }
        if let Some(old) = old {
            if old.armed {
                self.arm(-1);
            }
            // The same slot and return address: the instruction was restarted, or the allocator
            // tail-called another, which returns in its place.
            if old.ret != ret {
                log::debug!("unmatched return of {} to {:#x}", self.hooks[old.hook as usize].0.name, old.ret);
                self.doubts.unmatched_returns.fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    /// Raises or lowers the flag that conditional watches look at.
    pub(super) fn arm(&self, by: i64) {
        let mut armed = self.armed.lock();
        let before = *armed;
        *armed = before.saturating_add_signed(by);
        if (before == 0) != (*armed == 0) {
            self.flag.set((*armed != 0).into());
        }
    }

    /// A vCPU has come, whose flag is down.
    pub fn show_armed(&self) {
        let armed = self.armed.lock();
        self.flag.set((*armed != 0).into());
    }

    /// The instruction at `ret` is about to execute.
    fn finish(&self, ret: u64) {
        let slot = arch::return_slot(regs::read(arch::STACK_POINTER));
        let Some((_, pending)) = self.pending.remove_if(&slot, |_, p| p.ret == ret) else { return };
        inject(if pending.armed { "return-conditional" } else { "return" });
        if pending.armed {
            self.arm(-1);
        }
        if pending.doubtful {
            self.doubts.unwatched_returns.fetch_sub(1, Ordering::Relaxed);
        }
        let (hook, seen) = &self.hooks[pending.hook as usize];
        let rax = regs::read(arch::RETURN_VALUE);
        // Nothing came of it, or nothing new.
        if rax == 0 || seen.wraps.load(Ordering::Relaxed) && self.live.is_inside(rax, pending.sequence) {
            return;
        }
        // New stacks need memory too.
        let is_closed = self.closed.load(Ordering::Relaxed);
        let stack = if is_closed { StackId::NONE } else { self.stack(hook.addr, ret, arch::sp_after_return(slot)) };
        match hook.action {
            Action::Alloc(kind, _) => self.allocated(rax, kind, pending, stack),
            Action::AllocPages(_) => self.allocated(rax, Kind::Pages, pending, stack),
            Action::AllocPagesBulk(_) => {
                self.array(pending.array, rax, |page| self.allocated(page, Kind::Pages, pending, stack))
            }
            Action::AllocBulk(_, _, boolean) => {
                let result = if boolean { rax & 0xff } else { rax & 0xffff_ffff };
                if result != 0 {
                    self.array(pending.array, pending.size, |object| {
                        self.allocated(object, Kind::Slab, pending, stack)
                    });
                }
            }
            _ => {}
        }
    }
}

/// Where the tag of a tracker stands in what a callback is given: an address of the kernel has 48 bits.
const TAG: u32 = 48;

impl Tracker {
    /// What [`on_entry`] is given.
    pub(super) fn for_entry(&self, hook: u32) -> usize {
        usize::from(self.tag()) << TAG | hook as usize
    }

    /// What [`on_return`] is given.
    pub(super) fn for_return(&self, ret: u64) -> usize {
        usize::from(self.tag()) << TAG | (ret as usize & ((1 << TAG) - 1))
    }

    /// Whether a callback is given what this tracker made.
    #[inline]
    fn is_ours(&self, userdata: u64) -> bool {
        userdata >> TAG == u64::from(self.tag())
    }
}

pub(super) extern "C" fn on_entry(vcpu: c_uint, hook: *mut c_void) {
    guard(|| {
        current::with(|tracker| {
            if tracker.is_ours(hook as u64) {
                tracker.enter(vcpu, hook as usize as u32);
            }
        });
    });
}

pub(super) extern "C" fn on_return(_vcpu: c_uint, ret: *mut c_void) {
    guard(|| {
        current::with(|tracker| {
            if tracker.is_ours(ret as u64) {
                // Addresses of the kernel have ones in front.
                tracker.finish(ret as u64 | !0 << TAG);
            }
        });
    });
}
