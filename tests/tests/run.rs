//! `leak run`: commands that start QEMU, with their guests under the plugin.

use detector::report::{Format, json};
use std::path::{Path, PathBuf};
use tests::assert_fields;
use tests::assert_has;
use tests::program::{leak, scratch, workspace};
use tests::{Finished, Guest, Program, planted, report};

const KERNEL: &str = "bookworm-backports";
const BARE: &str = "-nodefaults -no-user-config -display none";

/// `leak run` with these options and a shell command, in a folder of its own.
fn command(temporary: &Path, options: &str, line: &str) -> Program {
    let line = line.replace("BOOT", &format!("{} {KERNEL} --smp 2", workspace().join("scripts/boot").display()));
    let temporary = format!("TMPDIR={}", temporary.display());
    Program::new("env").arg(temporary).arg(leak()).arg("run").args(options).args("-- sh -c").arg(line)
}

fn run_in(temporary: &Path, options: &str, line: &str) -> Finished {
    command(temporary, options, line).limit(600).run()
}

fn run(options: &str, line: &str) -> Finished {
    run_in(&std::env::temp_dir(), options, line)
}

fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_else(|why| panic!("{}: {why}", path.display()))
}

/// All objects of a file of JSON lines.
fn objects(path: &Path) -> Vec<report::Unreferenced> {
    let reports = json::read(&read(path)).expect("lines of JSON");
    let each: String = reports.iter().map(|r| Format::Text.write(r, true)).collect();
    report::parse(&each).into_iter().flat_map(|r| r.objects).collect()
}

/// The messages of `leak run` itself.
fn said(done: &Finished) -> Vec<&str> {
    done.stderr.lines().filter_map(|line| line.strip_prefix("leak: ")).collect()
}

/// The files that `leak run` leaves in the folder of a test.
fn left(folder: &Path) -> usize {
    std::fs::read_dir(folder).unwrap().count()
}

/// A command for `scripts/boot --qemu` that runs QEMU under `leak run` with these options.
fn wrapped(folder: &Path, options: &str) -> PathBuf {
    let file = folder.join("qemu");
    let text = format!("#!/bin/sh\nexec {} run {options} -- qemu-system-x86_64 \"$@\"\n", leak().display());
    std::fs::write(&file, text).unwrap();
    assert_eq!(Program::new("chmod").arg("+x").arg(&file).run().status, Some(0));
    file
}

