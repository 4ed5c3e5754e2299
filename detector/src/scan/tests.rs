//! Scans of small written-out memories, and of random ones that a naive scan checks.

use super::*;
use crate::scan::index::Span;
use proptest::prelude::*;
use std::collections::BTreeSet;
use std::sync::OnceLock;

struct Blocks(Vec<Vec<u64>>);

impl Contents for Blocks {
    fn read(&self, block: u32, each: &mut dyn FnMut(u64, &[u8])) {
        each(0x10_0000 + 0x1000 * u64::from(block), &bytes(&self.0[block as usize]));
    }
}

/// Physical addresses of words that are not references.
struct Dead(&'static [u64]);

impl Surroundings for Dead {
    fn is_stale(&self, _: u64, at: u64) -> bool {
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

/// The marks of blocks of 64 bytes with these contents, from one root word.
fn scan(contents: Vec<Vec<u64>>, rules: &Rules, root: u64) -> Vec<bool> {
    scan_but_for(Dead(&[]), contents, rules, root)
}

fn scan_but_for(dead: Dead, contents: Vec<Vec<u64>>, rules: &Rules, root: u64) -> Vec<bool> {
    let spans = (0..contents.len() as u64).map(|b| Span { start: at(b), end: at(b) + 64, block: b as u32 });
    let index = Index::new(spans);
    let percpu = Index::new(vec![]);
    let mut marker = Marker::new(&index, &percpu, rules, &dead, Options::default());
    marker.root(0x1000, &bytes(&[0, root]));
    let count = contents.len() as u32;
    let marks = marker.finish(&Blocks(contents));
    (0..count).map(|b| marks.marked.get(b)).collect()
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
    let rules = Rules::new(7);
    assert_eq!(scan(contents, &rules, at(0)), [true, true, true, false, false, false, false]);
    // One past the end of block 0 is block 1.
    assert_eq!(scan(vec![vec![], vec![]], &Rules::new(2), at(0) + 64), [false, true]);
}

#[test]
fn a_weak_block_is_read_but_marks_its_area_only_when_referred_to() {
    // 0 is a vm_struct: its pages array is 1, its area 2.
    let mut rules = Rules::new(3);
    rules.set_weak(0);
    rules.set_next(0, Some(2));
    let contents = vec![vec![at(1)], vec![], vec![]];
    assert_eq!(scan(contents.clone(), &rules, 0), [false, true, false]);
    assert_eq!(scan(contents, &rules, at(0)), [true, true, true]);
}

#[test]
fn a_word_that_its_surroundings_tell_dead_marks_nothing() {
    // 0 refers to 1 in its second word, and to 2 in its first and third.
    let contents = || vec![vec![at(2), at(1), at(2)], vec![], vec![]];
    let marks = |dead: &'static [u64]| scan_but_for(Dead(dead), contents(), &Rules::new(3), at(0));
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
    let rules = Rules::new(1);
    let options = Options { origins: true, ..Options::default() };
    let mut marker = Marker::new(&addresses, &percpu, &rules, &Dead(&[]), options);
    marker.root_word(0x2_9008);
    let marks = marker.finish(&Blocks(vec![vec![]]));
    assert_eq!(marks.origins[0], Some(Origin::Register));
    assert!(marks.marked.get(0));
}

/// A random memory.
#[derive(Debug, Clone)]
struct Memory {
    /// Addresses and words of blocks. Small addresses are `__percpu` pointers.
    blocks: Vec<(u64, Vec<u64>)>,
    roots: Vec<u64>,
    weak: Vec<u32>,
    next: Vec<(u32, u32)>,
    /// Physical addresses of words that are not references.
    dead: BTreeSet<u64>,
}

const ROOTS_AT: u64 = 0x1000;

/// The physical address of a block. Blocks are further apart than any is long.
fn phys(block: u32) -> u64 {
    0x10_0000 + 0x1000 * u64::from(block)
}

impl Memory {
    fn is_percpu(&self, block: usize) -> bool {
        self.blocks[block].0 < 1 << 32
    }

    fn spans(&self, percpu: bool) -> Vec<Span> {
        let of = (0..self.blocks.len()).filter(|&i| self.is_percpu(i) == percpu);
        let span = |i: usize| (self.blocks[i].0, self.blocks[i].0 + 8 * self.blocks[i].1.len() as u64, i as u32);
        of.map(span).map(|(start, end, block)| Span { start, end, block }).collect()
    }

    fn rules(&self) -> Rules {
        let mut rules = Rules::new(self.blocks.len());
        self.weak.iter().for_each(|&block| rules.set_weak(block));
        self.next.iter().for_each(|&(block, next)| rules.set_next(block, Some(next)));
        rules
    }

    /// The naive scan: reads everything until nothing changes.
    fn reachable(&self) -> Vec<bool> {
        let (mut spans, mut pointers) = (self.spans(false), self.spans(true));
        spans.sort_by_key(|s| (s.start, s.end));
        pointers.sort_by_key(|s| (s.start, s.end));
        let mut marked = vec![false; self.blocks.len()];
        loop {
            let before = marked.clone();
            let mut words: Vec<(u64, u64)> = (ROOTS_AT..).step_by(8).zip(self.roots.iter().copied()).collect();
            for (i, (_, content)) in (0..).zip(&self.blocks) {
                if before[i as usize] || self.weak.contains(&i) {
                    words.extend((phys(i)..).step_by(8).zip(content.iter().copied()));
                }
            }
            let find = |spans: &[Span], word| spans.iter().find(|s| (s.start..s.end).contains(&word)).map(|s| s.block);
            for (at, word) in words {
                let address = find(&spans, word).filter(|_| !self.dead.contains(&at));
                for block in address.into_iter().chain(find(&pointers, word)) {
                    marked[block as usize] = true;
                }
            }
            for &(block, next) in &self.next {
                marked[next as usize] |= marked[block as usize];
            }
            if marked == before {
                return marked;
            }
        }
    }
}

impl Contents for Memory {
    fn read(&self, block: u32, each: &mut dyn FnMut(u64, &[u8])) {
        // Two runs. The first has an odd number of words.
        let words = &self.blocks[block as usize].1;
        let (first, rest) = words.split_at((words.len() / 2) | 1);
        each(phys(block), &bytes(first));
        each(phys(block) + 8 * first.len() as u64, &bytes(rest));
    }

    fn place(&self, block: u32) -> Range<u64> {
        let start = self.blocks[block as usize].0;
        if self.is_percpu(block as usize) {
            0..0
        } else {
            start..start + 8 * self.blocks[block as usize].1.len() as u64
        }
    }
}

impl Surroundings for Memory {
    fn is_stale(&self, _: u64, at: u64) -> bool {
        self.dead.contains(&at)
    }
}

/// Memories with adjacent and distant blocks, and words that point to, into and behind them.
fn memories() -> impl Strategy<Value = Memory> {
    let block = (0..4u64, 1..40u64, 0..5u64, 0..10u32);
    let word = (any::<prop::sample::Index>(), 0..12u32, any::<u64>());
    let words = prop::collection::vec(word, 0..400);
    let numbers = || prop::collection::vec(any::<prop::sample::Index>(), 0..4);
    (prop::collection::vec(block, 1..90), words, numbers(), numbers(), numbers()).prop_map(
        |(layout, words, weak, next, dead)| {
            let mut ends = [0x2_0000, 0xffff_8880_0000_0000, 0xffff_c900_0000_0ff8, 0x6000_0000];
            let mut blocks: Vec<(u64, Vec<u64>)> = Vec::new();
            for (region, len, gap, far) in layout {
                let start = ends[region as usize] + 8 * gap + if far == 0 { 0x3000 } else { 0 };
                ends[region as usize] = start + 8 * len;
                blocks.push((start, vec![0; len as usize]));
            }
            let number = |i: &prop::sample::Index| i.index(blocks.len()) as u32;
            let (weak, next) = (weak.iter().map(number).collect(), next.iter().map(number).collect::<Vec<_>>());
            let next = next.chunks_exact(2).filter(|p| p[0] != p[1]).map(|p| (p[0], p[1])).collect();
            let dead = dead.iter().map(number).map(|i| phys(i) + u64::from(i % 2) * 8).collect();
            let mut roots = vec![0; 70];
            let places = blocks.clone();
            for (i, (to, how, random)) in words.into_iter().enumerate() {
                let (start, content) = &places[to.index(places.len())];
                let bytes = 8 * content.len() as u64;
                let word = match how {
                    0..=2 => *start,
                    3..=4 => start + random % bytes,
                    5 => start + bytes - 1,
                    6 => start + bytes,
                    7 => start - 1,
                    8 => random,
                    9 => random >> 44,
                    _ => (random >> 20) | 0xffff_8000_0000_0000,
                };
                // One word of twelve goes to the roots.
                match i % 12 {
                    0 => roots[(random >> 8) as usize % 70] = word,
                    _ => {
                        let at = (random >> 8) as usize % blocks.len();
                        let len = blocks[at].1.len();
                        blocks[at].1[(random >> 40) as usize % len] = word;
                    }
                }
            }
            Memory { blocks, roots, weak, next, dead }
        },
    )
}

/// The result of a scan.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Outcome {
    marked: Vec<bool>,
    root_bytes: u64,
    heap_bytes: u64,
    /// Empty unless origins are recorded.
    origins: Vec<Option<Origin>>,
}

static POOL: OnceLock<rayon::ThreadPool> = OnceLock::new();

/// Scans a memory in one way.
fn marks(memory: &Memory, options: Options) -> Outcome {
    let (addresses, percpu) = (Index::new(memory.spans(false)), Index::new(memory.spans(true)));
    let rules = memory.rules();
    let mut marker = Marker::new(&addresses, &percpu, &rules, memory, options);
    let roots = bytes(&memory.roots);
    let parts: Vec<(u64, &[u8])> = (ROOTS_AT..).step_by(128).zip(roots.chunks(128)).collect();
    marker.roots(parts.len(), &|i, each| each(parts[i].0, parts[i].1));
    let marks = marker.finish(memory);
    let marked = (0..memory.blocks.len() as u32).map(|b| marks.marked.get(b)).collect();
    Outcome { marked, root_bytes: marks.root_bytes, heap_bytes: marks.heap_bytes, origins: marks.origins }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: if cfg!(miri) { 1 } else { 400 }, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn all_ways_agree(memory in memories()) {
        let expected = memory.reachable();
        let of = |variant| Options { variant, origins: false };
        let first = marks(&memory, of(Variant::Naive));
        prop_assert_eq!(&first.marked, &expected);
        prop_assert_eq!(&marks(&memory, of(Variant::Generic)), &first);
        prop_assert_eq!(&marks(&memory, of(Variant::Avx2)), &first);
        let pool = POOL.get_or_init(|| rayon::ThreadPoolBuilder::new().num_threads(3).build().unwrap());
        prop_assert_eq!(&pool.install(|| marks(&memory, of(Variant::best()))), &first);
        // Recorded origins do not depend on the filter either.
        let kept = marks(&memory, Options { variant: Variant::Naive, origins: true });
        prop_assert_eq!(&Outcome { origins: Vec::new(), ..kept.clone() }, &first);
        prop_assert_eq!(kept.origins.iter().map(Option::is_some).collect::<Vec<_>>(), expected);
        prop_assert_eq!(&pool.install(|| marks(&memory, Options { origins: true, ..Options::default() })), &kept);
    }
}

/// More blocks than one thread keeps: lists, a tree, and unreachable blocks.
#[test]
#[cfg_attr(miri, ignore = "so many blocks take an hour under Miri; ThreadSanitizer runs it")]
fn threads_share_what_is_much() {
    const BLOCKS: u64 = 40_000;
    let start = |i: u64| 0xffff_8880_0000_0000 + 64 * i;
    let blocks = (0..BLOCKS).map(|i| {
        let to = |i: u64| if i < BLOCKS { start(i) + i % 64 } else { 0 };
        // Every seventh block is unreachable, and so are blocks that only it refers to.
        (
            start(i),
            if i % 7 == 6 { vec![start(i); 8] } else { vec![to(2 * i + 1), 0, to(2 * i + 2), 7, to(i + 7), 0, 0, 0] },
        )
    });
    let memory = Memory {
        blocks: blocks.collect(),
        roots: vec![start(0), 1, start(3)],
        weak: vec![8],
        next: vec![(3, 13)],
        dead: BTreeSet::from([phys(17)]),
    };
    let alone = marks(&memory, Options::default());
    let pool = rayon::ThreadPoolBuilder::new().num_threads(4).build().unwrap();
    let reached = alone.marked.iter().filter(|m| **m).count();
    assert!((BLOCKS as usize / 40..BLOCKS as usize - BLOCKS as usize / 40).contains(&reached), "{reached}");
    for _ in 0..20 {
        assert_eq!(pool.install(|| marks(&memory, Options::default())), alone);
    }
}
