//! Reachability: from roots through live blocks, every aligned word read as a pointer.
//!
//! As in kmemleak (mm/kmemleak.c), words are 8-byte aligned, a pointer anywhere into a block counts, one
//! past its end does not, and each word is also tried as a per-CPU pointer. References from a block that
//! is itself unreachable do not count, so neither do a block's own.

use crate::index::Index;

/// Gives the bytes of a block that may hold references.
pub trait Contents {
    /// Calls `each` with every run of bytes of block `block` that is to be read, 8-byte aligned in the
    /// guest, and its physical address there. Bytes left out hold no references.
    fn read(&self, block: u32, each: &mut dyn FnMut(u64, &[u8]));
}

/// Tells words that would be references, were it not for what stands around them.
pub trait Surroundings {
    /// Whether the word at guest physical address `at`, which is one in a block, is no reference. Asked only of
    /// words that would mark a block.
    fn is_dead(&self, word: u64, at: u64) -> bool;
}

/// What is known of a block besides its contents.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Rule {
    /// Scanned from the start, though that does not mark it, and never a leak.
    pub weak: bool,
    /// A block that is marked as soon as this one is: a vm_struct's own area.
    pub marks: Option<u32>,
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

/// A scan in progress.
pub struct Marker<'a> {
    addresses: &'a Index,
    percpu: &'a Index,
    rules: &'a [Rule],
    surroundings: &'a dyn Surroundings,
    marked: Vec<Option<Origin>>,
    queue: Vec<u32>,
    /// Bytes read from roots, and from blocks.
    bytes: (u64, u64),
}

/// What a scan found.
pub struct Marks {
    /// By block number, why it is reachable, if it is.
    pub marked: Vec<Option<Origin>>,
    /// Bytes of roots read.
    pub root_bytes: u64,
    /// Bytes of blocks read.
    pub heap_bytes: u64,
}

impl<'a> Marker<'a> {
    /// A scan of `rules.len()` blocks. `addresses` finds them by virtual address, `percpu` by `__percpu`
    /// pointer.
    pub fn new(addresses: &'a Index, percpu: &'a Index, rules: &'a [Rule], surroundings: &'a dyn Surroundings) -> Self {
        let queue = (0..rules.len() as u32).filter(|&b| rules[b as usize].weak).collect();
        Marker { addresses, percpu, rules, surroundings, marked: vec![None; rules.len()], queue, bytes: (0, 0) }
    }

    /// Reads a run of root memory at guest physical address `at`, which is 8-byte aligned. A tail shorter
    /// than a word is not read.
    pub fn root(&mut self, at: u64, bytes: &[u8]) {
        self.bytes.0 += bytes.len() as u64;
        for (i, word) in bytes.as_chunks::<8>().0.iter().enumerate() {
            let at = at + 8 * i as u64;
            self.word(u64::from_le_bytes(*word), Some(at), || Origin::Root(at));
        }
    }

    /// Takes one word as a root: a register.
    pub fn root_word(&mut self, word: u64) {
        self.word(word, None, || Origin::Register);
    }

    /// Takes a block as reachable, though no reference to it is known.
    pub fn root_block(&mut self, block: u32) {
        self.mark(block, &|| Origin::Given);
    }

    /// Whether a block is reachable from the roots given before the last [`Marker::run`].
    pub fn is_marked(&self, block: u32) -> bool {
        self.marked[block as usize].is_some()
    }

    /// Marks everything that is reachable from the roots given so far.
    pub fn run(&mut self, contents: &impl Contents) {
        while let Some(block) = self.queue.pop() {
            contents.read(block, &mut |at, bytes| {
                self.bytes.1 += bytes.len() as u64;
                for (i, word) in bytes.as_chunks::<8>().0.iter().enumerate() {
                    self.word(u64::from_le_bytes(*word), Some(at + 8 * i as u64), || Origin::Block(block));
                }
            });
        }
    }

    /// As [`Marker::run`], and ends the scan.
    pub fn finish(mut self, contents: &impl Contents) -> Marks {
        self.run(contents);
        Marks { marked: self.marked, root_bytes: self.bytes.0, heap_bytes: self.bytes.1 }
    }

    /// Takes a word, which stands at guest physical address `at`.
    #[inline]
    fn word(&mut self, word: u64, at: Option<u64>, origin: impl Fn() -> Origin) {
        if let Some(block) = self.addresses.find(word)
            && self.marked[block as usize].is_none()
            && !at.is_some_and(|at| self.surroundings.is_dead(word, at))
        {
            self.mark(block, &origin);
        }
        if let Some(block) = self.percpu.find(word) {
            self.mark(block, &origin);
        }
    }

