//! Words that look like references and are not, by the words around them.

use crate::blocks::Blocks;
use crate::mempools::Mempools;
use crate::semaphores::Semaphores;
use detector::scan::Surroundings;
use guest_symbols::Kernel;
use guest_symbols::memory::StoppedMemory;

/// All rules about surroundings.
pub(crate) struct StaleWords<'a, M> {
    semaphores: Semaphores<'a, M>,
    pub(crate) mempools: Mempools<'a, M>,
}

impl<'a, M: StoppedMemory> StaleWords<'a, M> {
    pub(crate) fn of(kernel: &'a Kernel, blocks: &Blocks<'a, M>) -> Self {
        StaleWords { semaphores: Semaphores::of(kernel, blocks.memory), mempools: Mempools::of(kernel, blocks) }
    }
}

impl<M: StoppedMemory> Surroundings for StaleWords<'_, M> {
    fn is_stale(&self, word: u64, at: u64) -> bool {
        self.semaphores.is_stale(word, at) || self.mempools.is_stale(word, at)
    }
}
