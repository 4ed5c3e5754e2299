//! A guest that is loaded from a snapshot of its past: what it allocates from then on is reported, and what it had
//! allocated in a future that never came is not.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};
use tests::program::scratch;
use tests::{Guest, planted};

/// Longest wait for anything to be seen.
const PATIENCE: Duration = Duration::from_secs(120);

/// Waits until a file holds a text.
fn wait_for(file: &Path, text: &str) {
    let began = Instant::now();
    while !std::fs::read(file).is_ok_and(|b| String::from_utf8_lossy(&b).contains(text)) {
        assert!(began.elapsed() < PATIENCE, "no \"{text}\" in {}", file.display());
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Gives QEMU's monitor a command and waits for the next prompt.
fn command(monitor: &mut UnixStream, command: &str) -> String {
    monitor.write_all(format!("{command}\n").as_bytes()).expect("the monitor takes a command");
    prompt(monitor)
}

fn prompt(monitor: &mut UnixStream) -> String {
    let mut said = Vec::new();
    while !said.ends_with(b"(qemu) ") {
        let mut byte = [0];
        monitor.read_exact(&mut byte).expect("the monitor answers");
        said.push(byte[0]);
    }
    String::from_utf8_lossy(&said).into_owned()
}

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
        .qemu_arg("-monitor")
        .qemu_arg(&format!("unix:{},server=on,wait=off", socket.display()))
        .qemu_arg("-drive")
        .qemu_arg(&format!("file={},if=none,format=qcow2", disk.display()));
    let boot = std::thread::scope(|scope| {
        let boot = scope.spawn(|| guest.boot());
        wait_for(&console, "libleak-guest: begin sleep:2");
        let mut monitor = UnixStream::connect(&socket).expect("the monitor is there");
        monitor.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        prompt(&mut monitor);
        let saved = command(&mut monitor, "savevm then");
        assert!(!saved.contains("Error"), "{saved}");
        wait_for(&console, "libleak-guest: end insmod:leaky 0");
        let loaded = command(&mut monitor, "loadvm then");
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
