//! The snapshot in tests/golden gives the report beside it. `scripts/golden` makes both.

use checker::sites::Sites;
use detector::Count;
use detector::control::By;
use detector::suppress::Suppressions;
use snapshot::Snapshot;
use std::path::PathBuf;
use tests::assert_fields;
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
    assert_fields!(
        format_args!("if its format is old, run scripts/golden");
        done.status => Some(0),
        done.stderr.as_str() => "",
    );
    let (ours, theirs) = (without_times(&done.stdout), without_times(&text("report")));
    // The first differing line is more useful than both texts.
    let differing = ours.lines().zip(theirs.lines()).find(|(ours, theirs)| ours != theirs);
    assert_eq!(differing, None, "if the change is meant, run scripts/golden");
    assert_eq!(ours.len(), theirs.len(), "{ours}");
}

/// The golden report itself must be right.
#[test]
fn the_golden_report_has_the_planted_leaks_and_no_others() {
    let planted = planted::planted(&text("planted"));
    assert_eq!(planted.len(), 8);
    let reports = report::parse(&text("report"));
    assert_eq!(reports.len(), 1);
    let differences = planted::differences(&planted, &reports[0].objects);
    assert!(differences.is_empty(), "{differences:#x?}");
    assert!(reports[0].summary.is_trustworthy(), "{}", reports[0].summary.line);
}

/// Live objects by site and by stack, and their holders, without a guest.
#[test]
fn the_golden_snapshot_is_counted_and_explained() {
    let snapshot = Snapshot::open(&golden("snapshot")).expect("the snapshot");
    let moment = snapshot.moment();
    let outcome = moment.check(None, &Suppressions::default()).expect("a check");
    let sites = Sites::of(&moment).expect("a count");
    assert_eq!(sites.total(), outcome.live);
    for by in [By::Site, By::Stack] {
        let top = sites.top(moment.names(), by);
        let mut sum = Count::default();
        top.iter().for_each(|place| sum += place.now);
        assert_eq!(sum, outcome.live, "{by:?}");
        assert_fields!(format_args!("{by:?}"); top.is_sorted_by(|a, b| a.now.bytes >= b.now.bytes) => true, top.len() > 100 => true);
        assert_eq!(sites.grown_since(&sites, moment.names(), by), [], "{by:?}");
        // All objects are new compared with an empty mark.
        let grown = sites.grown_since(&Sites::default(), moment.names(), by);
        assert_eq!(grown.len(), top.len(), "{by:?}");
    }
    let leaks: Vec<u64> = outcome.unreferenced.iter().filter(|u| u.direct).map(|u| u.leak.addr).collect();
    for &address in &leaks {
        let paths = moment.why(address + 1).expect("a check");
        let [path] = &paths[..] else { panic!("{address:#x}: not one path: {paths:?}") };
        assert_fields!(format_args!("{path:?}"); path.addr => address, path.holders.len() => 0);
    }
    let live = moment.objects.list().iter().filter(|(address, _)| !leaks.contains(address));
    let (address, _) = live.min_by_key(|(_, object)| object.sequence()).expect("an object");
    let paths = moment.why(*address).expect("a check");
    let [path] = &paths[..] else { panic!("{address:#x}: not one path: {paths:?}") };
    assert!(!path.holders.is_empty(), "{path:?}");
    assert!(moment.why(16).expect("a check").is_empty());
}
