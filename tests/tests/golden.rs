//! A snapshot that is kept in the tree gives the report that is kept beside it. `scripts/golden` makes both.

use std::path::PathBuf;
use tests::program::{leak, workspace};
use tests::report::without_times;
use tests::{Program, planted, report};

fn golden(name: &str) -> PathBuf {
    workspace().join("tests/golden").join(name)
}

fn text(name: &str) -> String {
    std::fs::read_to_string(golden(name)).unwrap_or_else(|e| panic!("tests/golden/{name}: {e}; run scripts/golden"))
}

#[test]
fn the_golden_snapshot_gives_the_golden_report() {
    let done =
        Program::new(leak()).arg("check").arg(golden("snapshot")).args("--each --audit --why create_worker").run();
    assert_eq!((done.status, done.stderr.as_str()), (Some(0), ""), "if its format is old, run scripts/golden");
    let (ours, theirs) = (without_times(&done.stdout), without_times(&text("report")));
    // A diff of the first line is more use than both texts.
    let differing = ours.lines().zip(theirs.lines()).find(|(ours, theirs)| ours != theirs);
    assert_eq!(differing, None, "if the change is meant, run scripts/golden");
    assert_eq!(ours.len(), theirs.len(), "{ours}");
}

/// What is kept as golden must be right.
#[test]
fn the_golden_report_has_the_planted_leaks_and_no_others() {
    let planted = planted::planted(&text("planted"));
    assert_eq!(planted.len(), 8);
    let reports = report::parse(&text("report"));
    assert_eq!(reports.len(), 1);
    let differences = planted::differences(&planted, &reports[0].objects);
    assert!(differences.is_empty(), "{}", differences.join("\n"));
    assert!(reports[0].summary.is_trustworthy(), "{}", reports[0].summary.line);
}
