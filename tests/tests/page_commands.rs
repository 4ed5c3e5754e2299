//! The commands of the pages do what the pages say. They run exactly as written there;
//! `tests::sandbox` lists those that another script runs.

use std::collections::BTreeSet;
use tests::assert_fields;
use tests::assert_has;
use tests::page::Page;
use tests::program::{scratch, workspace};
use tests::sandbox::{Sandbox, block};
use tests::{Finished, Guest, Program, report};

/// The first process of a guest that leaks in a test and turns itself off.
const LEAKS: &str = "#!/bin/sh
export PATH=/bin
mount -t proc proc /proc
echo 'leak:test first' >/proc/self/comm
insmod /modules/leaky.ko
echo leak:test >/proc/self/comm
# Overwrites stacks, where stale words may be.
ls -lR / >/dev/null 2>&1
poweroff -f
";

/// The first process of a guest that waits.
const WAITS: &str = "#!/bin/sh
export PATH=/bin
sleep 600
poweroff -f
";

/// The report has the leaks of `leaky`. A stale word that equals an address may hide one or two.
fn assert_leaky(report: &str) {
    let reports = report::parse(report);
    let last = reports.last().unwrap_or_else(|| panic!("no report:\n{report}"));
    let objects: u64 = last.objects.iter().map(report::Unreferenced::count).sum();
    assert_fields!(report; (6..=8).contains(&objects) => true, last.summary.is_trustworthy() => true);
    assert!(last.objects.iter().all(|object| object.frames.iter().any(|frame| frame.contains("[leaky]"))), "{report}");
}

/// The commands ended with this status; else the failure has their output.
fn assert_status(done: &Finished, status: i32) {
    assert_eq!(done.status, Some(status), "{}\n{}", done.stdout, done.stderr);
}

/// A test of this file runs each shell block of each page.
#[test]
fn every_block_is_run() {
    let source = include_str!("page_commands.rs").split_whitespace().collect::<Vec<_>>().join(" ");
    let calls: BTreeSet<(&str, &str)> = source
        .split("block(\"")
        .skip(1)
        .filter_map(|rest| rest.split_once("\", \"").and_then(|(page, rest)| Some((page, rest.split_once("\")")?.0))))
        .collect();
    let (mut blocks, mut missing) = (0, Vec::new());
    for page in Page::all() {
        for block in page.shell_blocks() {
            blocks += 1;
            if !calls.iter().any(|(name, part)| *name == page.name && block.text.contains(part)) {
                missing.push(format!("{}:\n{}", page.name, block.text));
            }
        }
    }
    assert!(missing.is_empty(), "no test runs\n{}", missing.join("\n"));
    assert_eq!(blocks, calls.len(), "{calls:?}");
}

/// A clone has the demo, and the demo succeeds. It runs in the checkout, where everything is built.
#[test]
fn the_quick_start() {
    let commands = block("README.md", "git clone");
    let [clone, enter, demo] = &commands[..] else { panic!("{commands:?}") };
    let clone = clone.replace("REPOSITORY", &workspace().display().to_string());
    let script = format!("cd {}\n{clone}\n{enter}\ntest -x {demo}\n", scratch("quick-start").display());
    assert_status(&Program::new("bash").arg("-euc").arg(script).run(), 0);
    let script = format!("cd {}\n{demo}\n", workspace().display());
    let done = Program::new("bash").arg("-euc").arg(script).limit(1200).run();
    assert_status(&done, 0);
    assert!(done.stdout.ends_with("8 planted, 8 reported, nothing else\n"), "{}", done.stdout);
}

#[test]
fn building() {
    let done = Sandbox::new("page-building").run(&block("README.md", "leak doctor"));
    assert_status(&done, 0);
    assert!(done.stdout.contains("loads the plugin"), "{}", done.stdout);
}

/// The recipes of README.md and `docs/testing-kernels.md`, and later uses of their reports.
#[test]
fn recipes() {
    let sandbox = Sandbox::with_guest("page-recipes", LEAKS);
    let done = sandbox.run(&block("README.md", "-plugin ./target/release/libleak.so"));
    assert_status(&done, 0);
    assert_leaky(&done.stderr);

    let done = sandbox.run(&block("README.md", "--per-test"));
    assert_status(&done, 23);
    let lines = sandbox.read("leaks.jsonl");
    assert!(lines.contains("\"test\":\"first\""), "{lines}");

    // Another script runs the commands with vng and kunit.py. QEMU's command runs here.
    assert_eq!(block("README.md", "vng -r"), [""; 0]);
    assert_eq!(block("docs/testing-kernels.md", "vng --build"), [""; 0]);
    let done = sandbox.run(&block("docs/testing-kernels.md", "kunit.py run"));
    assert_status(&done, 23);
    assert!(done.stderr.contains("[leaky]"), "{}", done.stderr);

    for name in ["yesterday.jsonl", "today.jsonl"] {
        std::fs::copy(sandbox.path("leaks.jsonl"), sandbox.path(name)).expect("a copy");
    }
    let done = sandbox.run(&block("docs/testing-kernels.md", "yesterday.jsonl"));
    assert_status(&done, 0);
    assert_has(&done.stdout, &["0 new, 0 grown, 0 gone", "<testsuite"]);
}

