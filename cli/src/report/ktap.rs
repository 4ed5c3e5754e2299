//! KTAP, the kernel's format of test results (Documentation/dev-tools/ktap.rst).

use super::lines::{Outcome, Run};
use super::words::{KERNEL, describe, stacks};
use detector::report::Group;

/// One result line, and its diagnostics.
struct Line<'a> {
    name: &'a str,
    ok: bool,
    skip: bool,
    leaks: &'a [Group],
    why: Option<String>,
}

/// Writes all runs as one flat list of results. Diagnostics stand before their result, as in the
/// kernel's own tests.
pub fn write(runs: &[Run]) -> String {
    let mut lines = Vec::new();
    for run in runs {
        lines.extend(run.tests.iter().map(|test| Line {
            name: &test.name,
            ok: test.leaks.is_empty() && test.outcome != Outcome::NotOk,
            skip: test.leaks.is_empty() && test.outcome == Outcome::Skip,
            leaks: &test.leaks,
            why: (test.outcome == Outcome::NotOk).then(|| "the test itself failed".to_owned()),
        }));
        if !run.reports.is_empty() {
            let ok = run.others.is_empty();
            lines.push(Line { name: KERNEL, ok, skip: false, leaks: &run.others, why: None });
        }
        if let Some(why) = run.failure() {
            lines.push(Line { name: "detector", ok: false, skip: false, leaks: &[], why: Some(why) });
        }
    }
    let mut text = format!("KTAP version 1\n1..{}\n", lines.len());
    for (i, line) in lines.iter().enumerate() {
        let leaks =
            if line.leaks.is_empty() { String::new() } else { describe(line.leaks) + "\n" + &stacks(line.leaks) };
        let why = line.why.iter().flat_map(|why| why.lines());
        why.chain(leaks.lines()).for_each(|said| text += &format!("# {said}\n"));
        let result = if line.ok { "ok" } else { "not ok" };
        // `#` starts a directive there.
        let name = line.name.replace('#', "_");
        text += &format!("{result} {} {name}{}\n", i + 1, if line.skip { " # SKIP" } else { "" });
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::lines::tests::text;

    #[test]
    fn results_are_numbered_and_leaks_stand_before_them() {
        let text = write(&[Run::read(&text().replace("\"three\"", "\"a#b\"")).unwrap(), Run::default()]);
        let results: Vec<&str> = text.lines().filter(|line| !line.starts_with('#')).collect();
        assert_eq!(
            results,
            [
                "KTAP version 1",
                "1..6",
                "not ok 1 one",
                "ok 2 two # SKIP",
                "not ok 3 a_b",
                "not ok 4 died",
                "not ok 5 kernel",
                "not ok 6 detector"
            ]
        );
        let first: Vec<&str> = text.lines().skip(2).take(2).collect();
        assert!(first[0].starts_with("# 2 leaks, 96 bytes") && first[1].starts_with("# unreferenced object"), "{text}");
        assert!(text.contains("#     leak_a+0x2/0x40 [zoo]\n"), "{text}");
        assert!(text.contains("# the test itself failed\nnot ok 3"), "{text}");
        assert!(text.contains("# no report was made\nnot ok 6"), "{text}");
    }
}
