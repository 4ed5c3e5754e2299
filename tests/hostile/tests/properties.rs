//! Every kind of untrusted input, a few hundred times: inputs that fuzzing found, random bytes, and
//! valid inputs with changed bytes. `scripts/fuzz-parsers` does the same for longer, guided by
//! coverage.

use hostile::{TARGETS, seeds};
use proptest::prelude::*;
use proptest::sample::Index;
use proptest::test_runner::TestRunner;
use std::path::Path;

fn target(name: &str) -> fn(&[u8]) {
    TARGETS.iter().find(|(target, _)| *target == name).expect("a target").1
}

/// A change: the position and the new byte.
type Change = (Index, Vec<u8>);

fn changes() -> impl Strategy<Value = Vec<Change>> {
    let bytes = prop_oneof![
        any::<[u8; 8]>().prop_map(|b| b.to_vec()),
        any::<u8>().prop_map(|b| vec![b]),
        Just(vec![0xff; 8]),
        Just(vec![0; 4]),
    ];
    proptest::collection::vec((any::<Index>(), bytes), 0..6)
}

/// `cases` inputs each, of which only the changes are random.
fn holds(name: &str, cases: u32) {
    let (check, seeds) = (target(name), seeds::of(name));
    seeds.iter().for_each(|seed| check(seed));
    let config = ProptestConfig { cases, failure_persistence: None, ..ProptestConfig::default() };
    let run = |strategy: BoxedStrategy<Vec<u8>>| {
        let done = TestRunner::new(config.clone()).run(&strategy, |input| {
            check(&input);
            Ok(())
        });
        done.unwrap_or_else(|why| panic!("{name}: {why}"));
    };
    run(proptest::collection::vec(any::<u8>(), 0..512).boxed());
    let spoilt = (any::<Index>(), changes(), any::<Option<Index>>()).prop_map(move |(seed, changes, cut)| {
        let mut input = seeds[seed.index(seeds.len())].clone();
        for (at, bytes) in changes {
            let at = at.index(input.len() + 1);
            let end = input.len().min(at + bytes.len());
            input.splice(at..end, bytes);
        }
        if let Some(cut) = cut {
            input.truncate(cut.index(input.len() + 1));
        }
        input
    });
    run(spoilt.boxed());
}

/// The corpus that fuzzing found, one folder per target.
#[test]
fn kept_inputs() {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus");
    for (name, check) in TARGETS {
        let files = std::fs::read_dir(corpus.join(name)).unwrap_or_else(|why| panic!("no inputs of {name}: {why}"));
        let mut count = 0;
        for file in files {
            check(&std::fs::read(file.expect("a file").path()).expect("an input"));
            count += 1;
        }
        assert!(count > 0, "no inputs of {name}");
    }
}

macro_rules! properties {
    ($($name:ident $cases:literal),* $(,)?) => {
        $(#[test]
        fn $name() {
            holds(stringify!($name), $cases);
        })*

        #[test]
        fn every_target_is_tested() {
            let tested = [$(stringify!($name)),*];
            assert!(TARGETS.iter().all(|(name, _)| tested.contains(name)) && tested.len() == TARGETS.len());
        }
    };
}

properties! {
    kallsyms 100,
    btf 100,
    types 300,
    unwind 300,
    modules 300,
    pages 100,
    slabs 100,
    percpu 100,
    vmap 100,
    tasks 100,
    paging 300,
    symbol_file 300,
    boot_image 100,
    snapshot 100,
    images 100,
    control 300,
    reports 300,
    suppressions 300,
    options 300,
    console 300,
    whole_check 30,
}
