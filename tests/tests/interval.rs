//! Scans of a running guest report each leak once, and the guest is not disturbed.

use tests::program::scratch;
use tests::{Guest, planted};

/// A guest that leaks and then waits long enough for two scans.
fn guest(test: &str) -> Guest {
    Guest::new(test, "bookworm-backports").module("leaky").losing(planted::lost).option("scan=3").run(&[
        "insmod:leaky",
        "sleep:8",
        "workload",
    ])
}

#[test]
fn leaks_are_reported_while_the_guest_runs() {
    let boot = guest("interval").option("min-age=0").boot();
    boot.assert_ended_well();
    boot.assert_planted_while_running();
    boot.assert_trustworthy();
}

#[test]
fn leaks_are_reported_while_the_guest_runs_with_4_vcpus() {
    let boot = guest("interval-4").smp(4).option("min-age=0").boot();
    boot.assert_ended_well();
    boot.assert_planted_while_running();
    boot.assert_trustworthy();
}

#[test]
fn leaks_are_reported_while_a_monitor_pauses_the_guest() {
    // Not in the target folder, since the path of a socket is limited.
    let socket = std::env::temp_dir().join(format!("libleak-{}.qmp", std::process::id()));
    let boot = guest("interval-qmp")
        .option("min-age=0")
        .option(&format!("qmp={}", socket.display()))
        .qemu_arg("-qmp")
        .qemu_arg(&format!("unix:{},server=on,wait=off", socket.display()))
        .boot();
    let _ = std::fs::remove_file(&socket);
    boot.assert_ended_well();
    boot.assert_planted_while_running();
    boot.assert_trustworthy();
}

#[test]
fn objects_younger_than_min_age_are_not_reported() {
    let boot = Guest::new("interval-young", "bookworm-backports")
        .module("leaky")
        .option("scan=3")
        .option("min-age=1000")
        .run(&["insmod:leaky", "sleep:8"])
        .boot();
    boot.assert_ended_well();
    let reports = boot.reports();
    assert!(reports.len() > 2, "{} reports; {}", reports.len(), boot.hint());
    assert!(reports.iter().all(|r| r.objects.is_empty()), "{}", boot.hint());
}

#[test]
fn reports_go_to_a_file() {
    let file = scratch("interval-file-report").join("report");
    let boot = guest("interval-file").option("min-age=0").option(&format!("report={}", file.display())).boot();
    boot.assert_ended_well();
    assert!(!boot.stderr.contains("unreferenced"), "{}", boot.hint());
    let reports = tests::report::parse(&std::fs::read_to_string(&file).expect("the report"));
    assert!(reports.len() > 2, "{} reports; {}", reports.len(), boot.hint());
    let objects: Vec<_> = reports.into_iter().flat_map(|r| r.objects).collect();
    boot.assert_planted(&objects);
}
