//! Several kernels in one QEMU: each is tracked from its start and has its own report.

use serde_json::{Value, json};
use std::time::Duration;
use tests::assert_fields;
use tests::control::{Places, order};
use tests::monitor::{Monitor, wait_for};
use tests::planted::Differences;
use tests::program::scratch;
use tests::{Boot, Guest, planted};

/// Reboots once. The hardware clock survives a reset and tells whether it happened.
const REBOOT: &str = "#!/bin/sh
[ \"$(date +%Y)\" = 2001 ] && exit
date -s '2001-02-03 04:05:06' && hwclock -w -u && reboot -f
";

/// Boots, and compares each kernel's report with what `leaky` lost in it. There is one report per
/// kernel, and `leaky` says for each whether the module was loaded.
fn assert_each_boot(leaky: &[bool], start: impl Fn() -> Boot) -> Boot {
    let boot = start();
    assert_eq!(boot.status, Some(0), "{}\n{}", boot.hint(), boot.stderr);
    assert_eq!(boot.messages(), [""; 0], "{}", boot.hint());
    let (planted, reports) = (planted::planted(&boot.console), boot.reports());
    let times = leaky.iter().filter(|is| **is).count();
    assert_fields!(
        format_args!("{}\n{}", boot.hint(), boot.stderr);
        reports.len() => leaky.len(),
        planted.len() => 8 * times,
    );
    let mut planted = planted.chunks(8);
    let mut differences = Differences::default();
    for (number, (report, is_loaded)) in (1..).zip(reports.iter().zip(leaky)) {
        let planted = if *is_loaded { planted.next().unwrap_or_default() } else { &[] };
        differences.extend(planted::differences(planted, &report.objects));
        assert!(report.summary.is_trustworthy(), "{}; {}", report.summary.line, boot.hint());
        let note = format!("libleak: note: this is boot {number} of the guest");
        assert_eq!(boot.stderr.contains(&note), number > 1, "{}", boot.hint());
    }
    boot.assert_agrees(&differences);
    boot
}

/// The guest reboots to the same kernel, at another address, and then starts another one by kexec.
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
    assert_fields!(format_args!("{releases:?}"); first => second, first != third => true);
}

/// A reset in the middle of the workload.
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
        // The line must come from this boot.
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

/// Scans never stop while the second kernel boots over the memory of the first. Until all CPUs are
/// up, most page descriptors are those of the first kernel. No report may be unreliable because of
/// that.
#[test]
fn a_kernel_that_boots_over_another_is_trusted_from_its_first_allocation_on() {
    let places = Places::new("boots-early");
    let socket = scratch("boots-early-monitor").join("monitor");
    let guest = Guest::new("boots-early", "bookworm-backports").reboots().monitor(&socket).run(&["workload"]);
    // The guest waits for orders after the workload.
    let guest = places.guest(guest);
    let (boot, reports) = std::thread::scope(|scope| {
        let boot = scope.spawn(|| guest.boot());
        let ready = "obey: ready";
        places.wait_for(ready);
        let mut orders = places.orders();
        let mut monitor = Monitor::connect(&socket);
        let said = monitor.command("system_reset");
        assert!(!said.contains("Error"), "{said}");
        let mut client = places.client();
        let mut reports = Vec::new();
        let mut done = false;
        while !done {
            done = places.console_text().matches(ready).count() > 1;
            // Scans are refused until the kernel has its allocators.
            reports.extend(client.answer(&json!({ "do": "scan", "min_age": 0 })).get("report").cloned());
        }
        order(&mut orders, "end");
        (boot.join().expect("the guest boots"), reports)
    });
    let is_early = |r: &&Value| r["figures"]["boot"] == 2 && r["figures"]["allocations"].as_u64() < Some(9_000);
    assert!(reports.iter().filter(is_early).count() > 5, "too few reports of the second boot's first moments");
    for report in reports {
        assert_fields!(
            format_args!("{report}");
            report.get("troubles") => None,
            &report["figures"]["unreferenced_objects"] => &json!(0),
        );
    }
    assert_eq!(boot.messages(), [""; 0], "{}", boot.hint());
}
