//! Ways to run QEMU that change the machine under the plugin: hot-plugged memory and vCPUs, guests
//! loaded from a file, and QEMU in the background. `scripts/ways` tries all of them.

use std::process::Command;
use std::time::Duration;
use tests::assert_has;
use tests::monitor::{Monitor, wait_for};
use tests::program::{plugin_argument, qemu, scratch};
use tests::{Boot, Guest, Program, planted};

fn assert_planted(boot: &Boot) {
    boot.assert_planted(&boot.report().objects);
    boot.assert_trustworthy();
}

/// Hot-plugged memory contains objects and references. One thread runs all vCPUs.
#[test]
fn memory_that_is_plugged_in_on_one_thread() {
    let folder = scratch("ways-memory-files");
    let (console, socket) = (folder.join("console"), folder.join("monitor"));
    let guest = Guest::new("ways-memory", "bookworm-backports")
        .accel("tcg,thread=single")
        .memory_words("256M,slots=2,maxmem=1G")
        .append("memhp_default_state=online")
        .module("leaky")
        .losing(planted::lost)
        .console(&console)
        .monitor(&socket)
        .run(&["sleep:6", "workload", "insmod:leaky"]);
    let boot = std::thread::scope(|scope| {
        let boot = scope.spawn(|| guest.boot());
        wait_for(&console, "libleak-guest: begin sleep:6");
        let mut monitor = Monitor::connect(&socket);
        monitor.command("object_add memory-backend-ram,id=mem1,size=512M");
        let said = monitor.command("device_add pc-dimm,id=dimm1,memdev=mem1");
        assert!(!said.contains("Error"), "{said}");
        boot.join().expect("the guest boots")
    });
    boot.assert_ended_well();
    assert_planted(&boot);
}

/// The kernel is already running when its first block is seen.
#[test]
fn a_guest_that_is_loaded_on_the_command_line() {
    let folder = scratch("ways-loaded-files");
    let disk = folder.join("disk.qcow2");
    let made = Command::new("qemu-img").args(["create", "-q", "-f", "qcow2"]).arg(&disk).arg("64M").status();
    assert!(made.expect("qemu-img runs").success());
    let guest = |name: &str| {
        Guest::new(name, "bookworm-backports")
            .module("leaky")
            .run(&["sleep:5", "insmod:leaky", "sleep:1"])
            .monitor(&folder.join(format!("{name}-monitor")))
            .qemu_arg("-drive")
            .qemu_arg(&format!("file={},if=none,format=qcow2", disk.display()))
    };
    let console = folder.join("console");
    let saved = guest("ways-saved").without_plugin().console(&console);
    std::thread::scope(|scope| {
        scope.spawn(|| saved.boot());
        wait_for(&console, "libleak-guest: begin sleep:5");
        let mut monitor = Monitor::connect(&folder.join("ways-saved-monitor"));
        let said = monitor.command("savevm then");
        assert!(!said.contains("Error"), "{said}");
    });
    let boot = guest("ways-loaded").losing(planted::lost).qemu_arg("-loadvm").qemu_arg("then").boot();
    assert_eq!(boot.status, Some(0), "{}", boot.hint());
    assert!(boot.stderr.contains("came from elsewhere"), "{}", boot.hint());
    let report = boot.report();
    boot.assert_planted(&report.objects);
    // Earlier allocations are unknown, and no counter speaks against the report because of that.
    let none = "0 unmatched returns, 0 unwatched sites, 0 unknown frees, 0 missed frees, 0 stale";
    assert!(report.summary.line.contains(none), "{}", report.summary.line);
}

/// A guest that suspends to RAM, is woken, and then leaks.
fn suspended() -> Boot {
    let folder = scratch("ways-suspended-files");
    let (console, socket) = (folder.join("console"), folder.join("monitor"));
    let _ = std::fs::remove_file(&console);
    let suspend = "#!/bin/sh\necho deep >/sys/power/mem_sleep && echo mem >/sys/power/state && echo woken\n";
    let guest = Guest::new("ways-suspended", "bookworm-backports")
        .script("suspend", suspend)
        .module("leaky")
        .run(&["suspend", "insmod:leaky"])
        .console(&console)
        .monitor(&socket);
    std::thread::scope(|scope| {
        let boot = scope.spawn(|| guest.boot());
        wait_for(&console, "PM: suspend entry (deep)");
        let mut monitor = Monitor::connect(&socket);
        // The guest prints the line before it is suspended.
        let mut is_running = || !monitor.command("info status").contains("suspended");
        (0..600).take_while(|_| is_running()).for_each(|_| std::thread::sleep(Duration::from_millis(100)));
        monitor.command("system_wakeup");
        boot.join().expect("the guest boots")
    })
}

/// Waking resets the CPUs, and the kernel continues.
#[test]
fn a_guest_that_was_suspended_to_ram() {
    let boot = suspended();
    boot.assert_ended_well();
    boot.assert_trustworthy();
    assert!(boot.console.contains("woken"), "{}", boot.hint());
    boot.assert_planted(&boot.report().objects);
}

#[test]
fn in_the_background_reports_need_a_file() {
    let done = Program::new(qemu("installed"))
        .args("-nodefaults -no-user-config -display none -daemonize -plugin")
        .arg(plugin_argument(&[]))
        .limit(20)
        .run();
    assert_eq!(done.status, Some(1), "{}", done.stderr);
    let [message] = done.messages()[..] else { panic!("{}", done.stderr) };
    assert!(message.starts_with("error: "));
    assert_has(message, &["-daemonize", "report=PATH"]);
}
