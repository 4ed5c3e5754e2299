//! The module `tests/modules/zoo` loses objects, and holds others in ways that are hard to see. The
//! report has exactly the lost ones, with their sizes.

use detector::Count;
use detector::graph::Verdict;
use std::collections::BTreeMap;
use tests::hidden::{Losses, is_linked};
use tests::program::{leak, scratch};
use tests::{Boot, Guest, Lost, Program, Unreferenced};

/// An allocation that the module prints.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Specimen {
    is_leak: bool,
    kind: String,
    address: u64,
    size: u64,
}

/// Reads every line `zoo: leak KIND 0xADDRESS SIZE` and `zoo: held ...` of a console.
fn specimens(console: &str) -> Vec<Specimen> {
    let lines = console.lines().filter_map(|line| line.split_once("zoo: ").map(|(_, rest)| rest));
    lines
        .filter_map(|line| {
            let mut words = line.split_whitespace();
            let is_leak = match words.next()? {
                "leak" => true,
                "held" => false,
                _ => return None,
            };
            Some(Specimen {
                is_leak,
                kind: words.next()?.to_owned(),
                address: u64::from_str_radix(words.next()?.strip_prefix("0x")?, 16).ok()?,
                size: words.next()?.parse().ok()?,
            })
        })
        .collect()
}

/// All differences between the reported objects and the module's output.
fn differences(zoo: &[Specimen], objects: &[Unreferenced]) -> Vec<String> {
    let mut out = Vec::new();
    let by_address: BTreeMap<u64, &Specimen> = zoo.iter().map(|s| (s.address, s)).collect();
    let mut missing: BTreeMap<u64, &Specimen> =
        by_address.iter().filter(|(_, s)| s.is_leak).map(|(a, s)| (*a, *s)).collect();
    for object in objects {
        let seen = missing.remove(&object.address).is_some();
        match by_address.get(&object.address) {
            None => out.push(format!("not of the zoo: {object:x?}")),
            Some(s) if !s.is_leak => out.push(format!("held by {} and reported: {object:x?}", s.kind)),
            Some(s) if !seen => out.push(format!("{} reported twice: {object:x?}", s.kind)),
            Some(s) if s.size != object.size => {
                out.push(format!("{}: {} bytes, reported as {}: {object:x?}", s.kind, s.size, object.size));
            }
            Some(_) => {}
        }
    }
    out.extend(missing.values().map(|s| format!("lost by {} and not reported: {s:x?}", s.kind)));
    out
}

/// Boots the guest and reads the module's output, which must be complete.
fn visit(guest: Guest, lost: Losses) -> (Boot, Vec<Specimen>) {
    let boot = guest.module("zoo").losing(lost).boot();
    boot.assert_ended_well();
    let zoo = specimens(&boot.console);
    let leaks = zoo.iter().filter(|s| s.is_leak).count();
    let done = format!("zoo: done {leaks} {}", zoo.len() - leaks);
    assert!(boot.console.lines().any(|line| line.ends_with(&done)), "no \"{done}\"; {}", boot.hint());
    assert!(!boot.console.contains("zoo: failed"), "the guest could not make all of it; {}", boot.hint());
    (boot, zoo)
}

impl Specimen {
    fn lost(&self) -> Lost {
        match is_linked(&self.kind) {
            true => Lost::part_of(&self.kind, self.address),
            false => Lost::alone(self.address),
        }
    }
}

fn lost(console: &str) -> Vec<Lost> {
    specimens(console).iter().filter(|s| s.is_leak).map(Specimen::lost).collect()
}

/// Asserts that the report agrees with the module, except for hidden objects.
fn assert_told_apart(boot: &Boot, zoo: &[Specimen]) {
    let seen: Vec<Specimen> = zoo.iter().filter(|s| !boot.is_hidden(s.address)).cloned().collect();
    let differences = differences(&seen, &boot.report().objects);
    assert!(differences.is_empty(), "{}\n{}", differences.join("\n"), boot.hint());
    boot.assert_trustworthy();
}

