//! Reachability: starting at the roots, every aligned word of a live block is read as a pointer.
//!
//! The rules are those of kmemleak (mm/kmemleak.c). Words are 8-byte aligned. A pointer to any byte
//! of a block counts. A pointer behind its end does not count. Each word is also tried as a
//! `__percpu` pointer. References from unreachable blocks do not count. A block's references to
//! itself do not count.
//!
//! The result does not depend on the order of reading, so several threads may read. They are those
//! of the rayon pool in which the scan runs ([`rayon::ThreadPool::install`]). Without a pool one
//! thread reads. The origin of the first reference does depend on the order. If origins are
//! requested, one thread reads in a fixed order.

pub mod bits;
pub mod graph;
pub mod index;
#[expect(unsafe_code, reason = "vector instructions, and a hint to the CPU")]
mod kernels;
mod rules;
#[cfg(test)]
mod tests;

use bits::Bits;
use index::{Index, Place};
use kernels::{WORDS, Windows};
use rayon::prelude::*;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};

pub use kernels::{Variant, prefetch};
pub use rules::Rules;

/// Blocks read together. Their memory is prefetched as a batch.
const BATCH: usize = 16;
/// Words that a thread remembers. They fit into the first-level cache.
const SETTLED: usize = 1024;
/// A thread with more blocks than this in its queue gives half of them to other threads.
const SHARE: usize = 256;

/// The contents of blocks.
pub trait Contents: Sync {
    /// Calls `each` with every run of bytes in `block` that may hold references. The first argument
    /// is the guest physical address of the run, which is 8-byte aligned.
    fn read(&self, block: u32, each: &mut dyn FnMut(u64, &[u8]));

    /// A range of addresses that the index maps to this block. It may be smaller than the block.
    fn place(&self, _block: u32) -> Range<u64> {
        0..0
    }

    /// A hint that the block is read soon.
    fn prefetch(&self, _block: u32) {}
}

/// Reads the part of root memory with this number.
pub type ReadPart<'a> = dyn Fn(usize, &mut dyn FnMut(u64, &[u8])) + Sync + 'a;

/// Recognizes words that look like references and are not, by their surroundings.
pub trait Surroundings: Sync {
    /// Whether the word at guest physical address `at` is not a reference. It is asked only for
    /// words that would mark a block. The answer must depend on memory alone.
    fn is_stale(&self, word: u64, at: u64) -> bool;
}

/// Where the first reference to a block was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// In root memory, at this guest physical address.
    Root(u64),
    /// In a register.
    Register,
    /// The caller declared the block reachable.
    Given,
    /// In the block with this number.
    Block(u32),
    /// The block is marked together with the block of this number.
    Rule(u32),
}

/// Options of a scan. The marks do not depend on them.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// How words are filtered.
    pub variant: Variant,
    /// Whether to record the first reference to each block. One thread reads then.
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
    /// Whether several threads share the work.
    shared: bool,
    found: Found,
    /// Bytes of roots read so far.
    root_bytes: u64,
    /// Bytes of blocks read so far.
    heap_bytes: u64,
}

/// The result of a scan.
pub struct Marks {
    /// Numbers of the reachable blocks.
    pub marked: Bits,
    /// The origin of each reachable block, by block number. Empty unless it was requested.
    pub origins: Vec<Option<Origin>>,
    /// Bytes of roots that were read.
    pub root_bytes: u64,
    /// Bytes of blocks that were read.
    pub heap_bytes: u64,
}

/// The state of one thread.
#[derive(Default)]
struct Found {
    /// Blocks that are marked and still to be read.
    queue: Vec<u32>,
    origins: Option<Vec<Option<Origin>>>,
    bytes: u64,
    /// Words that need no lookup: they point to no block or to a marked one. Many objects point to
    /// the same few objects and function tables.
    settled: Settled,
    /// Words to look up next.
    waiting: Vec<Candidate>,
}

/// A word that may point into a block.
struct Candidate {
    word: u64,
    /// Guest physical address of the word.
    at: u64,
    /// The word's page in the index.
    place: Option<Place>,
}

/// A direct-mapped cache of words, each in its [`slot`].
struct Settled(Box<[u64; SETTLED]>);

impl Default for Settled {
    fn default() -> Settled {
        // No block has this address.
        Settled(Box::new([u64::MAX; SETTLED]))
    }
}

/// The slot of a word in [`Settled`].
#[inline]
fn slot(word: u64) -> usize {
    (word ^ word >> 12 ^ word >> 3) as usize % SETTLED
}

/// The state that all threads share.
struct Scan<'a> {
    addresses: &'a Index,
    percpu: &'a Index,
    rules: &'a Rules,
    surroundings: &'a dyn Surroundings,
    windows: Windows,
    marked: Bits,
}

