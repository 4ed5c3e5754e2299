//! Reachability: from roots through live blocks, every aligned word read as a pointer.
//!
//! As in kmemleak (mm/kmemleak.c), words are 8-byte aligned, a pointer anywhere into a block counts, one
//! past its end does not, and each word is also tried as a per-CPU pointer. References from a block that
//! is itself unreachable do not count, so neither do a block's own.
//!
//! What is reachable does not depend on the order in which words are read, so that several threads may read: those of the rayon
//! pool in which the scan is made ([`rayon::ThreadPool::install`]), and one where there is none. Which
//! reference to a block was the first one does depend on it: where that is asked for, one thread reads, in one order.

#[expect(unsafe_code, reason = "vector instructions, and a hint to the CPU")]
mod kernels;
mod rules;
#[cfg(test)]
mod tests;

use crate::bits::Bits;
use crate::index::{Index, Place};
use kernels::{WORDS, Windows};
use rayon::prelude::*;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};

pub use kernels::{Variant, prefetch};
pub use rules::Rules;

/// Blocks that are read next are so many, so that their memory can be fetched meanwhile.
const BATCH: usize = 16;
/// Words that a thread remembers: few enough for the fastest cache.
const SETTLED: usize = 1024;
/// A thread that has more blocks than this to read gives half of them to others.
const SHARE: usize = 256;

/// Gives the bytes of a block that may hold references.
pub trait Contents: Sync {
    /// Calls `each` with every run of bytes of block `block` that is to be read, 8-byte aligned in the
    /// guest, and its physical address there. Bytes left out hold no references.
    fn read(&self, block: u32, each: &mut dyn FnMut(u64, &[u8]));

    /// Addresses that are found to be of this block, or some of them.
    fn place(&self, _block: u32) -> Range<u64> {
        0..0
    }

    /// The block is read soon.
    fn prefetch(&self, _block: u32) {}
}

/// Reads a part of root memory, by its number.
pub type ReadPart<'a> = dyn Fn(usize, &mut dyn FnMut(u64, &[u8])) + Sync + 'a;

/// Tells words that would be references, were it not for what stands around them.
pub trait Surroundings: Sync {
    /// Whether the word at guest physical address `at`, which is one in a block, is no reference. Asked only of
    /// words that would mark a block; the answer depends on memory alone.
    fn is_dead(&self, word: u64, at: u64) -> bool;
}

/// Where the reference was found that marked a block first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// In root memory: guest physical address of the word.
    Root(u64),
    /// In a register.
    Register,
    /// Nowhere: the block was given as reachable.
    Given,
    /// In another block, by number.
    Block(u32),
    /// By the rule of another block.
    Rule(u32),
}

/// How a scan is to be made. The result is the same, but for what it is asked for.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// How words are looked at.
    pub variant: Variant,
    /// Whether to keep where the first reference to each block was found. One thread reads then.
    pub origins: bool,
}

impl Default for Options {
    fn default() -> Self {
        Options { variant: Variant::best(), origins: false }
    }
}

/// A scan in progress.
pub struct Marker<'a> {
    scan: Scan<'a>,
    /// Whether there are threads to share the work with.
    shared: bool,
    found: Found,
    /// Bytes read from roots, and from blocks.
    bytes: (u64, u64),
}

/// What a scan found.
pub struct Marks {
    /// Numbers of the blocks that are reachable.
    pub marked: Bits,
    /// By block number, why it is reachable, if it is; empty where that was not asked for.
    pub origins: Vec<Option<Origin>>,
    /// Bytes of roots read.
    pub root_bytes: u64,
    /// Bytes of blocks read.
    pub heap_bytes: u64,
}

/// What a thread has found, and not yet gone on from.
#[derive(Default)]
struct Found {
    /// Blocks that are marked and not read.
    queue: Vec<u32>,
    origins: Option<Vec<Option<Origin>>>,
    bytes: u64,
    /// Words that need not be looked up again: they are of no block, or of one that is marked. Many objects refer to a few, and
    /// to tables of functions, which are no blocks.
    settled: Settled,
    /// Words that are about to be looked up, where they stand, and their places in the index.
    waiting: Vec<(u64, u64, Option<Place>)>,
}

/// As many as there is room for, each in its [`slot`].
struct Settled(Box<[u64; SETTLED]>);

impl Default for Settled {
    fn default() -> Settled {
        // A word that is the address of nothing.
        Settled(Box::new([u64::MAX; SETTLED]))
    }
}