#[test]
fn snapshots() {
    let sandbox = Sandbox::with_guest("page-snapshots", LEAKS);
    let done = sandbox.run(&block("docs/usage.md", "leak check guest.snapshot"));
    assert_status(&done, 0);
    assert_leaky(&done.stderr);
    assert!(sandbox.path("small.snapshot").exists(), "{}", done.stdout);
    assert_has(&done.stdout, &["\"type\":\"group\""]);
}

/// QEMU in one terminal, and the questions in another, once the guest is tracked.
#[test]
fn questions_to_a_running_guest() {
    let sandbox = Sandbox::with_guest("page-questions", WAITS);
    let qemu = block("docs/usage.md", "libleak.so,control").join("\n");
    let questions = block("docs/usage.md", "LIBLEAK_CONTROL=leak.sock").join("\n");
    let script = format!(
        "exec >questions 2>&1\n{qemu} >console 2>report &\nqemu=$!\n\
         for try in $(seq 300); do\n    if leak status --control leak.sock >status; then break; fi\n    sleep 1\ndone\n\
         cat status\n{questions}\nkill \"$qemu\"\nwait \"$qemu\""
    );
    let done = sandbox.run(&[script]);
    let said = sandbox.read("questions");
    assert_eq!(done.status, Some(0), "{said}");
    assert_has(&said, &["before", "0 unreferenced objects"]);
    assert!(sandbox.read("report").contains("libleak: 0 unreferenced objects"), "{}", sandbox.read("report"));
}

/// The guest sends the page's markers, by each of the three ways.
#[test]
fn markers_of_a_guest() {
    let commands = block("docs/testing-kernels.md", "leak:test first").join("\n");
    let script = format!("#!/bin/sh\nPATH=$PATH:/guest\ninsmod /modules/leaky.ko\nset -e\n{commands}\n");
    let boot = Guest::new("page-markers", "bookworm-backports")
        .module("leaky")
        .program("marker")
        .script("markers", &script)
        .run(&["markers"])
        .boot();
    boot.assert_ended_well();
    // One when the guest asked for it, and one at the end.
    let objects: Vec<usize> = boot.reports().iter().map(|report| report.objects.len()).collect();
    let [asked, _last] = objects[..] else { panic!("not two reports: {objects:?} {}", boot.hint()) };
    assert!(asked >= 6, "{objects:?} {}", boot.hint());
}

/// A guest with the page's program, and with its commands.
#[test]
fn the_file_of_kmemleak() {
    let sandbox = Sandbox::new("page-leak-guest");
    assert_status(&sandbox.run(&block("docs/testing-kernels.md", "cc -O2 -static -o leak-guest")), 0);
    let commands = block("docs/testing-kernels.md", "leak-guest mount").join("\n");
    let script = format!("#!/bin/sh\nPATH=$PATH:/guest\ninsmod /modules/leaky.ko\nset -e\n{commands}\n");
    let boot = Guest::new("page-leak-guest-boot", "bookworm-backports")
        .module("leaky")
        .kmods("fuse")
        .file(&sandbox.path("leak-guest"), "/guest/leak-guest")
        .script("commands", &script)
        .run(&["commands"])
        .boot();
    boot.assert_ended_well();
    let objects = boot.console.matches("unreferenced object 0x").count();
    assert!((6..=8).contains(&objects), "{objects}; {}", boot.hint());
    assert!(boot.console.contains("libleak: 0 unreferenced objects"), "{}", boot.hint());
}

/// `docs/tutorial.md`, from the leak to the fix.
#[test]
fn the_tutorial() {
    let sandbox = Sandbox::new("page-tutorial");
    assert_status(&sandbox.run(&block("docs/tutorial.md", "--module notes")), 0);
    let text = sandbox.read("notes.txt");
    let reports = report::parse(&text);
    let of = |function: &str| {
        let objects = reports[0].objects.iter().filter(|object| object.frames.iter().any(|f| f.contains(function)));
        objects.map(report::Unreferenced::count).sum::<u64>()
    };
    // A stale word may hide one; the page has all ten of both.
    assert_fields!(text; (9..=10).contains(&(of("note_add") - of("kstrdup"))) => true, (9..=10).contains(&of("kstrdup")) => true);
    assert!(
        text.contains("  direct leak: ") && text.contains("  holding ") && text.contains("62 72 65 61 64 0a"),
        "{text}"
    );

    let done = sandbox.run(&block("docs/tutorial.md", "--why note_add"));
    assert_status(&done, 0);
    let lonely = done
        .stdout
        .lines()
        .filter(|line| line.contains("(size 32, by note_add+0x") && line.ends_with("nobody refers to it"));
    assert!((9..=10).contains(&lonely.count()), "{}", done.stdout);
    let held = done
        .stdout
        .lines()
        .filter(|line| line.contains("(size 32, by note_add+0x") && line.ends_with("referred to by"));
    assert!((3..=4).contains(&held.count()), "{}", done.stdout);

    let page = Page::read("docs/tutorial.md");
    let fix = page.blocks().into_iter().find(|block| block.language == "diff").expect("a fix");
    sandbox.write("fix.diff", &fix.text);
    assert_status(&sandbox.run(&block("docs/tutorial.md", "patch -d fixed")), 0);
    let text = sandbox.read("fixed.txt");
    assert!(text.starts_with("libleak: 0 unreferenced objects (0 bytes) in 0 groups, 0 direct; "), "{text}");
}
