//! The tests that ran in the guest, and their ranges of sequence numbers.

use crate::fields::{Flaw, Sink, Source};
use detector::guest_tests::{MAX_FINISHED, MAX_PATH, MAX_STRETCHES, Stretch, Test, Tests, Verdict};
use std::io::{self, Read, Write};
use std::sync::Arc;

const RESULTS: [Option<Verdict>; 4] = [None, Some(Verdict::Ok), Some(Verdict::NotOk), Some(Verdict::Skip)];

pub(crate) fn put(to: &mut Sink<impl Write>, tests: &Tests) -> io::Result<()> {
    let name = |name: &Option<Arc<str>>| name.clone().unwrap_or_default();
    to.count(tests.stretches.len())?;
    for stretch in &tests.stretches {
        to.u64(stretch.end)?;
        to.bytes(name(&stretch.test).as_bytes())?;
    }
    to.count(tests.finished.len())?;
    for test in &tests.finished {
        to.bytes(test.name.as_bytes())?;
        to.0.write_all(&[RESULTS.iter().position(|r| *r == test.result).unwrap_or(0) as u8])?;
    }
    to.bytes(name(&tests.running).as_bytes())?;
    to.bytes(name(&tests.at).as_bytes())?;
    to.u64(tests.dropped)
}

pub(crate) fn take(from: &mut Source<impl Read>) -> Result<Tests, Flaw> {
    let mut tests = Tests::default();
    let name = |from: &mut Source<_>| {
        Ok(Some(Arc::from(from.text(MAX_PATH as u32)?)).filter(|name: &Arc<str>| !name.is_empty()))
    };
    for _ in 0..from.count(MAX_STRETCHES as u32)? {
        let stretch = Stretch { end: from.u64()?, test: name(from)? };
        // `Tests::of` searches the ranges, so they must ascend.
        if tests.stretches.last().is_some_and(|last| last.end >= stretch.end) {
            return from.flaw("a stretch of numbers ends before the one before it");
        }
        tests.stretches.push(stretch);
    }
    for _ in 0..from.count(MAX_FINISHED as u32)? {
        let name = from.text(MAX_PATH as u32)?;
        let [result] = from.array()?;
        let Some(&result) = RESULTS.get(usize::from(result)) else {
            return from.flaw(format!("a test of unknown result {result}"));
        };
        tests.finished.push(Test { name, result });
    }
    (tests.running, tests.at) = (name(from)?, name(from)?);
    tests.dropped = from.u64()?;
    Ok(tests)
}