/// The place of a word in [`Settled`].
#[inline]
fn slot(word: u64) -> usize {
    (word ^ word >> 12 ^ word >> 3) as usize % SETTLED
}

/// What all threads share.
struct Scan<'a> {
    addresses: &'a Index,
    percpu: &'a Index,
    rules: &'a Rules,
    surroundings: &'a dyn Surroundings,
    windows: Windows,
    marked: Bits,
}

impl<'a> Marker<'a> {
    /// A scan of as many blocks as there are `rules` for. `addresses` finds them by virtual address, `percpu` by `__percpu`
    /// pointer.
    pub fn new(
        addresses: &'a Index,
        percpu: &'a Index,
        rules: &'a Rules,
        surroundings: &'a dyn Surroundings,
        options: Options,
    ) -> Self {
        let windows = Windows::new(addresses.ranges().chain(percpu.ranges()), options.variant);
        let scan = Scan { addresses, percpu, rules, surroundings, windows, marked: Bits::new(rules.len) };
        let origins = options.origins.then(|| vec![None; rules.len]);
        let found = Found { queue: rules.weak.ones().collect(), origins, ..Found::default() };
        let shared = !options.origins && rayon::current_thread_index().is_some() && rayon::current_num_threads() > 1;
        Marker { scan, shared, found, bytes: (0, 0) }
    }

    /// Reads root memory in parts: `read` calls its argument with every run of bytes of the part of that number, and their guest
    /// physical address, which is 8-byte aligned. A tail shorter than a word is not read.
    pub fn roots(&mut self, parts: usize, read: &ReadPart<'_>) {
        let scan = &self.scan;
        let part = |mut found: Found, part: usize| {
            read(part, &mut |at, bytes| scan.words(at, bytes, 0..0, Origin::Root, &mut found));
            found
        };
        let founds = match self.shared {
            true => (0..parts).into_par_iter().fold(Found::default, part).collect(),
            false => vec![(0..parts).fold(std::mem::take(&mut self.found), part)],
        };
        for found in founds {
            self.bytes.0 += found.bytes;
            self.found.queue.extend(found.queue);
            self.found.origins = self.found.origins.take().or(found.origins);
        }
    }

    /// Reads a run of root memory, as [`Marker::roots`].
    pub fn root(&mut self, at: u64, bytes: &[u8]) {
        self.scan.words(at, bytes, 0..0, Origin::Root, &mut self.found);
        self.bytes.0 += std::mem::take(&mut self.found.bytes);
    }

    /// Takes one word as a root: a register.
    pub fn root_word(&mut self, word: u64) {
        self.scan.word(word, self.scan.addresses.place(word), None, || Origin::Register, &mut self.found);
    }

    /// Takes a block as reachable, though no reference to it is known.
    pub fn root_block(&mut self, block: u32) {
        self.scan.mark(block, &|| Origin::Given, &mut self.found);
    }

    /// Whether a block is reachable from the roots given before the last [`Marker::run`].
    pub fn is_marked(&self, block: u32) -> bool {
        self.scan.marked.get(block)
    }

    /// The blocks that are not, ascending by number.
    pub fn unmarked(&self) -> impl Iterator<Item = u32> + '_ {
        self.scan.marked.zeros()
    }

    /// Marks everything that is reachable from the roots given so far.
    pub fn run(&mut self, contents: &impl Contents) {
        let scan = &self.scan;
        match self.shared && self.found.queue.len() > SHARE {
            true => {
                let bytes = AtomicU64::new(0);
                let queue = std::mem::take(&mut self.found.queue);
                rayon::scope(|scope| {
                    for part in queue.chunks(SHARE) {
                        let (part, bytes) = (part.to_vec(), &bytes);
                        scope.spawn(move |scope| scan.share(contents, part, bytes, scope));
                    }
                });
                self.bytes.1 += bytes.into_inner();
            }
            false => {
                // What was found first is told by the order.
                let batch = if self.found.origins.is_some() { 1 } else { BATCH };
                scan.drain(contents, &mut self.found, batch, usize::MAX, &mut |_| {});
                self.bytes.1 += std::mem::take(&mut self.found.bytes);
            }
        }
    }

    /// As [`Marker::run`], and ends the scan.
    pub fn finish(mut self, contents: &impl Contents) -> Marks {
        self.run(contents);
        let origins = self.found.origins.unwrap_or_default();
        Marks { marked: self.scan.marked, origins, root_bytes: self.bytes.0, heap_bytes: self.bytes.1 }
    }
}

