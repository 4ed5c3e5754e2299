//! What a check of a guest adds whose allocations were not tracked up to this moment.

use crate::block::Block;
use crate::blocks::{Blocks, REGISTERS, RSP};
use detector::frozen::Objects;
use detector::objects::Kind;
use guest_symbols::Kernel;
use guest_symbols::memory::{StoppedMemory, VirtAddr};
use std::collections::HashSet;

/// Words of a stack that are searched for what a CPU holds. The allocator's frames are the last.
const STACK_WORDS: u64 = 256;

impl<M: StoppedMemory> Blocks<'_, M> {
    /// Adds large kmallocs whose allocation was not seen.
    pub(super) fn take_large(&mut self, objects: &Objects) {
        let seen = objects.sizes().into_iter().filter(|size| size.kind == Kind::Large).map(|size| size.addr);
        let seen: HashSet<u64> = seen.collect();
        let unseen = self.pages.large().filter(|(at, _)| !seen.contains(at));
        let blocks: Vec<Block> = unseen.map(|(at, size)| Block::unseen(at, size, Kind::Large)).collect();
        blocks.iter().for_each(|_| self.audit.iter_mut().for_each(|audit| audit.unknown("kmalloc-large")));
        self.blocks.extend(blocks);
    }

    /// Whether a block may be free in spite of its slab's freelist.
    pub(crate) fn may_be_free(&self, block: &Block) -> bool {
        block.kind == Kind::Slab && (!block.seen() || self.allocations.halted) && self.unsure.contains(&block.addr)
    }
}

/// The words that a CPU works with: its registers, and its stack from the stack pointer on.
pub(super) fn words_in_hand(kernel: &Kernel, memory: &impl StoppedMemory, cpu: &[u64; REGISTERS]) -> Vec<u64> {
    let stack = (0..STACK_WORDS).map(|i| VirtAddr(cpu[RSP] & !7).offset(8 * i)).filter(|at| at.is_kernel());
    let stack = stack.map_while(|at| kernel.read_u64(memory, at).ok());
    cpu.iter().copied().chain(stack).collect()
}
