//! KFENCE's objects are live objects of their requested size. Its freed objects hold no references.

use std::collections::BTreeMap;
use tests::{Guest, Lost};

/// Sizes by address, as the module `kfence_leak` prints them.
fn lost(console: &str) -> BTreeMap<u64, u64> {
    let lines = console.lines().filter_map(|line| line.split_once("kfence_leak: leak "));
    lines
        .filter_map(|(_, rest)| {
            let mut words = rest.split(' ').skip(1);
            let address = u64::from_str_radix(words.next()?.strip_prefix("0x")?, 16).ok()?;
            Some((address, words.next()?.parse().ok()?))
        })
        .collect()
}

/// The module loses three kinds of objects: objects of the pool, objects to which only freed
/// objects of the pool refer, and an object of a destroyed cache. `interval` is in milliseconds.
fn lost_objects_are_reported(kernel: &str, interval: u32) {
    let boot = Guest::new(&format!("kfence-{kernel}"), kernel)
        .append(&format!("kfence.sample_interval={interval}"))
        .module("kfence_leak")
        .losing(|console| lost(console).into_keys().map(Lost::alone).collect())
        .run(&["insmod:kfence_leak", "workload"])
        .boot();
    boot.assert_ended_well();
    let lost = lost(&boot.console);
    let done = format!("kfence_leak: done {}", lost.len());
    assert!(boot.console.lines().any(|line| line.ends_with(&done)), "no \"{done}\"; {}", boot.hint());
    assert_eq!(lost.len(), 33, "16 of the pool, 16 by a holder there, 1 zombie; {}", boot.hint());
    for object in boot.report().objects {
        let size = lost.get(&object.address);
        assert_eq!(size, Some(&object.size), "the size of {:#x}; {}", object.address, boot.hint());
    }
    boot.assert_trustworthy();
}

#[test]
fn lost_objects_are_reported_on_linux_6_12() {
    lost_objects_are_reported("bookworm-backports", 4);
}

#[test]
fn lost_objects_are_reported_on_linux_7_3() {
    lost_objects_are_reported("trixie-backports", 1);
}

#[test]
fn nothing_is_reported_with_a_full_pool() {
    let boot = Guest::new("kfence-clean", "bookworm-backports")
        .append("kfence.sample_interval=1 kfence.deferrable=1 kfence.check_on_panic=1")
        .run(&["workload"])
        .boot();
    boot.assert_ended_well();
    assert_eq!(boot.report().objects, [], "{}", boot.hint());
    boot.assert_trustworthy();
}
