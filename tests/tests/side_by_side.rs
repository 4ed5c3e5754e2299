//! libleak and the guest's own kmemleak check the same guest. libleak finds what kmemleak finds,
//! and reports nothing that is not lost.
//!
//! The kernel is built with kmemleak (`scripts/lib/selfbuilt.sh`). Both reports are compared by
//! address with the lost objects that the modules print.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use tests::hidden::{Losses, is_linked};
use tests::sample::Sample;
use tests::{Boot, Guest, Lost};

const KERNEL: &str = "selfbuilt-kmemleak";

/// A report: by address, the size and the backtrace.
type Findings = BTreeMap<u64, (u64, Vec<String>)>;

/// kmemleak's report, as the step `kmemleak` prints it.
fn kmemleak(boot: &Boot) -> Findings {
    let (_, text) = boot.console.split_once("kmemleak-report: begin").unwrap_or_else(|| panic!("{}", boot.hint()));
    let (text, _) = text.split_once("kmemleak-report: end").unwrap_or_else(|| panic!("{}", boot.hint()));
    let mut found = Findings::new();
    let mut last = None;
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("unreferenced object ") {
            let rest = rest.strip_prefix("(percpu) ").unwrap_or(rest);
            let words = rest.strip_prefix("0x").and_then(|r| r.strip_suffix("):")?.split_once(" (size "));
            let (address, size) = words.unwrap_or_else(|| panic!("no headline of kmemleak: {line}"));
            let address = u64::from_str_radix(address, 16).unwrap_or_else(|_| panic!("no address: {line}"));
            let size = size.parse().unwrap_or_else(|_| panic!("no size: {line}"));
            assert!(found.insert(address, (size, Vec::new())).is_none(), "twice: {line}");
            last = Some(address);
        } else if line.starts_with("    ") && line.contains('+') && line.contains("/0x") {
            // A line of a hex dump does not match, except by a very odd text column.
            let frames = last.and_then(|address| found.get_mut(&address));
            frames.unwrap_or_else(|| panic!("a frame of nothing: {line}")).1.push(line.trim().to_owned());
        }
    }
    found
}

/// libleak's report.
fn libleak(boot: &Boot) -> Findings {
    boot.report().objects.into_iter().map(|o| (o.address, (o.size, o.frames))).collect()
}

/// A table of both reports and the truth, followed by each object on which they disagree.
fn table(lost: &BTreeSet<u64>, kmemleak: &Findings, libleak: &Findings) -> String {
    let mut text = String::from("reported by            lost    not lost\n");
    let count = |lost_ones: bool, by_kmemleak: bool, by_libleak: bool| {
        let all: BTreeSet<&u64> = lost.iter().chain(kmemleak.keys()).chain(libleak.keys()).collect();
        let is = |a: &&&u64| {
            lost.contains(**a) == lost_ones
                && kmemleak.contains_key(**a) == by_kmemleak
                && libleak.contains_key(**a) == by_libleak
        };
        all.iter().filter(is).count()
    };
    for (who, k, l) in
        [("both", true, true), ("only kmemleak", true, false), ("only libleak", false, true), ("neither", false, false)]
    {
        let _ = writeln!(text, "{who:18} {:8} {:11}", count(true, k, l), count(false, k, l));
    }
    for (who, found, other) in [("kmemleak", kmemleak, libleak), ("libleak", libleak, kmemleak)] {
        for (address, (size, frames)) in found {
            let what = match (lost.contains(address), other.contains_key(address)) {
                (true, true) => continue,
                (true, false) => "lost, only by",
                (false, _) => "not lost, by",
            };
            let frames: Vec<&str> = frames.iter().take(4).map(String::as_str).collect();
            let _ = writeln!(text, "{what} {who}: {address:#x} (size {size}) {}", frames.join(" < "));
        }
    }
    for address in lost.iter().filter(|a| !kmemleak.contains_key(a) && !libleak.contains_key(a)) {
        let _ = writeln!(text, "lost, by neither: {address:#x}");
    }
    text
}

/// Boots and compares.
fn side_by_side(test: &str, guest: Guest, lost: Losses) {
    let boot = guest.losing(lost).limit(360).boot();
    boot.assert_ended_well();
    let truth: BTreeSet<u64> = lost(&boot.console).into_iter().map(|lost| lost.address).collect();
    let (kmemleak, libleak) = (kmemleak(&boot), libleak(&boot));
    let table = table(&truth, &kmemleak, &libleak);
    println!("{test}: {} lost\n{table}", truth.len());
    assert!(truth.len() > 10, "{}", boot.hint());
    // Without this, a kmemleak that finds little would be easy to match.
    let both = truth.iter().filter(|a| kmemleak.contains_key(a)).count();
    assert!(both > truth.len() / 2, "kmemleak found {both} of {}; {}\n{table}", truth.len(), boot.hint());
    let is_missed = |a: &&u64| kmemleak.contains_key(a) && !libleak.contains_key(a) && !boot.is_hidden(**a);
    let missed: Vec<_> = truth.iter().filter(is_missed).collect();
    assert!(missed.is_empty(), "libleak missed {missed:x?}; {}\n{table}", boot.hint());
    let extra: Vec<_> = libleak.keys().filter(|a| !truth.contains(a)).collect();
    assert!(extra.is_empty(), "libleak reported what is not lost: {extra:x?}; {}\n{table}", boot.hint());
    for (address, (size, _)) in libleak {
        if let Some((theirs, _)) = kmemleak.get(&address) {
            assert_eq!(size, *theirs, "{address:#x}; {}", boot.hint());
        }
    }
    boot.assert_trustworthy();
}

#[test]
fn the_zoo() {
    let guest = Guest::new("side-by-side-zoo", KERNEL).module("zoo").run(&["insmod:zoo", "kmemleak"]);
    side_by_side("zoo", guest, |console| {
        let lines = console.lines().filter_map(|line| line.split_once("zoo: leak "));
        let words = lines.filter_map(|(_, rest)| rest.split_once(' '));
        words
            .map(|(kind, rest)| {
                let address = rest.split(' ').next().and_then(|a| a.strip_prefix("0x"));
                let address = address.and_then(|a| u64::from_str_radix(a, 16).ok()).expect("the zoo prints addresses");
                if is_linked(kind) { Lost::part_of(kind, address) } else { Lost::alone(address) }
            })
            .collect()
    });
}

#[test]
fn the_kernel_s_own_sample() {
    let steps = ["insmod:kmemleak-test", "rmmod:kmemleak-test", "kmemleak"];
    let guest =
        Guest::new("side-by-side-sample", KERNEL).module("kmemleak-test").append("no_hash_pointers").run(&steps);
    side_by_side("samples/kmemleak", guest, |console| {
        let sample = Sample::parse(console);
        sample.lost.union(&sample.held).copied().map(Lost::alone).collect()
    });
}
