//! A guest under the load of all stress-ng stressors leaks nothing. Scans during the load and the
//! last report are empty.
//!
//! LIBLEAK_STRESS_SECONDS sets the duration. Rare failures need minutes or an hour.

use tests::Guest;
use tests::assert_has;

fn nothing_is_reported_under_load(kernel: &str) {
    let seconds: u32 = match std::env::var("LIBLEAK_STRESS_SECONDS") {
        Ok(n) => n.parse().expect("LIBLEAK_STRESS_SECONDS is a number"),
        Err(_) => 20,
    };
    let step = format!("stress:{seconds}");
    let boot = Guest::new(&format!("stress-{kernel}"), kernel)
        .memory(1024)
        .option("scan=5")
        // On a busy host, the last round of the load may end late.
        .limit(240 + 2 * seconds)
        .alone()
        .run(&[&step])
        .boot();
    boot.assert_ended_well();
    let reports = boot.reports();
    assert!(reports.len() > 2, "{} reports; {}", reports.len(), boot.hint());
    for report in &reports {
        assert_eq!(report.objects, [], "{}", boot.hint());
        assert!(report.summary.is_trustworthy(), "{}; {}", report.summary.line, boot.hint());
    }
    // A load that did not start would leak nothing either. An idle guest makes about 100,000
    // allocations by then, a guest under load at least twice as many.
    boot.assert_trustworthy();
    let turns = boot.console.lines().filter(|line| line.starts_with("stress: ")).count();
    assert!(turns > 20, "only {turns} turns; {}", boot.hint());
    assert_has(&boot.console, &["stress: done"]);
    let allocations = reports[reports.len() - 1].summary.allocations;
    assert!(allocations > 150_000, "only {allocations} allocations; {}", boot.hint());
}

#[test]
fn nothing_is_reported_under_load_on_linux_6_1() {
    nothing_is_reported_under_load("bookworm");
}

#[test]
fn nothing_is_reported_under_load_on_linux_6_12() {
    nothing_is_reported_under_load("bookworm-backports");
}

/// Runs only if a long load is requested.
#[test]
fn nothing_is_reported_under_long_load_on_linux_7_3() {
    if std::env::var_os("LIBLEAK_STRESS_SECONDS").is_some() {
        nothing_is_reported_under_load("trixie-backports");
    }
}
