//! Other machine types, and guests that end in another way than by powering off.

use tests::{Boot, Guest, planted};

fn guest(test: &str) -> Guest {
    Guest::new(test, "bookworm-backports").module("leaky").losing(planted::lost).run(&["insmod:leaky"])
}

fn assert_planted(boot: &Boot) {
    boot.assert_planted(&boot.report().objects);
    boot.assert_trustworthy();
}

#[test]
fn memory_on_both_sides_of_the_hole_below_4_gib() {
    // QEMU has one block of RAM. The guest sees its upper part at other addresses, depending on the
    // machine.
    let boot = guest("machines-memory").machine("q35").memory(6144).run(&["workload"]).boot();
    boot.assert_ended_well();
    assert_planted(&boot);
}

#[test]
fn page_tables_of_five_levels() {
    let boot = guest("machines-la57").cpu("max").run(&["workload"]).boot();
    boot.assert_ended_well();
    assert_planted(&boot);
    // No kernel address is as low with four levels, so there were five.
    let lowest = 0xffff_8000_0000_0000;
    let objects = boot.report().objects;
    assert!(objects.iter().any(|o| o.address >> 56 == 0xff && o.address < lowest), "{objects:x?}");
}

#[test]
fn booted_from_a_disk_through_a_boot_loader() {
    let boot = guest("machines-disk").from_disk().run(&["workload"]).boot();
    boot.assert_ended_well();
    assert_planted(&boot);
}

#[test]
fn no_kaslr() {
    let boot = guest("machines-nokaslr").append("nokaslr").run(&["workload"]).boot();
    boot.assert_ended_well();
    assert_planted(&boot);
}

#[test]
fn a_guest_that_reboots() {
    // QEMU exits then, because of the tests' options.
    let boot = guest("machines-reboot").append("libleak.off=reboot").boot();
    boot.assert_ended_well();
    assert_planted(&boot);
}

#[test]
fn a_guest_that_is_killed() {
    let boot = guest("machines-killed").run(&["sleep:1000"]).limit(40).boot();
    assert_eq!(boot.status, Some(124), "{}", boot.hint());
    assert_eq!(boot.messages(), [""; 0], "{}", boot.hint());
    assert_planted(&boot);
}