/// A step that names tests.
const TESTS: &str = "#!/bin/sh
mark() { echo \"leak:test $1\" >/proc/self/comm; }
mark before
ls / >/dev/null
mark leaky
insmod /modules/leaky.ko
mark after
ls / >/dev/null
mark ''
";

#[test]
fn qemu_itself_and_every_form_of_report() {
    let folder = scratch("run-qemu-reports");
    let [xml, ktap, lines, folded] = ["r.xml", "r.ktap", "r.jsonl", "r.folded"].map(|name| folder.join(name));
    let options: String = [&xml, &ktap, &lines, &folded].map(|path| format!("--report {} ", path.display())).concat();
    let options = options + "--per-test";
    let qemu = wrapped(&folder, &options);
    let boot = Guest::new("run-qemu", KERNEL)
        .without_plugin()
        .module("leaky")
        .script("tests", TESTS)
        .run(&["tests", "workload"])
        .qemu(qemu.to_str().unwrap())
        .boot();
    assert_eq!(boot.status, Some(23), "{}", boot.stderr);
    assert!(boot.console.contains("libleak-guest: off"), "{}", boot.hint());
    boot.assert_planted(&objects(&lines));
    // stderr has one line of leak and no report.
    assert!(boot.stderr.contains("leak: 8 objects (32968 bytes) leaked in 7 places; see "), "{}", boot.stderr);
    assert!(!boot.stderr.contains("unreferenced object"), "{}", boot.stderr);
    assert!(read(&xml).contains(r#"tests="4" skipped="0" failures="1" errors="0""#), "{}", read(&xml));
    let failed = read(&xml).split("<testcase name=\"leaky\"").nth(1).unwrap_or_default().trim_start().to_owned();
    assert!(failed.contains("<failure message=\"7 leaks, 32968 bytes: 1 object of 20000 bytes in "), "{}", read(&xml));
    let ktap = read(&ktap);
    let results: Vec<&str> = ktap.lines().filter(|line| !line.starts_with('#')).collect();
    assert_eq!(
        results,
        ["KTAP version 1", "1..4", "ok 1 before", "not ok 2 leaky", "ok 3 after", "ok 4 kernel"],
        "{ktap}"
    );
    let bytes = read(&folded).lines().map(|line| line.rsplit(' ').next().unwrap().parse::<u64>().unwrap()).sum::<u64>();
    assert_eq!(bytes, 32968, "{}", read(&folded));
    // The same from the JSON lines, later.
    let later = Program::new(leak()).arg("report").arg(&lines).args("--format junit").run();
    assert_fields!(later.stderr; later.status => Some(0), later.stdout => read(&xml));
}

#[test]
fn a_harness_of_two_guests() {
    let folder = scratch("run-harness");
    let (xml, lines) = (folder.join("r.xml"), folder.join("r.jsonl"));
    let options = format!("--report {} --report {}", xml.display(), lines.display());
    let temporary = scratch("run-harness-tmp");
    let options = format!("{options} --fail-on direct");
    let done =
        run_in(&temporary, &options, "cd / && BOOT && BOOT --module leaky --run insmod:leaky,workload </dev/null");
    assert_eq!(done.status, Some(23), "{}\n{}", done.stderr, done.stdout);
    assert!(said(&done)[0].starts_with("8 objects (32968 bytes) leaked in 7 places in 2 guests"), "{}", done.stderr);
    assert_eq!(objects(&lines).len(), planted::planted(&done.stdout).len());
    for suite in [r#"<testsuite name="libleak.1" tests="1" skipped="0" errors="0" failures="0">"#, "libleak.2"] {
        assert!(read(&xml).contains(suite), "{}", read(&xml));
    }
    assert_eq!(left(&temporary), 0, "a folder stays");
}

#[test]
fn a_clean_guest_and_a_command_that_fails() {
    let done = run("", "BOOT -- -cpu host -enable-kvm 2>/dev/null");
    assert_fields!(done.stderr; done.status => Some(0), said(&done).last() => Some(&"no leaks"));
    let kvm = said(&done).into_iter().find(|line| line.starts_with("KVM was removed from")).expect("a line on KVM");
    assert_has(kvm, &["-enable-kvm", "-cpu host became max"]);
    assert!(done.stderr.contains("libleak: 0 unreferenced objects"), "{}", done.stderr);
    // The command's own status has priority, since the caller knows its meaning.
    let done = run("--fail-on none", "exit 7");
    assert_eq!(done.status, Some(7), "{}", done.stderr);
}

#[test]
fn a_detector_that_did_not_work_is_no_success() {
    let folder = scratch("run-failures");
    let xml = folder.join("r.xml");
    let options = format!("--report {}", xml.display());
    let refused = |done: &Finished, words: &[&str]| {
        assert_eq!(done.status, Some(24), "{}", done.stderr);
        let errors: Vec<_> = said(done).into_iter().filter(|line| line.starts_with("error: ")).collect();
        let [error] = errors[..] else { panic!("{}", done.stderr) };
        for word in words {
            assert!(error.contains(word), "no \"{word}\" in: {error}");
        }
        assert!(read(&xml).contains(r#"failures="0" errors="1""#), "{}", read(&xml));
    };
    refused(&run(&options, "qemu-system-x86_64 --version"), &["started no QEMU", "PATH"]);
    // Only firmware runs.
    let firmware = format!("timeout 5 qemu-system-x86_64 {BARE} || true");
    refused(&run(&options, &firmware), &["nothing was tracked", "no Linux kernel"]);
    // Without KVM it does not start.
    let kvm = format!("timeout 5 qemu-system-x86_64 {BARE} -accel kvm || true");
    refused(&run(&format!("{options} --keep-kvm"), &kvm), &[]);
    let already = format!(
        "timeout 5 qemu-system-x86_64 {BARE} -plugin {}/libleak.so || true",
        leak().parent().unwrap().display()
    );
    refused(&run(&options, &already), &["already"]);
    refused(&run(&format!("{options} --plugin-options scans=1"), &firmware), &["see what it said"]);
    let done = run("--plugin /no/such.so", "true");
    assert_eq!(done.status, Some(24), "{}", done.stderr);
    assert_has(&done.stderr, &["no plugin at /no/such.so", "cargo build"]);
}

/// The shell ends at once and leaves its QEMU behind, which is told to end and makes its report.
#[test]
fn told_to_end_it_still_reports() {
    let temporary = scratch("run-told-tmp");
    let booted = command(&temporary, "", "BOOT --module leaky --run insmod:leaky,sleep:1000");
    let done = booted.limit(25).alone().run();
    // Status 124 comes from the program that told it.
    assert_eq!(done.status, Some(124), "{}", done.stderr);
    assert!(said(&done).contains(&"8 objects (32968 bytes) leaked in 7 places"), "{}", done.stderr);
    assert_eq!(left(&temporary), 0, "a folder stays");
}
