//! A lost object from a cache is charged to the function that took it, not to the code that filled
//! the cache. Pools that still exist do not hide the objects that they handed out.

use std::collections::BTreeMap;
use tests::{Guest, Lost};

/// Lost objects by address, as `tests/modules/caches.c` prints them: each with its kind and the
/// function that took it.
fn lost(console: &str) -> BTreeMap<u64, (String, String)> {
    let lines = console.lines().filter_map(|line| Some(line.split_once("caches: leak ")?.1));
    lines
        .filter_map(|line| {
            let mut words = line.split_whitespace();
            let kind = words.next()?.to_owned();
            let address = u64::from_str_radix(words.next()?.strip_prefix("0x")?, 16).ok()?;
            Some((address, (kind, words.next()?.to_owned())))
        })
        .collect()
}

fn who_takes_is_reported(kernel: &str) {
    let guest = Guest::new(&format!("caches-{kernel}"), kernel).module("caches").run(&["insmod:caches"]);
    let boot = guest.losing(|console| lost(console).into_keys().map(Lost::alone).collect()).boot();
    boot.assert_ended_well();
    let mut missing = lost(&boot.console);
    let count = |of: &str| missing.values().filter(|(kind, _)| kind == of).count();
    assert_eq!((count("skb"), count("element")), (40, 48), "{}", boot.hint());
    let mut wrong = Vec::new();
    for object in boot.report().objects {
        let Some((kind, function)) = missing.remove(&object.address) else {
            wrong.push(format!("not lost: {object:x?}"));
            continue;
        };
        if !object.frames.iter().any(|frame| frame.starts_with(&format!("{function}+"))) {
            wrong.push(format!("{kind} taken by {function}: {object:x?}"));
        }
    }
    missing.retain(|address, _| !boot.is_hidden(*address));
    wrong.extend(missing.iter().map(|(address, what)| format!("not reported: {address:#x} {what:?}")));
    assert!(wrong.is_empty(), "{}\n{}", boot.hint(), wrong.join("\n"));
    boot.assert_trustworthy();
}

#[test]
fn who_takes_from_a_cache_is_reported_on_linux_6_1() {
    who_takes_is_reported("bookworm");
}

#[test]
fn who_takes_from_a_cache_is_reported_on_linux_6_12() {
    who_takes_is_reported("bookworm-backports");
}

#[test]
fn who_takes_from_a_cache_is_reported_on_linux_7_3() {
    who_takes_is_reported("trixie-backports");
}
