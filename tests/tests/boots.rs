//! One kernel after the other in one QEMU: each is tracked from its start, and each has its report.

use std::time::Duration;
use tests::monitor::{Monitor, wait_for};
use tests::program::scratch;
use tests::{Boot, Guest, planted};

/// Reboots once: the clock on the board outlives a reset.
const REBOOT: &str = "#!/bin/sh
[ \"$(date +%Y)\" = 2001 ] && exit
date -s '2001-02-03 04:05:06' && hwclock -w -u && reboot -f
";

/// Boots thrice at most, since a dead word may hide a leak, and compares what each kernel of the guest reported with what
/// `leaky` lost in it: `leaky` says in which it was loaded, and their number is that of the reports.
fn assert_each_boot(leaky: &[bool], start: impl Fn() -> Boot) -> Boot {
    for last in [false, false, true] {
        let boot = start();
        assert_eq!(boot.status, Some(0), "{}\n{}", boot.hint(), boot.stderr);
        assert_eq!(boot.messages(), [""; 0], "{}", boot.hint());
        let (planted, reports) = (planted::planted(&boot.console), boot.reports());
        let times = leaky.iter().filter(|is| **is).count();
        assert_eq!((reports.len(), planted.len()), (leaky.len(), 8 * times), "{}\n{}", boot.hint(), boot.stderr);
        let mut planted = planted.chunks(8);
        let mut differences = Vec::new();
        for (number, (report, is_loaded)) in (1..).zip(reports.iter().zip(leaky)) {
            let planted = if *is_loaded { planted.next().unwrap_or_default() } else { &[] };
            differences.extend(planted::differences(planted, &report.objects));
            assert!(report.summary.is_trustworthy(), "{}; {}", report.summary.line, boot.hint());
            let note = format!("libleak: note: this is boot {number} of the guest");
            assert_eq!(boot.stderr.contains(&note), number > 1, "{}", boot.hint());
        }
        if last || differences.iter().any(|d| !d.starts_with("not reported: ")) {
            assert!(differences.is_empty(), "{}\n{}", boot.hint(), differences.join("\n"));
        }
        if differences.is_empty() {
            return boot;
        }
    }
    unreachable!("the last time it is asserted")
}

/// Once by the guest itself, to the same kernel at another place, and then by kexec to another one.
#[test]
fn a_reboot_and_a_kexec() {
    let guest = Guest::new("boots-reboot", "bookworm-backports")
        .module("leaky")
        .script("reboot-once", REBOOT)
        .kexec("bookworm")
        .reboots()
        .run(&["insmod:leaky", "reboot-once", "kexec"]);
    let boot = assert_each_boot(&[true, true, true], || guest.boot());
    let releases: Vec<&str> = boot.stderr.lines().filter_map(|l| Some(l.split_once("hooks hit; Linux ")?.1)).collect();
    let [first, second, third] = releases[..] else { panic!("not three: {releases:?}") };
    assert!(first == second && first != third, "{releases:?}");
}

/// In the middle of what it does.
#[test]
fn a_reset_by_the_monitor() {
    let folder = scratch("boots-reset-files");
    let (console, socket) = (folder.join("console"), folder.join("monitor"));
    let guest = Guest::new("boots-reset", "trixie-backports")
        .module("leaky")
        .reboots()
        .run(&["workload", "insmod:leaky"])
        .console(&console)
        .monitor(&socket);
    assert_each_boot(&[false, true], || {
        // It has to be this boot that says so.
        let _ = std::fs::remove_file(&console);
        std::thread::scope(|scope| {
            let boot = scope.spawn(|| guest.boot());
            wait_for(&console, "libleak-guest: begin workload");
            std::thread::sleep(Duration::from_secs(1));
            let said = Monitor::connect(&socket).command("system_reset");
            assert!(!said.contains("Error"), "{said}");
            boot.join().expect("the guest boots")
        })
    });
}
