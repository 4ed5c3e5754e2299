//! A dead word does not hide a lost object.

use std::collections::BTreeSet;
use tests::{Boot, Guest};

/// The addresses that a module says it lost, as "NAME: leak 0xADDRESS", perhaps with a word before the address.
fn lost(boot: &Boot, module: &str) -> BTreeSet<u64> {
    let start = format!("{module}: leak ");
    let last = |line: &str| Some(line.split_once(&start)?.1.split_whitespace().last()?.strip_prefix("0x")?.to_owned());
    boot.console.lines().filter_map(|line| u64::from_str_radix(&last(line)?, 16).ok()).collect()
}

/// Boots once: what is hidden now and then is to be seen.
fn nothing_is_hidden(kernel: &str, module: &str, objects: usize) {
    let step = format!("insmod:{module}");
    let boot = Guest::new(&format!("hidden-{kernel}-{module}"), kernel).module(module).run(&[&step]).boot();
    boot.assert_ended_well();
    let lost = lost(&boot, module);
    assert_eq!(lost.len(), objects, "{}", boot.hint());
    let reported: BTreeSet<u64> = boot.report().objects.iter().map(|o| o.address).collect();
    let (hidden, more): (Vec<_>, Vec<_>) = (lost.difference(&reported).collect(), reported.difference(&lost).collect());
    assert!(hidden.is_empty() && more.is_empty(), "hidden {hidden:x?}, not lost {more:x?}; {}", boot.hint());
    boot.assert_trustworthy();
}

/// What kthread() had in registers is saved by the thread's function, which is in a module.
#[test]
fn kthread_s_registers_hide_nothing_on_linux_6_1() {
    nothing_is_hidden("bookworm", "kthread_hides", 24);
}

#[test]
fn kthread_s_registers_hide_nothing_on_linux_6_12() {
    nothing_is_hidden("bookworm-backports", "kthread_hides", 24);
}

#[test]
fn kthread_s_registers_hide_nothing_on_linux_7_3() {
    nothing_is_hidden("trixie-backports", "kthread_hides", 24);
}