impl Scan<'_> {
    /// Reads blocks and all that they lead to, and leaves some to other threads.
    fn share<'s, C: Contents>(
        &'s self,
        contents: &'s C,
        queue: Vec<u32>,
        bytes: &'s AtomicU64,
        scope: &rayon::Scope<'s>,
    ) {
        let mut found = Found { queue, ..Found::default() };
        self.drain(contents, &mut found, BATCH, SHARE, &mut |part| {
            scope.spawn(move |scope| self.share(contents, part, bytes, scope));
        });
        bytes.fetch_add(found.bytes, Ordering::Relaxed);
    }

    /// Reads the blocks in the queue, `batch` at a time, and all that they lead to. What is more than `limit` goes to `spill`.
    fn drain(
        &self,
        contents: &impl Contents,
        found: &mut Found,
        batch: usize,
        limit: usize,
        spill: &mut dyn FnMut(Vec<u32>),
    ) {
        let mut now = Vec::with_capacity(batch);
        while !found.queue.is_empty() {
            let from = found.queue.len().saturating_sub(batch);
            now.extend(found.queue.drain(from..).rev());
            if now.len() > 1 {
                now.iter().for_each(|&block| contents.prefetch(block));
            }
            for block in now.drain(..) {
                // Its own references change nothing, once it is marked; a weak one may not be.
                let own = if self.rules.is_weak(block) { 0..0 } else { contents.place(block) };
                contents.read(block, &mut |at, bytes| {
                    self.words(at, bytes, own.clone(), |_| Origin::Block(block), found);
                });
            }
            if found.queue.len() > limit {
                let newer = found.queue.split_off(found.queue.len() / 2);
                spill(std::mem::replace(&mut found.queue, newer));
            }
        }
    }

    /// Takes words that stand from guest physical address `at` on, but for those in `own`.
    #[inline]
    fn words(&self, at: u64, bytes: &[u8], own: Range<u64>, origin: impl Fn(u64) -> Origin, found: &mut Found) {
        found.bytes += bytes.len() as u64;
        let own_len = own.end - own.start;
        for (i, words) in bytes.as_chunks::<8>().0.chunks(WORDS).enumerate() {
            let mut mask = self.windows.candidates(words);
            let mut waiting = std::mem::take(&mut found.waiting);
            // First all of them are looked at, so that what is known of their pages is here when it is needed.
            while mask != 0 {
                let bit = mask.trailing_zeros() as usize;
                mask &= mask - 1;
                let word = u64::from_le_bytes(words[bit]);
                if word.wrapping_sub(own.start) < own_len || found.settled.0[slot(word)] == word {
                    continue;
                }
                let place = self.addresses.place(word);
                if place.is_some() || self.percpu.may_find(word) {
                    place.inspect(|place| self.addresses.prefetch(*place, word));
                    waiting.push((word, at + 8 * (i * WORDS + bit) as u64, place));
                }
            }
            for (word, at, place) in waiting.drain(..) {
                if self.word(word, place, Some(at), || origin(at), found) {
                    found.settled.0[slot(word)] = word;
                }
            }
            found.waiting = waiting;
        }
    }

    /// Takes a word, which has that place in the index and stands at guest physical address `at`. Tells whether the same word is
    /// of no interest any more, wherever it stands.
    #[inline]
    fn word(
        &self,
        word: u64,
        place: Option<Place>,
        at: Option<u64>,
        origin: impl Fn() -> Origin,
        found: &mut Found,
    ) -> bool {
        let mut settled = true;
        if let Some(block) = place.and_then(|place| self.addresses.find_at(place, word))
            && !self.marked.get(block)
        {
            settled = !at.is_some_and(|at| self.surroundings.is_dead(word, at));
            if settled {
                self.mark(block, &origin, found);
            }
        }
        if let Some(block) = self.percpu.find(word)
            && !self.marked.get(block)
        {
            self.mark(block, &origin, found);
        }
        settled
    }

    fn mark(&self, mut block: u32, origin: &impl Fn() -> Origin, found: &mut Found) {
        let mut why = origin();
        // Rules lead from one block to the next, each marked once.
        while self.marked.set(block) {
            if let Some(origins) = &mut found.origins {
                origins[block as usize] = Some(why);
            }
            if !self.rules.is_weak(block) {
                found.queue.push(block);
            }
            let Some(next) = self.rules.next(block) else { return };
            why = Origin::Rule(block);
            block = next;
        }
    }
}
