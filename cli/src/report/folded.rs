//! Folded stacks for flame graphs: `outermost;...;innermost BYTES`.

use super::lines::Run;
use super::words::function;
use std::collections::BTreeMap;

/// All leaks by stack. If a leak belongs to a test, the test is the outermost frame.
pub fn write(runs: &[Run]) -> String {
    let mut bytes: BTreeMap<String, u64> = BTreeMap::new();
    for run in runs {
        let of_tests = run.tests.iter().flat_map(|test| test.leaks.iter().map(|leak| (Some(test.name.as_str()), leak)));
        for (test, leak) in of_tests.chain(run.others.iter().map(|leak| (None, leak))) {
            let frames = leak.frames.iter().rev().map(function);
            let stack: Vec<String> = test.map(str::to_owned).into_iter().chain(frames).map(|f| clean(&f)).collect();
            *bytes.entry(stack.join(";")).or_default() += leak.bytes();
        }
    }
    bytes.iter().map(|(stack, bytes)| format!("{stack} {bytes}\n")).collect()
}

/// Replaces the separators of frames and counts.
fn clean(name: &str) -> String {
    name.replace(|c: char| c == ';' || c.is_whitespace(), "_")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::lines::tests::text;

    #[test]
    fn stacks_begin_with_their_test() {
        let run = Run::read(&text()).unwrap();
        let want = "died;leak_d_[zoo];kmalloc 16\nleak_c_[zoo];kmalloc 8\none;leak_a_[zoo];kmalloc 64\none;leak_b_[zoo];kmalloc 32\n";
        assert_eq!(write(std::slice::from_ref(&run)), want);
        assert!(write(&[run.clone(), run]).starts_with("died;leak_d_[zoo];kmalloc 32\n"));
    }
}