    #[inline]
    fn mark(&mut self, block: u32, origin: &impl Fn() -> Origin) {
        if self.marked[block as usize].is_some() {
            return;
        }
        self.marked[block as usize] = Some(origin());
        let mut block = block;
        // Rules lead from one block to the next, each marked once.
        loop {
            let rule = self.rules[block as usize];
            if !rule.weak {
                self.queue.push(block);
            }
            match rule.marks {
                Some(next) if self.marked[next as usize].is_none() => {
                    self.marked[next as usize] = Some(Origin::Rule(block));
                    block = next;
                }
                _ => return,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::index::Span;

    struct Blocks(Vec<Vec<u64>>);

    impl Contents for Blocks {
        fn read(&self, block: u32, each: &mut dyn FnMut(u64, &[u8])) {
            each(0x10_0000 + 0x1000 * u64::from(block), &bytes(&self.0[block as usize]));
        }
    }

    /// Addresses at which words are no references.
    struct Dead(&'static [u64]);

    impl Surroundings for Dead {
        fn is_dead(&self, _: u64, at: u64) -> bool {
            self.0.contains(&at)
        }
    }

    fn bytes(words: &[u64]) -> Vec<u8> {
        words.iter().flat_map(|w| w.to_le_bytes()).collect()
    }

    const BASE: u64 = 0xffff_8880_0010_0000;

    fn at(block: u64) -> u64 {
        BASE + block * 64
    }

    /// Marks of blocks of 64 bytes with these contents, from one root word.
    fn scan(contents: Vec<Vec<u64>>, rules: &[Rule], root: u64) -> Vec<bool> {
        scan_but_for(Dead(&[]), contents, rules, root)
    }

    fn scan_but_for(dead: Dead, contents: Vec<Vec<u64>>, rules: &[Rule], root: u64) -> Vec<bool> {
        let spans = (0..contents.len() as u64).map(|b| Span { start: at(b), end: at(b) + 64, block: b as u32 });
        let index = Index::new(spans.collect());
        let percpu = Index::new(vec![]);
        let mut marker = Marker::new(&index, &percpu, rules, &dead);
        marker.root(0x1000, &bytes(&[0, root]));
        marker.finish(&Blocks(contents)).marked.iter().map(Option::is_some).collect()
    }

    #[test]
    fn chains_cycles_interior_pointers_and_one_past_the_end() {
        let contents = vec![
            vec![0, at(1) + 63], // 0 -> 1 by an interior pointer
            vec![at(2)],
            vec![],
            vec![at(4)], // 3 and 4 hold each other only
            vec![at(3)],
            vec![at(5)],     // itself only
            vec![at(7) - 1], // unreachable, points to itself's last byte
        ];
        let rules = vec![Rule::default(); 7];
        assert_eq!(scan(contents, &rules, at(0)), [true, true, true, false, false, false, false]);
        // One past the end of block 0 is block 1.
        assert_eq!(scan(vec![vec![], vec![]], &[Rule::default(); 2], at(0) + 64), [false, true]);
    }

    #[test]
    fn a_weak_block_is_read_but_marks_its_area_only_when_referred_to() {
        // 0 is a vm_struct: its pages array is 1, its area 2.
        let rules = [Rule { weak: true, marks: Some(2) }, Rule::default(), Rule::default()];
        let contents = vec![vec![at(1)], vec![], vec![]];
        assert_eq!(scan(contents.clone(), &rules, 0), [false, true, false]);
        assert_eq!(scan(contents, &rules, at(0)), [true, true, true]);
    }

    #[test]
    fn a_word_that_its_surroundings_tell_dead_marks_nothing() {
        // 0 refers to 1 in its second word, and to 2 in its first and third.
        let contents = || vec![vec![at(2), at(1), at(2)], vec![], vec![]];
        let marks = |dead: &'static [u64]| scan_but_for(Dead(dead), contents(), &[Rule::default(); 3], at(0));
        assert_eq!(marks(&[]), [true, true, true]);
        assert_eq!(marks(&[0x10_0008]), [true, false, true]);
        assert_eq!(marks(&[0x10_0000]), [true, true, true]);
        assert_eq!(marks(&[0x10_0000, 0x10_0010]), [true, true, false]);
        // The root's word.
        assert_eq!(marks(&[0x1008]), [false, false, false]);
    }

    #[test]
    fn per_cpu_pointers_resolve() {
        let addresses = Index::new(vec![]);
        let percpu = Index::new(vec![Span { start: 0x2_9000, end: 0x2_9040, block: 0 }]);
        let rules = [Rule::default()];
        let mut marker = Marker::new(&addresses, &percpu, &rules, &Dead(&[]));
        marker.root_word(0x2_9008);
        assert_eq!(marker.finish(&Blocks(vec![vec![]])).marked[0], Some(Origin::Register));
    }
}
