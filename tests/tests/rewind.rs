//! A guest that is loaded from a snapshot of its past: what it allocates from then on is reported, and what it had
//! allocated in a future that never came is not.

use std::process::Command;
use tests::monitor::{Monitor, wait_for};
use tests::program::scratch;
use tests::{Guest, planted};

/// Boots a guest that is saved, leaks, and is loaded again to leak once more, and compares. As elsewhere a dead word may
/// hide a leak: then it is done again, thrice at most.
fn rewind(test: &str, option: &str) {
    for last in [false, false, true] {
        let differences = rewind_once(test, option);
        if last || differences.iter().any(|d| !d.starts_with("not reported: ")) {
            assert!(differences.is_empty(), "{}", differences.join("\n"));
        }
        if differences.is_empty() {
            break;
        }
    }
}

fn rewind_once(test: &str, option: &str) -> Vec<String> {
    let folder = scratch(&format!("{test}-files"));
    let (console, socket, disk) = (folder.join("console"), folder.join("monitor"), folder.join("disk.qcow2"));
    let made = Command::new("qemu-img").args(["create", "-q", "-f", "qcow2"]).arg(&disk).arg("64M").status();
    assert!(made.expect("qemu-img runs").success());
    let guest = Guest::new(test, "bookworm-backports")
        .option(option)
        .module("leaky")
        .run(&["sleep:2", "insmod:leaky", "sleep:3"])
        .console(&console)
        .monitor(&socket)
        .qemu_arg("-drive")
        .qemu_arg(&format!("file={},if=none,format=qcow2", disk.display()));
    let boot = std::thread::scope(|scope| {
        let boot = scope.spawn(|| guest.boot());
        wait_for(&console, "libleak-guest: begin sleep:2");
        let mut monitor = Monitor::connect(&socket);
        let saved = monitor.command("savevm then");
        assert!(!saved.contains("Error"), "{saved}");
        wait_for(&console, "libleak-guest: end insmod:leaky 0");
        let loaded = monitor.command("loadvm then");
        assert!(!loaded.contains("Error"), "{loaded}");
        boot.join().expect("the guest boots")
    });
    boot.assert_ended_well();
    assert!(boot.stderr.contains("libleak: note: the guest went back in time 1 times"), "{}", boot.hint());
    let planted = planted::planted(&boot.console);
    assert_eq!(planted.len(), 16, "leaky.c plants 8, twice; {}", boot.hint());
    let objects = boot.report().objects;
    // What came to pass may lie where what did not had lain.
    planted::differences(&planted[8..], &objects)
}

#[test]
fn after_loadvm_only_what_came_to_pass_is_reported() {
    rewind("rewind", "live=hooks");
}

/// Some 30,000 objects are known by the kernel's books alone, and none of them is a leak.
#[test]
fn what_was_allocated_before_is_no_leak_either() {
    rewind("rewind-slab", "live=slab");
}
