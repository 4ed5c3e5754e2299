//! libleak finds the leaks of the kernel's own test of kmemleak.
//!
//! When it is loaded, samples/kmemleak/kmemleak-test.c loses eight objects of kmalloc and five of
//! vmalloc. From 6.12 on it also loses one of __alloc_percpu. So 13 are lost on 6.1 and 14 on 6.12.
//! It holds ten objects in a list, and one per possible CPU in a per-CPU variable. These are lost
//! when it is unloaded.

use std::collections::BTreeSet;
use tests::assert_fields;
use tests::hidden::Losses;
use tests::planted::is_frame_of;
use tests::sample::Sample;
use tests::{Boot, Guest, Lost};

const VCPUS: u32 = 2;
const HELD: usize = 10 + VCPUS as usize;

/// Boots with the sample loaded, and does `steps` with it.
fn boot(test: &str, kernel: &str, steps: &[&str], lost: Losses) -> (Boot, Sample) {
    let boot = Guest::new(&format!("kmemleak-sample-{test}-{kernel}"), kernel)
        .smp(VCPUS)
        .module("kmemleak-test")
        .losing(lost)
        .append("no_hash_pointers")
        .run(&["insmod:kmemleak-test"])
        .run(steps)
        .boot();
    boot.assert_ended_well();
    boot.assert_trustworthy();
    let sample = Sample::parse(&boot.console);
    (boot, sample)
}

/// The report has exactly these, except for hidden ones, and names the sample.
fn assert_reported(boot: &Boot, expected: &BTreeSet<u64>) {
    let report = boot.report();
    let reported: BTreeSet<u64> = report.objects.iter().map(|o| o.address).collect();
    assert_eq!(reported.len(), report.objects.len(), "an object twice; {}", boot.hint());
    let missed: Vec<_> = expected.difference(&reported).filter(|at| !boot.is_hidden(**at)).collect();
    let extra: Vec<_> = reported.difference(expected).collect();
    assert_fields!(format_args!("missed {missed:x?}, extra {extra:x?}; {}", boot.hint()); missed.is_empty() => true, extra.is_empty() => true);
    for object in &report.objects {
        assert_eq!(object.comm, "insmod", "{object:x?}");
        let ours = |frame: &String| is_frame_of(frame, "kmemleak_test_init", "kmemleak_test");
        // On some kernels the module's symbols do not name the initialiser.
        let init = |frame: &String| is_frame_of(frame, "init_module", "kmemleak_test");
        assert!(
            object.frames.iter().find(|f| f.ends_with(']')).is_some_and(|f| ours(f) || init(f)),
            "{object:x?}; {}",
            boot.hint()
        );
    }
}

fn the_lost_are_reported_while_the_module_is_loaded(kernel: &str, lost: usize) {
    let (boot, sample) =
        boot("loaded", kernel, &["workload"], |c| Sample::parse(c).lost.into_iter().map(Lost::alone).collect());
    assert_fields!(boot.hint(); sample.lost.len() => lost, sample.held.len() => HELD);
    assert_reported(&boot, &sample.lost);
}

fn the_held_are_reported_too_after_it_is_unloaded(kernel: &str, lost: usize) {
    let (boot, sample) = boot("unloaded", kernel, &["rmmod:kmemleak-test", "workload"], |c| {
        let sample = Sample::parse(c);
        sample.lost.union(&sample.held).copied().map(Lost::alone).collect()
    });
    assert_fields!(boot.hint(); sample.lost.len() => lost, sample.held.len() => HELD);
    assert_reported(&boot, &sample.lost.union(&sample.held).copied().collect());
}

#[test]
fn linux_6_1_loaded() {
    the_lost_are_reported_while_the_module_is_loaded("bookworm", 13);
}

#[test]
fn linux_6_1_unloaded() {
    the_held_are_reported_too_after_it_is_unloaded("bookworm", 13);
}

#[test]
fn linux_6_12_loaded() {
    the_lost_are_reported_while_the_module_is_loaded("bookworm-backports", 14);
}

#[test]
fn linux_6_12_unloaded() {
    the_held_are_reported_too_after_it_is_unloaded("bookworm-backports", 14);
}
