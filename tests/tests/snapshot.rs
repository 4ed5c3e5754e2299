//! A snapshot gives the same report that the plugin made when it wrote it.

use guest_symbols::memory::{GuestMemory, PhysAddr, StoppedMemory};
use memchr::memmem;
use snapshot::Snapshot;
use std::path::{Path, PathBuf};
use tests::assert_fields;
use tests::program::{leak, scratch};
use tests::report::without_times;
use tests::{Boot, Finished, Guest, Program, planted, report};

/// `leak check --each` of a snapshot.
fn check(snapshot: &Path, words: &str) -> Finished {
    Program::new(leak()).arg("check").arg(snapshot).arg("--each").args(words).run()
}

/// A guest that leaks, and the path of its snapshot.
fn guest(test: &str) -> (Guest, PathBuf) {
    // Not in the test's own folder, which booting empties.
    let snapshot = scratch(&format!("{test}-file")).join("snapshot");
    let guest = Guest::new(test, "bookworm-backports").module("leaky").losing(planted::lost);
    (guest.option(&format!("snapshot={}", snapshot.display())), snapshot)
}

fn assert_same(boot: &Boot, online: &str, offline: &Finished) {
    assert_fields!(boot.hint(); offline.status => Some(0), offline.stderr.as_str() => "");
    assert!(without_times(online) == without_times(&offline.stdout), "{}\n{}", boot.hint(), offline.stdout);
}

#[test]
fn a_snapshot_gives_the_same_report() {
    let (guest, snapshot) = guest("snapshot");
    let boot = guest.run(&["insmod:leaky", "workload"]).option("audit=on").option("why=leaky").boot();
    boot.assert_ended_well();
    boot.assert_planted(&boot.report().objects);
    assert_same(&boot, &boot.stderr, &check(&snapshot, "--audit --why leaky"));
    // Options only add lines after the objects and the summary.
    let short = check(&snapshot, "");
    assert!(boot.stderr.starts_with(short.stdout.split("libleak: ").next().unwrap()), "{}", short.stdout);
    let summary = format!("libleak: {} unreferenced", 8 - boot.hidden_objects());
    assert!(short.stdout.lines().last().is_some_and(|line| line.starts_with(&summary)), "{}", short.stdout);

    let whole = std::fs::read(&snapshot).unwrap();
    let cut = snapshot.with_extension("cut");
    std::fs::write(&cut, &whole[..whole.len() / 2]).unwrap();
    let refused = check(&cut, "");
    assert_fields!(""; refused.status => Some(1), refused.stdout.as_str() => "");
    for word in ["leak: error: ", "snapshot.cut is damaged", "part \"memory\"", "the file ends there"] {
        assert!(refused.stderr.contains(word), "no \"{word}\" in: {}", refused.stderr);
    }
}

#[test]
fn the_last_snapshot_stands() {
    let (guest, snapshot) = guest("snapshot-scan");
    let boot = guest.run(&["insmod:leaky", "sleep:5"]).option("scan=2").option("min-age=0").boot();
    boot.assert_ended_well();
    boot.assert_planted_while_running();
    let last = boot.reports().pop().unwrap().summary.line;
    let offline = check(&snapshot, "");
    let reports = report::parse(&offline.stdout);
    // Objects of an earlier report are not in this one.
    assert_eq!(reports.len(), 1, "{}", offline.stdout);
    assert!(reports[0].objects.len() < 2, "{}", offline.stdout);
    assert_eq!(without_times(&last), without_times(&reports[0].summary.line), "{}", boot.hint());
    let folder = std::fs::read_dir(snapshot.parent().unwrap()).unwrap();
    assert_eq!(folder.count(), 1, "a temporary file stays");
}

#[test]
fn a_snapshot_that_cannot_be_written_costs_a_warning_and_no_report() {
    let (_, snapshot) = guest("snapshot-warning");
    // A file cannot replace a folder. That is noticed only at the end.
    std::fs::create_dir_all(snapshot.join("full")).unwrap();
    let guest = Guest::new("snapshot-warning-boot", "bookworm-backports");
    let boot = guest.option(&format!("snapshot={}", snapshot.display())).run(&["sleep:1"]).boot();
    assert_eq!(boot.status, Some(0), "{}", boot.hint());
    let messages = boot.messages();
    assert!(matches!(messages[..], [m] if m.starts_with("warning: cannot write snapshot ")), "{messages:?}");
    assert!(boot.report().summary.live > 1_000, "{}", boot.hint());
}

/// Whether one page of RAM contains these bytes.
fn holds(snapshot: &Path, bytes: &[u8]) -> bool {
    let snapshot = Snapshot::open(snapshot).unwrap();
    let memory = snapshot.moment().memory;
    let mut ranges = memory.ranges().iter().map(|r| memory.run(PhysAddr(r.start), usize::MAX));
    ranges.any(|ram| memmem::find(ram, bytes).is_some())
}

#[test]
fn a_trimmed_snapshot_gives_the_same_report_and_has_no_file_of_the_guest() {
    let (guest, whole) = guest("snapshot-trim");
    // Neither arguments of processes nor the console contain this text.
    let boot = guest
        .script("secret", "#!/bin/sh\nseq 777000 777400 | tr 0-9 a-j >/tmp/secret\n")
        .run(&["insmod:leaky", "workload", "secret"])
        .boot();
    boot.assert_ended_well();
    let trimmed = whole.with_extension("trimmed");
    let done = Program::new(leak()).arg("trim").arg(&whole).arg(&trimmed).run();
    assert_fields!(boot.hint(); done.status => Some(0), done.stderr.as_str() => "");
    for words in ["", "--audit --why leaky", "--why swapper"] {
        let (ours, theirs) = (check(&whole, words), check(&trimmed, words));
        assert_fields!(boot.hint(); theirs.status => Some(0), theirs.stderr.as_str() => "");
        assert!(without_times(&ours.stdout) == without_times(&theirs.stdout), "{words}: {}", theirs.stdout);
    }
    let size = |path: &Path| std::fs::metadata(path).unwrap().len();
    assert!(size(&trimmed) < size(&whole) / 2, "{} of {}", size(&trimmed), size(&whole));
    // 777300 and the next numbers, as tr writes them.
    let secret = b"hhhdaa\nhhhdab\nhhhdac\n";
    assert_fields!(boot.hint(); holds(&whole, secret) => true, holds(&trimmed, secret) => false);
    let folder = std::fs::read_dir(whole.parent().unwrap()).unwrap();
    assert_eq!(folder.count(), 2, "a temporary file stays");
}
