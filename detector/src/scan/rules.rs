//! Blocks with special rules for reading or marking.

use crate::scan::bits::Bits;
use std::collections::HashMap;

/// Rules by block number.
#[derive(Debug, Default)]
pub struct Rules {
    pub(super) weak: Bits,
    has_next: Bits,
    next: HashMap<u32, u32>,
    pub(super) len: usize,
}

impl Rules {
    /// An empty set of rules for `len` blocks.
    pub fn new(len: usize) -> Rules {
        Rules { weak: Bits::new(len), has_next: Bits::new(len), next: HashMap::new(), len }
    }

    /// Makes a block weak. It is read from the start of the scan, even if nothing refers to it. It
    /// is never a leak.
    pub fn set_weak(&mut self, block: u32) {
        self.weak.set(block);
    }

    /// Sets the block that is marked together with `block`. A `vm_struct` marks its own area this
    /// way.
    pub fn set_next(&mut self, block: u32, next: Option<u32>) {
        self.has_next.set(block);
        match next {
            Some(next) => self.next.insert(block, next),
            None => self.next.remove(&block),
        };
    }

    /// Whether a block is weak.
    #[inline]
    pub fn is_weak(&self, block: u32) -> bool {
        self.weak.get(block)
    }

    /// The block that is marked together with this one.
    #[inline]
    pub fn next(&self, block: u32) -> Option<u32> {
        self.has_next.get(block).then(|| self.next.get(&block).copied()).flatten()
    }
}
