//! Watches translated code: the entries of hooked functions, and the addresses that their calls
//! return to.

use super::arch::{self, LONGEST_CALL};
use super::calls::{on_entry, on_return};
use super::callsite::Returns;
use super::return_watches::Watch;
use super::stores::Stores;
use super::tracker::Tracker;
use crate::ffi::api::{Block, Insn};
use crate::ffi::lifecycle;
use crate::ffi::stores;
use guest_symbols::kernel::START_KERNEL_MAP;
use guest_symbols::memory::{GuestMemory, PAGE_SIZE, VirtAddr};

/// Kernel images lie below the modules: MODULES_VADDR with KASLR
/// (arch/x86/include/asm/pgtable_64_types.h).
const MODULES: u64 = 0xffff_ffff_c000_0000;

/// Whether a kernel's image may lie at a virtual address.
pub fn is_of_image(at: u64) -> bool {
    (START_KERNEL_MAP..MODULES).contains(&at)
}

impl Tracker {
    /// Adds callbacks to a block in the kernel's half of the address space that is being
    /// translated. Returns whether the block belongs to this kernel; otherwise nothing is added.
    pub fn translate(&self, block: Block) -> bool {
        let (count, start) = (block.len(), block.vaddr());
        let (Some(first), Some(last)) = (block.insn(0), block.insn(count.wrapping_sub(1))) else { return false };
        let last = last.vaddr();
        if !self.is_own(start, first) {
            // If QEMU does not report resets, this is the first sign of another kernel.
            if is_of_image(start) && !lifecycle::tells_ends() {
                self.guest.set_replaced();
            }
            return false;
        }
        if self.history.is_some() {
            self.watch_stores(block);
        }
        if self.hooks.may_be_in(start, last) {
            for insn in (0..count).filter_map(|i| block.insn(i)) {
                if let Some(hook) = self.hooks.at(insn.vaddr()) {
                    insn.on_exec(on_entry, self.for_entry(hook));
                }
            }
        }
        let port = self.modules.port();
        if (start..=last).contains(&port)
            && let Some(insn) = (0..count).filter_map(|i| block.insn(i)).find(|insn| insn.vaddr() == port)
            && let Some(hook) = self.hooks.port()
        {
            insn.on_exec(on_entry, self.for_entry(hook));
        }
        let returns = self.before(first, start).map_or(Returns::Anything, |b| self.sites.classify(start, &b));
        let by_code = match returns {
            Returns::Allocator => Watch::Always,
            Returns::Anything => Watch::WhileArmed,
            Returns::Other => Watch::Never,
            // An allocator may return there although no call instruction precedes it.
            Returns::NoCall if self.watches.is_wanted(start) => Watch::Always,
            Returns::NoCall => return true,
        };
        let watch = self.watches.translated(start, by_code);
        match watch {
            Watch::Always => first.on_exec(on_return, self.for_return(start)),
            Watch::WhileArmed => first.on_exec_if(self.calls.flag(), on_return, self.for_return(start)),
            Watch::Never | Watch::Wanted => {}
        }
        true
    }

    /// Adds callbacks to instructions that store.
    fn watch_stores(&self, block: Block) {
        for insn in (0..block.len()).filter_map(|i| block.insn(i)) {
            if !arch::is_call(&insn.bytes()) {
                stores::on_store::<Stores>(insn, self.for_return(insn.vaddr()));
            }
        }
    }

    /// Whether a block belongs to this kernel. A nested guest's kernel and firmware services may
    /// use the same virtual addresses.
    fn is_own(&self, start: u64, first: Insn) -> bool {
        let at = VirtAddr(start);
        let own = || match self.guest.is_in_image(start) {
            true => Some(self.guest.kernel.image_phys(at)),
            false => self.guest.kernel.translate(&self.guest.ram, at).ok().map(|found| found.phys),
        };
        let phys = self.guest.ram.phys_of(first.host_address());
        // Between the image and the modules there is only unmapped space, or, without KASLR,
        // modules. A kernel of another boot at the same physical address has its page tables in the
        // same place, so the translation alone proves nothing.
        let proven = || self.guest.is_in_image(start) || !is_of_image(start) || self.guest.is_there();
        phys.is_some() && phys == own() && proven()
    }

    /// Reads the bytes before the block.
    fn before(&self, first: Insn, start: u64) -> Option<[u8; LONGEST_CALL]> {
        let mut bytes = [0; LONGEST_CALL];
        let phys = self.guest.ram.phys_of(first.host_address())?;
        if start % PAGE_SIZE >= LONGEST_CALL as u64 {
            let at = guest_symbols::PhysAddr(phys.0 - LONGEST_CALL as u64);
            self.guest.ram.read(at, &mut bytes).ok()?;
        } else {
            let at = VirtAddr(start - LONGEST_CALL as u64);
            self.guest.kernel.read(&self.guest.ram, at, &mut bytes).ok()?;
        }
        Some(bytes)
    }
}
