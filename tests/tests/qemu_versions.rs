//! The same libleak.so in the newest QEMU, which has another plugin API than the installed one.

use tests::{Guest, planted};

#[test]
fn planted_leaks_are_reported_in_the_newest_qemu() {
    let boot = Guest::new("qemu-new", "bookworm-backports")
        .qemu("new")
        .module("leaky")
        .losing(planted::lost)
        .run(&["insmod:leaky", "workload"])
        .boot();
    boot.assert_ended_well();
    boot.assert_planted(&boot.report().objects);
    boot.assert_trustworthy();
}

#[test]
fn a_guest_in_the_newest_qemu_is_paused_for_scans() {
    let boot = Guest::new("qemu-new-scan", "bookworm-backports")
        .qemu("new")
        .module("leaky")
        .losing(planted::lost)
        .option("scan=3")
        .option("min-age=0")
        .run(&["insmod:leaky", "sleep:8"])
        .boot();
    boot.assert_ended_well();
    boot.assert_planted_while_running();
    boot.assert_trustworthy();
}
