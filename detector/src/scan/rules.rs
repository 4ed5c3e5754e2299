//! Blocks that are read or marked otherwise than all others.

use crate::bits::Bits;
use std::collections::HashMap;

/// What is known of blocks besides their contents.
#[derive(Debug, Default)]
pub struct Rules {
    pub(super) weak: Bits,
    has_next: Bits,
    next: HashMap<u32, u32>,
    pub(super) len: usize,
}

impl Rules {
    /// No rules, for `len` blocks.
    pub fn new(len: usize) -> Rules {
        Rules { weak: Bits::new(len), has_next: Bits::new(len), next: HashMap::new(), len }
    }

    /// Makes a block weak: scanned from the start, though that does not mark it, and never a leak.
    pub fn set_weak(&mut self, block: u32) {
        self.weak.set(block);
    }

    /// Says which block is marked as soon as `block` is: a vm_struct's own area.
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

    /// The block that is marked with this one.
    #[inline]
    pub fn next(&self, block: u32) -> Option<u32> {
        self.has_next.get(block).then(|| self.next.get(&block).copied()).flatten()
    }
}
