//! Lays out a stopped guest. It makes all blocks first and then applies the rules to them. No rule
//! ever sees an incomplete list of blocks.

use super::{Blocks, Special, allocation_sites, rules, stacks, stale_words};
use crate::allocations::Allocations;
use guest_symbols::Kernel;
use guest_symbols::memory::StoppedMemory;
use guest_symbols::pages::Pages;
use guest_symbols::percpu::PerCpu;

/// Lays out the objects of the live map. `registers` are as in [`Request`](crate::Request).
pub fn lay_out<'a, M: StoppedMemory>(
    kernel: &Kernel,
    memory: &'a M,
    pages: &'a Pages,
    allocations: Allocations<'a>,
    registers: &[u64],
) -> Blocks<'a, M> {
    let mut sheaves = rules::sheaves(kernel, memory, allocations);
    if allocations.halted {
        // The allocations of newer sheaves were not seen.
        sheaves.extend(guest_symbols::sheaves::all(kernel, memory, &PerCpu::read(kernel, memory)));
        sheaves.sort_unstable();
        sheaves.dedup();
    }
    let mut special = Special { sheaves, untraced: allocation_sites::untraced_caches(kernel, memory), areas: None };
    let mut blocks = Blocks::new(kernel, memory, pages, allocations, registers, &mut special);
    blocks.apply_sheaf_rules(kernel, &special.sheaves);
    blocks.apply_vmap_rules(kernel, special.areas.as_deref());
    blocks.apply_leak_tracer_rules(kernel, &special.untraced);
    blocks.stale_ranges = stale_words::skip(kernel, &mut blocks);
    stacks::apply_rules(&mut blocks, kernel, special.areas.as_deref());
    blocks
}
