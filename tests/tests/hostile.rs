//! A guest kernel that corrupts its memory, or calls its allocators in unusual ways. QEMU survives,
//! and libleak reports no falsehoods: each report is right, or says why it is not to be trusted.
//!
//! LIBLEAK_HOSTILE names further kernels, separated by spaces. LIBLEAK_MANY is the number of live
//! objects in the guest of the second test. The guest then has 1 GiB and no bound on objects.

use detector::report::{Report, json};
use std::collections::BTreeSet;
use std::path::PathBuf;
use tests::assert_fields;
use tests::assert_has;
use tests::program::scratch;
use tests::{Boot, Guest};

/// The expected result of an attack on 6.12.
enum Comes {
    /// The report is right: it has what was lost, and nothing else.
    Right,
    /// The report says that it is unreliable, with these words.
    Told(&'static str),
    /// There is no report, and a message says why.
    Nothing,
}
use Comes::{Nothing, Right, Told};

/// Attacks that are undone after the scan.
const ATTACKS: [(&str, Comes); 50] = [
    ("scan", Right),
    // The data was read when the kernel was found. It is not read again.
    ("kallsyms", Right),
    ("btf", Right),
    ("orc", Right),
    ("banner", Right),
    ("modules", Right),
    ("vmalloc-base", Right),
    ("task-threads", Right),
    ("task-stacks", Right),
    ("cache-name", Right),
    ("tables", Right),
    ("percpu-offsets", Told("__per_cpu_offset is not where")),
    ("cpus", Told("nr_cpu_ids is not")),
    ("many-cpus", Told("__per_cpu_offset is not where")),
    ("chunks", Told("chunks of per-CPU memory")),
    ("chunk-circle", Told("chunks of per-CPU memory")),
    ("direct-map", Nothing),
    ("direct-map-near", Nothing),
    ("vmemmap", Nothing),
    ("vmemmap-near", Nothing),
    ("area-circle", Told("tree of vmap areas")),
    ("area-wild", Told("tree of vmap areas")),
    ("area-bounds", Told("tree of vmap areas")),
    ("pte-none", Told("pages of live vmalloc blocks")),
    ("pte-beyond", Told("pages of live vmalloc blocks")),
    ("descriptors", Told("live objects are free in the kernel's allocator metadata")),
    ("descriptor-of-slab", Told("live objects are free in the kernel's allocator metadata")),
    ("slab-flags", Told("live objects are free in the kernel's allocator metadata")),
    ("free-page-circle", Told("lists of the CPUs' free pages")),
    ("free-page-wild", Told("lists of the CPUs' free pages")),
    ("freelist-wild", Told("freelists of CPUs")),
    ("freelist-same", Told("freelists of CPUs")),
    ("cache-size-zero", Told("sizes that contradict")),
    ("cache-size-huge", Told("sizes that contradict")),
    ("cache-object-size", Told("sizes that contradict")),
    ("cache-circle", Told("list of slab caches")),
    ("cache-wild", Told("list of slab caches")),
    ("cache-all", Told("list of slab caches")),
    ("task-circle", Told("list of tasks")),
    ("task-wild", Told("list of tasks")),
    ("list-circle", Told("the list padata_free_works")),
    ("pivot", Right),
    ("forge", Right),
    ("middle", Right),
    ("names", Right),
    ("lines", Right),
    // From here on every report has it.
    ("abandoned", Told("did not return")),
    ("absurd", Told("did not return")),
    ("read-only-data", Told("read-only data have changed")),
    ("jiffies-ahead", Told("did not return")),
];

/// The lost objects that the module prints, each with its attack.
fn lost(console: &str) -> Vec<(String, u64)> {
    let lines = console.lines().filter_map(|line| line.split_once("hostile: lost "));
    lines
        .filter_map(|(_, rest)| {
            let (name, address) = rest.trim().split_once(" 0x")?;
            Some((name.to_owned(), u64::from_str_radix(address, 16).ok()?))
        })
        .collect()
}

fn steps(attacks: impl IntoIterator<Item = String>) -> String {
    let all: String = attacks.into_iter().map(|line| format!("{line}\n")).collect();
    format!("#!/bin/sh\ninsmod /modules/hostile.ko || exit 1\ncd /sys/module/hostile/parameters\n{all}exit 0\n")
}

fn guest(test: &str, kernel: &str, steps: &str) -> (Guest, PathBuf) {
    let reports = scratch(&format!("{test}-reports")).join("report.jsonl");
    let guest = Guest::new(test, kernel)
        .groups()
        .module("hostile")
        .script("steps", steps)
        .append("panic=-1")
        .qemu_arg("-no-reboot")
        .option(&format!("report={}", reports.display()))
        .run(&["steps"]);
    (guest, reports)
}

fn read(boot: &Boot, reports: &PathBuf) -> Vec<Report> {
    assert_eq!(boot.status, Some(0), "{}\n{}", boot.hint(), boot.stderr);
    let text = std::fs::read_to_string(reports).expect("reports");
    json::read(&text).expect("lines of JSON")
}

fn addresses(report: &Report) -> BTreeSet<u64> {
    report.groups.iter().flat_map(|g| g.leaks.iter().map(|leak| leak.addr)).collect()
}

/// `strict` is for the kernel that the table describes. On others some attacks find no target, or
/// another one.
fn every_attack_is_borne(kernel: &str, strict: bool) {
    let attacks = ATTACKS.iter().map(|(name, _)| format!("echo {name} >attack"));
    let test = format!("hostile-{kernel}");
    let (guest, file) = guest(&test, kernel, &steps(attacks.chain(["echo markers >attack".to_owned()])));
    let boot = guest.boot();
    let reports = read(&boot, &file);
    assert_has(&boot.console, &["libleak-guest: end steps 0", "libleak-guest: off"]);
    let lost = lost(&boot.console);
    let all: BTreeSet<u64> = lost.iter().map(|(_, address)| *address).collect();
    let (mut hidden, mut failed) = (Vec::new(), 0);
    for (name, comes) in &ATTACKS {
        let report = reports.iter().find(|r| r.test.as_deref() == Some(*name));
        if boot.console.contains(&format!("hostile: without {name}\r\n").replace('\r', "")) && !strict {
            continue;
        }
        assert!(boot.console.contains(&format!("hostile: done {name}\n")), "{name}; {}", boot.hint());
        let Some(report) = report else {
            assert!(!strict || matches!(comes, Nothing), "no report of {name}; {}", boot.hint());
            failed += 1;
            continue;
        };
        let told = |part: &str| report.troubles.iter().any(|why| why.contains(part));
        match comes {
            Told(part) if strict => assert!(told(part), "{name}: {:?}; {}", report.troubles, boot.hint()),
            Nothing if strict => panic!("a report of {name}: {:?}; {}", report.troubles, boot.hint()),
            Right if strict => assert_eq!(report.troubles, [""; 0], "{name}; {}", boot.hint()),
            _ => {}
        }
        if report.troubles.is_empty() {
            let found = addresses(report);
            assert!(found.is_subset(&all), "{name} reports what was not lost: {found:x?}; {}", boot.hint());
            hidden.extend(lost.iter().filter(|(of, address)| of == name && !found.contains(address)));
        }
    }
    // A stale word may hide one.
    assert!(hidden.len() < 2, "lost and not reported: {hidden:x?}; {}", boot.hint());
    let errors = boot.messages().iter().filter(|m| m.starts_with("error: no result of a marker: ")).count();
    assert_eq!(errors, failed, "{:?}; {}", boot.messages(), boot.hint());
    let last = &reports[reports.len() - 1];
    assert!(last.troubles.iter().any(|why| why.contains("jiffies went back")), "{:?}; {}", last.troubles, boot.hint());
    let text = std::fs::read_to_string(&file).expect("reports");
    assert!(!text.contains(|c: char| c.is_control() && c != '\n'), "{}", boot.hint());
}

#[test]
fn every_attack_is_borne_on_6_12() {
    every_attack_is_borne("bookworm-backports", true);
    let further = std::env::var("LIBLEAK_HOSTILE").unwrap_or_default();
    further.split_whitespace().for_each(|kernel| every_attack_is_borne(kernel, false));
}

/// The live map is full. Then the kernel dies of corrupt page descriptors, and the last report is
/// made.
#[test]
fn more_objects_than_there_is_room_for_and_a_crash() {
    let many = std::env::var("LIBLEAK_MANY").ok().map(|n| n.parse::<u64>().expect("LIBLEAK_MANY is a number"));
    let keep = many.unwrap_or(200_000);
    let lines =
        [format!("echo keep {keep} >many"), "echo scan >attack".to_owned(), "echo die-descriptors >attack".to_owned()];
    let (guest, file) = guest("hostile-many", "bookworm-backports", &steps(lines));
    let boot = match many {
        None => guest.option("max-objects=100000").boot(),
        Some(_) => guest.memory(1024).limit(1200).boot(),
    };
    let reports = read(&boot, &file);
    let [first, dying, last] = &reports[..] else { panic!("{} reports; {}", reports.len(), boot.hint()) };
    assert_eq!(first.test.as_deref(), Some("scan"));
    let figure = |name: &str| first.figures[name];
    // All objects are known, from the live map or from the kernel's slabs.
    assert!(figure("live_objects") > keep, "{:?}; {}", first.figures, boot.hint());
    assert_fields!(boot.hint(); figure("unknown_frees") => 0, figure("missed_frees") => 0, figure("freed") => 0);
    let found = addresses(first);
    let lost: BTreeSet<u64> =
        lost(&boot.console).into_iter().filter(|(of, _)| of == "scan").map(|(_, at)| at).collect();
    let of_bound = |m: &&str| m.starts_with("warning: ") && m.contains("max-objects=");
    match many {
        None => {
            assert!(figure("unknown") > keep / 2, "{:?}; {}", first.figures, boot.hint());
            let [why] = &first.troubles[..] else { panic!("{:?}; {}", first.troubles, boot.hint()) };
            assert!(why.contains("100000 live objects, the limit of max-objects="), "{why}; {}", boot.hint());
            assert_eq!(boot.messages().iter().filter(|m| of_bound(m)).count(), 1, "{}", boot.hint());
            // Objects that are not in the map are not reported.
            assert!(found.is_empty(), "{found:x?}; {}", boot.hint());
        }
        Some(_) => {
            assert_eq!(first.troubles, [""; 0], "{}", boot.hint());
            assert_eq!(found, lost, "{}", boot.hint());
        }
    }
    assert!(boot.console.contains("hostile: this is the end"), "{}", boot.hint());
    for report in [dying, last] {
        let told = |part: &str| report.troubles.iter().any(|why| why.contains(part));
        assert!(told("page descriptors contradict themselves"), "{:?}; {}", report.troubles, boot.hint());
    }
}
