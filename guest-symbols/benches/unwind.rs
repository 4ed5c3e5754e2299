//! The duration of a stack walk, which happens at every allocation. The unwind table has the size
//! of a kernel's, and the stack matches it.

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use guest_symbols::unwind::cache::Cache;
use guest_symbols::unwind::memo::{Log, Memo, Start};
use guest_symbols::unwind::orc::{Base, Kind, Rule, Saved};
use guest_symbols::unwind::step::{Bp, State};
use guest_symbols::unwind::walk::{Context, Method, walk};
use std::hint::black_box;

const TEXT: u64 = 0xffff_ffff_8100_0000;
const STACK: u64 = 0xffff_c900_0000_0000;
/// Number of functions, one rule for each, and their size in bytes.
const FUNCTIONS: u64 = 100_000;
const FUNCTION: u64 = 0x80;
/// Words of each frame, with the return address.
const FRAME: u64 = 8;

/// A guest whose memory costs nothing to read, so that only the walk is measured.
struct Guest {
    /// The start address of each rule.
    rules: Vec<(u64, Rule)>,
    stack: Vec<u64>,
    cache: Option<Cache>,
}

impl Guest {
    /// A guest whose stack has calls of functions all over the text.
    fn new(cache: Option<Cache>) -> Guest {
        let rule = Rule {
            sp: Base::Sp,
            sp_offset: FRAME as i16 * 8,
            bp: Saved::Register,
            bp_offset: 0,
            kind: Kind::Call,
            signal: false,
        };
        let rules = (0..FUNCTIONS).map(|i| (TEXT + i * FUNCTION, rule)).collect();
        let mut stack = vec![0; 128 * FRAME as usize];
        for (i, frame) in stack.chunks_mut(FRAME as usize).enumerate() {
            frame[FRAME as usize - 1] = TEXT + (i as u64 * 7919 % FUNCTIONS) * FUNCTION + 0x20;
        }
        Guest { rules, stack, cache }
    }
}

impl Context for Guest {
    fn read(&mut self, at: u64) -> Option<u64> {
        self.stack.get(at.checked_sub(STACK)? as usize / 8).copied()
    }
    fn method(&mut self, at: u64) -> Method {
        let find = || match self.rules.partition_point(|(start, _)| *start <= at).checked_sub(1) {
            Some(i) => Method::Rule(self.rules[i].1),
            None => Method::Unknown,
        };
        match &mut self.cache {
            Some(cache) => cache.get(at, 0, find),
            None => find(),
        }
    }
    fn is_text(&self, at: u64) -> bool {
        (TEXT..TEXT + FUNCTIONS * FUNCTION).contains(&at)
    }
}

fn unwind(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("unwind");
    for (name, cache) in [("rules searched, frames", false), ("rules in the cache, frames", true)] {
        for frames in [2, 16, 64] {
            let mut guest = Guest::new(cache.then(Cache::default));
            let mut out = vec![0; frames];
            let start = State::returned(TEXT + 0x20, STACK, Bp::Is(0));
            assert_eq!(walk(&mut guest, start, &mut out), frames, "the stack has the requested depth");
            group.bench_function(BenchmarkId::new(name, frames), |bencher| {
                bencher.iter(|| walk(&mut guest, black_box(start), &mut out));
            });
        }
    }
    group.finish();
}

/// A known walk, found by the words that it read.
fn known(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("unwind");
    for frames in [2, 16] {
        let guest = Guest::new(None);
        let start = Start { function: TEXT, ret: TEXT + 0x20, sp: STACK };
        let mut log = Log::new(STACK);
        for frame in 1..frames {
            let at = frame * FRAME as usize - 1;
            log.note(STACK + 8 * at as u64, guest.stack[at]);
        }
        let mut memo = Memo::default();
        memo.keep(start, log, 1);
        let read = |at: u64| guest.stack.get(at.checked_sub(STACK)? as usize / 8).copied();
        assert!(memo.find(start, 0, read).is_some());
        group.bench_function(BenchmarkId::new("known walk, frames", frames), |bencher| {
            bencher.iter(|| memo.find(black_box(start), 0, read));
        });
    }
    group.finish();
}

criterion_group!(benches, unwind, known);
criterion_main!(benches);
