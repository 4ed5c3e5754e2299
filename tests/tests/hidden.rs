//! Stale words do not hide lost objects.
//!
//! A word that equals an address by chance may hide one object now and then, which
//! [`tests::hidden`] counts and bounds. The words here hid one object in every boot, on every
//! kernel.

use std::collections::BTreeSet;
use tests::{Guest, Lost};

/// The addresses that the module `kthread_hides` prints as lost.
fn lost(console: &str) -> BTreeSet<u64> {
    let address = |line: &str| Some(line.split_once("kthread_hides: leak 0x")?.1.trim().to_owned());
    console.lines().filter_map(|line| u64::from_str_radix(&address(line)?, 16).ok()).collect()
}

fn nothing_is_hidden(kernel: &str) {
    let boot = Guest::new(&format!("hidden-{kernel}"), kernel)
        .module("kthread_hides")
        .losing(|console| lost(console).into_iter().map(Lost::alone).collect())
        .run(&["insmod:kthread_hides"])
        .boot();
    boot.assert_ended_well();
    let lost = lost(&boot.console);
    assert_eq!(lost.len(), 24, "{}", boot.hint());
    let reported: BTreeSet<u64> = boot.report().objects.iter().map(|o| o.address).collect();
    let more: Vec<_> = reported.difference(&lost).collect();
    assert!(more.is_empty(), "reported and not lost: {more:x?}; {}", boot.hint());
    boot.assert_trustworthy();
}

/// A thread's function saves kthread()'s registers. One of them is the freed `kthread_create_info`.
/// The function is in a module.
#[test]
fn kthread_s_registers_hide_nothing_on_linux_6_1() {
    nothing_is_hidden("bookworm");
}

#[test]
fn kthread_s_registers_hide_nothing_on_linux_6_12() {
    nothing_is_hidden("bookworm-backports");
}

#[test]
fn kthread_s_registers_hide_nothing_on_linux_7_3() {
    nothing_is_hidden("trixie-backports");
}
