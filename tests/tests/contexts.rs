//! Leaks in every context of kernel code have the backtrace of the kernel's own unwinder. The
//! module may be unloaded before the report.
//!
//! LIBLEAK_CONTEXTS names further kernels, separated by spaces. Building them takes long.

use snapshot::Snapshot;
use tests::contexts::{KINDS, differences, leaks, lost};
use tests::program::scratch;
use tests::{Boot, Guest};

/// Loads the module with these parameters and writes to its file.
fn script(parameters: &str) -> String {
    format!("#!/bin/sh\ninsmod /modules/contexts.ko {parameters} && echo 1 >/proc/contexts\n")
}

fn boot(test: &str, kernel: &str, parameters: &str, steps: &[&str]) -> Boot {
    let boot = Guest::new(test, kernel)
        .module("contexts")
        .script("in-contexts", &script(parameters))
        // Single objects, not groups with equal backtraces.
        .losing(lost)
        .run(&["in-contexts"])
        .run(steps)
        .boot();
    boot.assert_ended_well();
    boot
}

fn assert_all_as_the_kernel_says(boot: &Boot) {
    let truth = leaks(&boot.console);
    let kinds: Vec<&str> = truth.iter().map(|leak| leak.kind.as_str()).collect();
    assert_eq!(kinds, KINDS, "{}", boot.hint());
    for leak in &truth {
        // A stack of one frame would prove little.
        assert!(leak.frames.len() > 3, "{leak:x?}; {}", boot.hint());
    }
    let seen: Vec<_> = truth.iter().filter(|leak| !boot.is_hidden(leak.address)).cloned().collect();
    let differences = differences(&seen, &boot.report().objects);
    assert!(differences.is_empty(), "{}\n{}", boot.hint(), differences.join("\n"));
    boot.assert_trustworthy();
}

fn every_context_has_its_backtrace(kernel: &str) {
    // The report is made at the end. An unloaded module must still have its names.
    let boot = boot(&format!("contexts-{kernel}"), kernel, "", &["rmmod:contexts", "workload"]);
    assert_all_as_the_kernel_says(&boot);
}

#[test]
fn every_context_has_its_backtrace_on_linux_6_1() {
    every_context_has_its_backtrace("bookworm");
}

#[test]
fn every_context_has_its_backtrace_on_linux_6_12() {
    every_context_has_its_backtrace("bookworm-backports");
    let further = std::env::var("LIBLEAK_CONTEXTS").unwrap_or_default();
    further.split_whitespace().for_each(every_context_has_its_backtrace);
}

#[test]
fn every_context_has_its_backtrace_on_linux_7_3() {
    every_context_has_its_backtrace("trixie-backports");
}

/// A guest may load and unload modules for days. Unloaded modules are forgotten, unless a leak was
/// allocated by one.
#[test]
fn modules_that_come_and_go_are_not_kept() {
    const ROUNDS: usize = 25;
    const MODULES: [&str; 4] = ["dummy", "veth", "overlay", "loop"];
    let come_and_go = format!(
        "#!/bin/sh\nfor round in $(seq {ROUNDS}); do\nfor module in {}; do\nmodprobe $module && rmmod $module && echo \"gone: $module\"\ndone\ndone\n",
        MODULES.join(" ")
    );
    let snapshot = scratch("contexts-gone-file").join("snapshot");
    let boot = Guest::new("contexts-gone", "bookworm-backports")
        .module("contexts")
        .script("in-contexts", &script(""))
        .script("come-and-go", &come_and_go)
        .losing(lost)
        .run(&["in-contexts", "rmmod:contexts", "come-and-go"])
        .option(&format!("snapshot={}", snapshot.display()))
        .limit(360)
        .boot();
    boot.assert_ended_well();
    assert_all_as_the_kernel_says(&boot);
    let snapshot = Snapshot::open(&snapshot).expect("the snapshot");
    let moment = snapshot.moment();
    let kept = |name: &str| moment.modules.iter().filter(|load| load.module.name == name).count();
    let gone = |name: &str| boot.console.matches(&format!("gone: {name}")).count();
    println!("{} modules are kept", moment.modules.len());
    for name in MODULES {
        println!("{name}: {} loads, {} of them are kept", gone(name), kept(name));
        assert!(gone(name) > ROUNDS / 2, "{}", boot.hint());
    }
    let (gone, kept) = (MODULES.map(gone), MODULES.map(kept));
    assert!(2 * kept.iter().sum::<usize>() < gone.iter().sum(), "{kept:?} of {gone:?}; {}", boot.hint());
    assert_eq!(moment.modules.iter().filter(|load| load.module.name == "contexts").count(), 1, "{}", boot.hint());
}

/// A guest with one CPU sends the interrupt to itself.
#[test]
fn one_processor_sends_the_interrupt_to_itself() {
    let boot = Guest::new("contexts-up", "bookworm-backports")
        .smp(1)
        .module("contexts")
        .script("in-contexts", &script(""))
        .losing(lost)
        .run(&["in-contexts"])
        .boot();
    boot.assert_ended_well();
    assert_all_as_the_kernel_says(&boot);
}

/// 100,000 objects from one site are one group.
#[test]
fn a_loop_is_one_group() {
    let boot = Guest::new("contexts-loop", "bookworm-backports")
        .groups()
        .module("contexts")
        .script("in-contexts", &script("loop=100000"))
        .run(&["in-contexts"])
        .boot();
    boot.assert_ended_well();
    assert!(boot.console.contains("contexts: loop 100000 64"), "{}", boot.hint());
    let in_loop: Vec<_> =
        boot.report().objects.into_iter().filter(|o| o.frames.iter().any(|f| f.starts_with("leak_loop+"))).collect();
    assert_eq!(in_loop.len(), 1, "{} objects; {}", in_loop.len(), boot.hint());
    assert_eq!(in_loop[0].size, 64);
}
