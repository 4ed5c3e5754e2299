//! What of translated code is watched: entries of hooks, and places where calls of them return to.

use super::calls::{on_entry, on_return};
use super::callsite::{LONGEST_CALL, Returns};
use super::table::{LATER, PORT};
use super::tracker::Tracker;
use super::watches::Watch;
use crate::ffi::api::{Block, Insn};
use guest_symbols::kernel::START_KERNEL_MAP;
use guest_symbols::memory::{GuestMemory, PAGE_SIZE, VirtAddr};
use std::sync::atomic::Ordering;

/// Kernel images lie below the modules: MODULES_VADDR with KASLR (arch/x86/include/asm/pgtable_64_types.h).
const MODULES: u64 = 0xffff_ffff_c000_0000;

impl Tracker {
    /// Watches what is to be watched in a block of the kernel that is being translated.
    pub fn translate(&self, block: Block) {
        let (count, start) = (block.len(), block.vaddr());
        let (Some(first), Some(last)) = (block.insn(0), block.insn(count.wrapping_sub(1))) else { return };
        let last = last.vaddr();
        if (START_KERNEL_MAP..MODULES).contains(&start) && !self.image.contains(&start) {
            self.replaced.store(true, Ordering::Relaxed);
        }
        if start <= *self.entry_range.end() && last >= *self.entry_range.start() {
            for insn in (0..count).filter_map(|i| block.insn(i)) {
                if let Some(&hook) = self.entries.get(&insn.vaddr()) {
                    insn.on_exec(on_entry, hook as usize);
                }
            }
        }
        let port = self.port.load(Ordering::Relaxed);
        if (start..=last).contains(&port)
            && let Some(insn) = (0..count).filter_map(|i| block.insn(i)).find(|insn| insn.vaddr() == port)
            && let Some(hook) = self.hooks.iter().position(|(h, _)| h.name == PORT && h.addr == LATER)
        {
            insn.on_exec(on_entry, hook);
        }
        let returns = self.before(first, start).map_or(Returns::Anything, |b| self.sites.classify(start, &b));
        let mut watch = match returns {
            Returns::Allocator => Watch::Always,
            Returns::Anything => Watch::WhileArmed,
            Returns::Other => Watch::Never,
            Returns::NoCall => return,
        };
        // Translated again, it may have been learnt meanwhile.
        if self.watched.get(&start).is_some_and(|w| matches!(*w, Watch::Wanted | Watch::Always)) {
            watch = Watch::Always;
        }
        if self.watched.insert(start, watch) != Some(watch) {
            self.watches.change();
        }
        match watch {
            Watch::Always => first.on_exec(on_return, start as usize),
            Watch::WhileArmed => first.on_exec_if(self.flag, on_return, start as usize),
            Watch::Never | Watch::Wanted => {}
        }
    }

    /// The bytes before the block.
    fn before(&self, first: Insn, start: u64) -> Option<[u8; LONGEST_CALL]> {
        let mut bytes = [0; LONGEST_CALL];
        let phys = self.ram.phys_of(first.host_address())?;
        if start % PAGE_SIZE >= LONGEST_CALL as u64 {
            let at = guest_symbols::PhysAddr(phys.0 - LONGEST_CALL as u64);
            self.ram.read(at, &mut bytes).ok()?;
        } else {
            let at = VirtAddr(start - LONGEST_CALL as u64);
            self.kernel.read(&self.ram, at, &mut bytes).ok()?;
        }
        Some(bytes)
    }
}
