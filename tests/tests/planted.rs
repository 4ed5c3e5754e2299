//! The report has exactly what a module leaks on purpose, with sizes and backtraces.

use tests::{Guest, planted};

fn planted_leaks_are_reported(kernel: &str) {
    let boot = Guest::new(&format!("planted-{kernel}"), kernel)
        .module("leaky")
        .losing(planted::lost)
        .run(&["insmod:leaky", "workload"])
        .boot();
    boot.assert_ended_well();
    boot.assert_planted(&boot.report().objects);
    boot.assert_trustworthy();
}

#[test]
fn exactly_the_planted_leaks_are_reported_on_linux_6_1() {
    planted_leaks_are_reported("bookworm");
}

#[test]
fn exactly_the_planted_leaks_are_reported_on_linux_6_12() {
    planted_leaks_are_reported("bookworm-backports");
}

#[test]
fn exactly_the_planted_leaks_are_reported_on_linux_7_3() {
    planted_leaks_are_reported("trixie-backports");
}