fn the_zoo_is_told_apart(kernel: &str) {
    let (boot, zoo) = visit(Guest::new(&format!("zoo-{kernel}"), kernel).run(&["insmod:zoo", "sleep:2"]), lost);
    assert_told_apart(&boot, &zoo);
}

#[test]
fn lost_and_held_objects_are_told_apart_on_linux_6_1() {
    the_zoo_is_told_apart("bookworm");
}

#[test]
fn lost_and_held_objects_are_told_apart_on_linux_6_12() {
    the_zoo_is_told_apart("bookworm-backports");
}

#[test]
fn lost_and_held_objects_are_told_apart_on_linux_7_3() {
    the_zoo_is_told_apart("trixie-backports");
}

/// With the sanitizers and checks that network developers use together. Freed objects in quarantine
/// are not live. An object is lost if only a debug option refers to it. With the address
/// sanitizer's shadow, the roots would be 193 MiB.
#[test]
fn lost_and_held_objects_are_told_apart_on_a_kernel_with_sanitizers() {
    let guest = Guest::new("zoo-sanitizers", "selfbuilt-debug")
        .append("kfence.sample_interval=0 page_owner=on")
        .limit(300)
        .run(&["workload", "insmod:zoo", "sleep:2"]);
    let (boot, zoo) = visit(guest, lost);
    for kind in ["registered-lock-key", "watched-timer", "watched-work"] {
        assert!(zoo.iter().any(|s| s.kind == kind), "no {kind}; {}", boot.hint());
    }
    assert_told_apart(&boot, &zoo);
    let report = boot.report();
    let line = &report.summary.line;
    assert!(report.summary.unknown <= 2, "{line}; {}", boot.hint());
    let roots =
        line.split_once("; scanned ").and_then(|(_, rest)| rest.split_once(" MiB of roots")?.0.parse::<f64>().ok());
    assert!(roots.is_some_and(|mib| mib < 64.0), "{line}; {}", boot.hint());
}

/// Lost pages are found, too, after a workload that uses the page allocator.
fn lost_pages_are_found(kernel: &str) {
    let guest = Guest::new(&format!("zoo-pages-{kernel}"), kernel)
        .script("with-pages", "#!/bin/sh\ninsmod /modules/zoo.ko pages=1\n")
        .option("pages=on")
        .run(&["workload", "with-pages", "sleep:2"]);
    let (boot, zoo) = visit(guest, lost);
    assert!(zoo.iter().any(|s| s.kind == "block-of-pages"), "{}", boot.hint());
    assert_told_apart(&boot, &zoo);
}

#[test]
fn lost_pages_are_found_on_linux_6_1() {
    lost_pages_are_found("bookworm");
}

#[test]
fn lost_pages_are_found_on_linux_6_12() {
    lost_pages_are_found("bookworm-backports");
}

#[test]
fn lost_pages_are_found_on_linux_7_3() {
    lost_pages_are_found("trixie-backports");
}

/// The holders let go. Objects that are then reported were held by nothing else.
#[test]
fn what_is_held_is_reported_when_its_holder_lets_go() {
    let snapshot = scratch("zoo-forgets-file").join("snapshot");
    let guest = Guest::new("zoo-forgets", "bookworm-backports")
        .option(&format!("snapshot={}", snapshot.display()))
        .script("forget", "#!/bin/sh\ninsmod /modules/zoo.ko forget=1\n")
        .run(&["forget", "sleep:2"]);
    // This object's holder is read-only by then.
    let (boot, zoo) =
        visit(guest, |c| specimens(c).iter().filter(|s| s.kind != "ro-after-init").map(Specimen::lost).collect());
    let reported: BTreeMap<u64, u64> = boot.report().objects.iter().map(|o| (o.address, o.size)).collect();
    // This object's holder is read-only by then.
    let missing: Vec<String> = zoo
        .iter()
        .filter(|s| s.kind != "ro-after-init" && !reported.contains_key(&s.address) && !boot.is_hidden(s.address))
        .map(|s| format!("{}: {s:x?}", s.kind))
        .collect();
    assert!(missing.is_empty(), "{}\n{}", boot.hint(), missing.join("\n"));
    // Two names identify an object's type in the kernel image: the function that returns it, and
    // its cache.
    let check = Program::new(leak()).arg("check").arg(&snapshot).run();
    for guess in ["sk_buff", "maple_node"] {
        let line = format!("  probably struct {guess}");
        assert!(check.stdout.lines().any(|l| l == line), "no \"{line}\"; {}", boot.hint());
    }
}

