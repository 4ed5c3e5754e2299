//! Parts of blocks that hold no references.

use detector::bits::Bits;
use std::collections::HashMap;
use std::ops::Range;

/// Byte ranges within blocks that are not references. Few blocks have any.
#[derive(Default)]
pub(crate) struct Skips {
    has: Bits,
    of: HashMap<u32, Vec<Range<u64>>>,
}

impl Skips {
    /// Makes an empty set of ranges for `blocks` blocks.
    pub(crate) fn new(blocks: usize) -> Skips {
        Skips { has: Bits::new(blocks), of: HashMap::new() }
    }

    /// Adds a range of a block, in bytes from its start.
    pub(crate) fn push(&mut self, block: u32, range: Range<u64>) {
        self.has.set(block);
        self.of.entry(block).or_default().push(range);
    }

    /// Adds ranges of a block, in bytes from its start.
    pub(crate) fn extend(&mut self, block: u32, ranges: impl IntoIterator<Item = Range<u64>>) {
        self.has.set(block);
        self.of.entry(block).or_default().extend(ranges);
    }

    /// The ranges of a block, unsorted.
    pub(crate) fn get(&self, block: u32) -> Option<&[Range<u64>]> {
        self.has.get(block).then(|| self.of.get(&block).map(Vec::as_slice)).flatten()
    }
}
