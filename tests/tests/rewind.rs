//! Guests that load a saved state. Allocations from then on are reported at the end. Allocations of
//! the abandoned time are reported when it is abandoned, and not later.

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;
use tests::assert_fields;
use tests::assert_has;
use tests::monitor::{Monitor, wait_for};
use tests::planted::Differences;
use tests::program::scratch;
use tests::report::Report;
use tests::{Boot, Guest, planted};

const KERNEL: &str = "bookworm-backports";
/// The leaks of one module.
const PLANTED: usize = 8;

/// The files of a test.
struct Files {
    console: PathBuf,
    socket: PathBuf,
    disk: PathBuf,
}

impl Files {
    /// Creates an empty disk for saved states.
    fn new(test: &str) -> Files {
        let folder = scratch(&format!("{test}-files"));
        let files =
            Files { console: folder.join("console"), socket: folder.join("monitor"), disk: folder.join("disk.qcow2") };
        let made = Command::new("qemu-img").args(["create", "-q", "-f", "qcow2"]).arg(&files.disk).arg("64M").status();
        assert!(made.expect("qemu-img runs").success());
        files
    }

    fn guest(&self, test: &str) -> Guest {
        let disk = format!("file={},if=none,format=qcow2", self.disk.display());
        let guest = Guest::new(test, KERNEL).module("leaky").console(&self.console).monitor(&self.socket);
        guest.qemu_arg("-drive").qemu_arg(&disk)
    }

    /// Boots a guest. Calls `meanwhile` once the guest has printed `text`.
    fn boot(&self, guest: &Guest, text: &str, meanwhile: impl FnOnce(&mut Monitor)) -> Boot {
        let _ = std::fs::remove_file(&self.console);
        std::thread::scope(|scope| {
            let boot = scope.spawn(|| guest.boot());
            wait_for(&self.console, text);
            meanwhile(&mut Monitor::connect(&self.socket));
            boot.join().expect("the guest boots")
        })
    }
}

fn tell(monitor: &mut Monitor, command: &str) {
    let said = monitor.command(command);
    assert!(!said.contains("Error"), "{said}");
}

/// Each report has the eight leaks of its own time, except for hidden ones.
fn compare(boot: &Boot, times: usize) {
    boot.assert_ended_well();
    let (planted, reports) = (planted::planted(&boot.console), boot.reports());
    assert_eq!(planted.len(), times * PLANTED, "{}", boot.hint());
    assert_eq!(reports.len(), times, "{}", boot.hint());
    let pairs = planted.chunks(PLANTED).zip(reports);
    let mut differences = Differences::default();
    pairs.for_each(|(planted, report)| differences.extend(planted::differences(planted, &report.objects)));
    boot.assert_agrees(&differences);
}

/// Earlier allocations are unknown, and no counter speaks against the report because of that.
fn assert_no_doubts(report: &Report) {
    let none = "0 unmatched returns, 0 unwatched sites, 0 unknown frees, 0 missed frees, 0 stale";
    assert!(report.summary.line.contains(none), "{}", report.summary.line);
}

/// Saves a guest, which then leaks, loads it again, and it leaks once more.
fn rewind(test: &str, option: &str) {
    let files = Files::new(test);
    let guest = files.guest(test).option(option).run(&["sleep:2", "insmod:leaky", "sleep:3"]);
    let boot = files.boot(&guest, "libleak-guest: begin sleep:2", |monitor| {
        tell(monitor, "savevm then");
        wait_for(&files.console, "libleak-guest: end insmod:leaky 0");
        tell(monitor, "loadvm then");
    });
    let note =
        "brought to another time (loadvm, resume from disk) or came from elsewhere (-loadvm, -incoming), 1 times";
    assert!(boot.stderr.contains(note), "{}\n{}", boot.hint(), boot.stderr);
    compare(&boot, 2);
}

#[test]
fn after_loadvm_only_what_came_to_pass_is_reported() {
    rewind("rewind", "live=hooks");
}

/// About 30,000 objects are known only from the kernel's slabs. None of them is a leak.
#[test]
fn what_was_allocated_before_is_no_leak_either() {
    rewind("rewind-slab", "live=slab");
}