#[test]
fn differences_are_found() {
    let zoo = specimens(
        "[    1.9] zoo: leak kzalloc 0xffff8d7d82662e80 512
[    1.9] zoo: held list 0xffff8d7d82662e00 96
[    1.9] zoo: done 1 1
",
    );
    let object = |address, size| Unreferenced { address, size, comm: "insmod".to_owned(), ..Unreferenced::default() };
    let good = object(0xffff_8d7d_8266_2e80, 512);
    assert_eq!(zoo.len(), 2);
    assert_eq!(differences(&zoo, std::slice::from_ref(&good)), [""; 0]);
    assert!(differences(&zoo, &[])[0].starts_with("lost by kzalloc"));
    assert!(differences(&zoo, &[good.clone(), good.clone()])[0].starts_with("kzalloc reported twice"));
    assert!(differences(&zoo, &[object(good.address, 500)])[0].starts_with("kzalloc: 512 bytes"));
    assert!(differences(&zoo, &[good.clone(), object(zoo[1].address, 96)])[0].starts_with("held by list"));
    assert!(differences(&zoo, &[good, object(0x1000, 96)])[0].starts_with("not of the zoo"));
}

/// One object of each chain, ring and tree is a direct leak. The others hang from it.
fn one_of_each_is_direct(kernel: &str) {
    let test = format!("zoo-direct-{kernel}");
    let snapshot = scratch(&format!("{test}-file")).join("snapshot");
    let guest = Guest::new(&test, kernel).option(&format!("snapshot={}", snapshot.display()));
    let (boot, zoo) = visit(guest.run(&["insmod:zoo", "sleep:2"]), lost);
    let check = Program::new(leak()).arg("check").arg(&snapshot).args("--format jsonl").run();
    assert_eq!(check.status, Some(0), "{}", check.stderr);
    let reports = detector::report::json::read(&check.stdout).expect("a report in lines of JSON");
    let leaks: BTreeMap<u64, Verdict> = reports
        .iter()
        .flat_map(|r| &r.groups)
        .flat_map(|g| g.leaks.iter().map(|l| (l.addr, Verdict { direct: g.direct, retains: l.retains })))
        .collect();
    for (kind, objects) in [("chain", 3), ("ring", 2), ("tree", 7)] {
        let ours: Vec<&Specimen> = zoo.iter().filter(|s| s.is_leak && s.kind == kind).collect();
        assert_eq!(ours.len(), objects, "{kind}; {}", boot.hint());
        if ours.iter().any(|s| boot.is_hidden(s.address)) {
            continue;
        }
        let verdicts: Vec<Verdict> = ours.iter().map(|s| leaks[&s.address]).collect();
        // The module prints the head first. The head of a ring is the object that was allocated
        // first.
        let rest = objects as u64 - 1;
        let retains = Count { objects: rest, bytes: rest * ours[0].size };
        assert_eq!(verdicts[0], Verdict { direct: true, retains }, "{kind} {verdicts:?}; {}", boot.hint());
        assert!(verdicts[1..].iter().all(|v| *v == Verdict::default()), "{kind} {verdicts:?}; {}", boot.hint());
    }
    // Objects without references between them are direct leaks.
    let others = zoo.iter().filter(|s| s.is_leak && ["kmalloc", "kzalloc", "vmalloc"].contains(&s.kind.as_str()));
    let alone = Verdict { direct: true, retains: Count::default() };
    let others = others.filter(|s| !boot.is_hidden(s.address));
    assert!(others.map(|s| leaks[&s.address]).all(|v| v == alone), "{}", boot.hint());
}

#[test]
fn one_of_each_is_direct_on_linux_6_1() {
    one_of_each_is_direct("bookworm");
}

#[test]
fn one_of_each_is_direct_on_linux_7_3() {
    one_of_each_is_direct("trixie-backports");
}