impl<'a> Marker<'a> {
    /// Starts a scan. The number of blocks is that of `rules`. `addresses` finds blocks by virtual
    /// address, `percpu` by `__percpu` pointer.
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
        Marker { scan, shared, found, root_bytes: 0, heap_bytes: 0 }
    }

    /// Reads root memory in `parts` parts.
    ///
    /// `read` calls its argument with every run of bytes in the part. The other argument is the
    /// guest physical address of the run, which is 8-byte aligned. A tail shorter than a word is
    /// ignored.
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
            self.root_bytes += found.bytes;
            self.found.queue.extend(found.queue);
            self.found.origins = self.found.origins.take().or(found.origins);
        }
    }

    /// Reads one run of root memory. See [`Marker::roots`].
    pub fn root(&mut self, at: u64, bytes: &[u8]) {
        self.scan.words(at, bytes, 0..0, Origin::Root, &mut self.found);
        self.root_bytes += std::mem::take(&mut self.found.bytes);
    }

    /// Treats one word, as from a register, as a root.
    pub fn root_word(&mut self, word: u64) {
        self.scan.word(word, self.scan.addresses.place(word), None, || Origin::Register, &mut self.found);
    }

    /// Treats a block as reachable without a reference.
    pub fn root_block(&mut self, block: u32) {
        self.scan.mark(block, &|| Origin::Given, &mut self.found);
    }

    /// Whether a block was reachable at the last [`Marker::run`].
    pub fn is_marked(&self, block: u32) -> bool {
        self.scan.marked.get(block)
    }

    /// Numbers of the unreachable blocks, ascending.
    pub fn unmarked(&self) -> impl Iterator<Item = u32> + '_ {
        self.scan.marked.zeros()
    }

    /// Marks everything that is reachable from the roots so far.
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
                self.heap_bytes += bytes.into_inner();
            }
            false => {
                // The first reference is defined by the order, so blocks are read one by one.
                let batch = if self.found.origins.is_some() { 1 } else { BATCH };
                scan.drain(contents, &mut self.found, batch, usize::MAX, &mut |_| {});
                self.heap_bytes += std::mem::take(&mut self.found.bytes);
            }
        }
    }

    /// Runs the scan and returns its result.
    pub fn finish(mut self, contents: &impl Contents) -> Marks {
        self.run(contents);
        let origins = self.found.origins.unwrap_or_default();
        Marks { marked: self.scan.marked, origins, root_bytes: self.root_bytes, heap_bytes: self.heap_bytes }
    }
}

impl Scan<'_> {
    /// Reads blocks and everything reachable from them. Passes surplus blocks to other threads.
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

    /// Reads the queued blocks and everything reachable from them, `batch` blocks at a time. If
    /// more than `limit` blocks are queued, half of them go to `spill`.
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
                // References of a marked block to itself change nothing. A weak block may not be
                // marked.
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

    /// Looks at words that start at guest physical address `at`. Skips pointers into `own`.
    #[inline]
    fn words(&self, at: u64, bytes: &[u8], own: Range<u64>, origin: impl Fn(u64) -> Origin, found: &mut Found) {
        found.bytes += bytes.len() as u64;
        let own_len = own.end - own.start;
        for (i, words) in bytes.as_chunks::<8>().0.chunks(WORDS).enumerate() {
            let mut mask = self.windows.candidates(words);
            let mut waiting = std::mem::take(&mut found.waiting);
            // The first pass looks up the pages of all words, so that the entries are prefetched in
            // time.
            while mask != 0 {
                let bit = mask.trailing_zeros() as usize;
                mask &= mask - 1;
                let word = u64::from_le_bytes(words[bit]);
                if word.wrapping_sub(own.start) < own_len || found.settled.0[slot(word)] == word {
                    continue;
                }
                let place = self.addresses.place(word);
                if place.is_some() || self.percpu.may_find(word) {
                    if let Some(entry) = place.and_then(|place| self.addresses.expected(place, word)) {
                        prefetch(entry);
                    }
                    waiting.push(Candidate { word, at: at + 8 * (i * WORDS + bit) as u64, place });
                }
            }
            for Candidate { word, at, place } in waiting.drain(..) {
                if self.word(word, place, Some(at), || origin(at), found) {
                    found.settled.0[slot(word)] = word;
                }
            }
            found.waiting = waiting;
        }
    }

    /// Looks up one word that stands at guest physical address `at`. `place` is its page in the
    /// index. Returns whether the same word needs no further lookup, wherever it stands.
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
            settled = !at.is_some_and(|at| self.surroundings.is_stale(word, at));
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
        // Rules form chains. Each block in a chain is marked once.
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
