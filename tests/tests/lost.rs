//! The module `tests/modules/lost.c` loses objects in many ways. With `history=on` the report names
//! the function that loses each.

use detector::report::{Leak, Report, json};
use std::collections::BTreeMap;
use tests::program::scratch;
use tests::{Boot, Guest};

/// Reads lines `lost: WAY 0xADDRESS FUNCTION`, or `held: WAY 0xADDRESS`, of a console. The last
/// word of held objects is empty.
fn told(console: &str, what: &str) -> BTreeMap<u64, (String, String)> {
    let lines = console.lines().filter_map(|line| line.split_once(what).map(|(_, rest)| rest));
    let one = |line: &str| {
        let mut words = line.split_whitespace().map(str::to_owned);
        let way = words.next()?;
        let address = u64::from_str_radix(words.next()?.strip_prefix("0x")?, 16).ok()?;
        Some((address, (way, words.next().unwrap_or_default())))
    };
    lines.filter_map(one).collect()
}

/// Boots a guest that loses and holds objects. Returns its output and its only report.
fn lose(test: &str, kernel: &str) -> (Boot, Report) {
    let file = scratch(&format!("{test}-report")).join("report.jsonl");
    let boot = Guest::new(test, kernel)
        .module("lost")
        .run(&["insmod:lost", "sleep:1"])
        .option("history=on")
        .option(&format!("report={}", file.display()))
        .boot();
    boot.assert_ended_well();
    assert!(boot.console.contains("lost: done"), "{}", boot.hint());
    let text = std::fs::read_to_string(&file).unwrap_or_else(|why| panic!("{}: {why}", file.display()));
    let mut reports = json::read(&text).expect("lines of JSON");
    assert_eq!(reports.len(), 1, "{}", boot.hint());
    (boot, reports.remove(0))
}

/// The function that lost an object, without the suffixes of compilers.
fn function(leak: &Leak) -> Option<&str> {
    let function = leak.loss.as_ref()?.by.as_ref()?.function.as_ref()?;
    Some(function.name.split('.').next().unwrap_or_default()).filter(|_| function.module.as_deref() == Some("lost"))
}

fn the_function_is_named(kernel: &str) {
    let (boot, report) = lose(&format!("lost-{kernel}"), kernel);
    let (lost, held) = (told(&boot.console, "lost: "), told(&boot.console, "held: "));
    let lost: BTreeMap<_, _> = lost.into_iter().filter(|(_, (_, function))| !function.is_empty()).collect();
    assert!(lost.len() >= 30 && held.len() == 2, "{lost:x?} {held:x?}");
    let leaks: BTreeMap<u64, &Leak> =
        report.groups.iter().flat_map(|g| &g.leaks).map(|leak| (leak.addr, leak)).collect();
    let mut wrong = Vec::new();
    for (address, (way, by)) in &lost {
        match leaks.get(address) {
            // Some word may look like a reference: see tests::hidden.
            None => wrong.push(format!("{way} is not reported")),
            Some(leak) if function(leak) != Some(by) => {
                wrong.push(format!("{way}: lost by {by}, reported: {:#?}", leak.loss));
            }
            Some(_) => {}
        }
    }
    let others = leaks.keys().filter(|address| !lost.contains_key(address));
    wrong.extend(others.map(|address| format!("{address:#x} was not lost: {:?}", held.get(address))));
    assert!(wrong.is_empty(), "{}\n{}", wrong.join("\n"), boot.hint());
}

#[test]
fn the_function_that_loses_an_object_is_named_on_linux_6_1() {
    the_function_is_named("bookworm");
}

#[test]
fn the_function_that_loses_an_object_is_named_on_linux_6_12() {
    the_function_is_named("bookworm-backports");
}

#[test]
fn the_function_that_loses_an_object_is_named_on_linux_7_3() {
    the_function_is_named("trixie-backports");
}