/// The clock moves forward, and all memory differs: a guest is taken to its past and then to a
/// saved state from its future.
#[test]
fn a_future_that_is_loaded_is_another_time_too() {
    let files = Files::new("future");
    // Not for long, since a guest whose clock jumps by 20 s reports a lockup.
    let work = "#!/bin/sh\nfor i in $(seq 300); do mkdir -p /tmp/work/$i; done\n";
    let guest = files.guest("future").script("work", work).run(&["sleep:2", "work", "sleep:3", "insmod:leaky"]);
    let boot = files.boot(&guest, "libleak-guest: begin sleep:2", |monitor| {
        tell(monitor, "savevm past");
        wait_for(&files.console, "libleak-guest: begin sleep:3");
        tell(monitor, "savevm future");
        tell(monitor, "loadvm past");
        // The guest runs in its past.
        std::thread::sleep(Duration::from_millis(500));
        tell(monitor, "loadvm future");
    });
    boot.assert_ended_well();
    let reports = boot.reports();
    assert!(boot.stderr.contains("(-loadvm, -incoming), 2 times"), "{}", boot.hint());
    let [past, future, end] = &reports[..] else { panic!("{} reports; {}", reports.len(), boot.hint()) };
    assert_fields!(boot.hint(); past.objects.is_empty() => true, future.objects.is_empty() => true);
    assert_no_doubts(end);
    boot.assert_planted(&end.objects);
}

/// KASLR handles at most four such options. With more it leaves the kernel's physical address alone
/// (`memmap_too_large`, arch/x86/boot/compressed/kaslr.c, Linux 4.13 to 7.3).
const SAME_PLACE: &str = "memmap=4K#0x8000000,4K#0x8001000,4K#0x8002000,4K#0x8003000,4K#0x8004000";

/// Prints the physical and the virtual address of the kernel image.
const PLACES: &str = "#!/bin/sh\necho \"places: $(sed -n 's/-.* : Kernel code$//p' /proc/iomem) $(sed -n 's/ T _text$//p' /proc/kallsyms)\"\n";

fn places(console: &str) -> Vec<(&str, &str)> {
    let said = console.lines().filter_map(|line| line.split_once("places: "));
    said.filter_map(|(_, places)| places.trim().split_once(' ')).collect()
}

/// A saved state of another boot, whose kernel has its page tables at the same address as the
/// tracked one. QEMU 11.1 flushes translated code before it loads memory. The loaded memory cannot
/// be examined at that time.
#[test]
fn a_snapshot_of_another_boot_in_the_same_place() {
    let files = Files::new("other-boot");
    let guest = |name: &str, steps: &[&str]| {
        files.guest(name).qemu("new").script("places", PLACES).append(SAME_PLACE).run(steps)
    };
    let steps = ["places", "sleep:3", "insmod:leaky"];
    let saved = guest("other-boot-saved", &steps).without_plugin();
    let other = files.boot(&saved, "libleak-guest: begin sleep:3", |monitor| tell(monitor, "savevm then"));
    let tracked = guest("other-boot", &["places", "workload", "sleep:3"]);
    let boot = files.boot(&tracked, "libleak-guest: begin sleep:3", |monitor| tell(monitor, "loadvm then"));
    let [(physical, virt)] = places(&other.console)[..] else { panic!("{}", other.hint()) };
    let [(same_physical, other_virt)] = places(&boot.console)[..] else { panic!("{}", boot.hint()) };
    assert_eq!(physical, same_physical, "KASLR has moved the kernel in physical memory; {}", boot.hint());
    assert_ne!(virt, other_virt, "KASLR has chosen the same address twice; {}", boot.hint());
    assert_fields!(
        format_args!("{}\n{}", boot.hint(), boot.stderr);
        boot.status => Some(0),
        boot.messages() => [""; 0],
    );
    let reports = boot.reports();
    let [first, second] = &reports[..] else { panic!("{} reports; {}", reports.len(), boot.hint()) };
    assert!(first.objects.is_empty(), "{}", boot.hint());
    assert_has(&boot.stderr, &["this is boot 2 of the guest"]);
    assert_no_doubts(second);
    boot.assert_planted(&second.objects);
}
