//! Faults on the host around QEMU. QEMU continues, libleak prints one line, and retries if it can.

use serde_json::json;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use tests::assert_fields;
use tests::control::{Places, order};
use tests::program::{plugin, plugin_argument, qemu, scratch};
use tests::{Boot, Finished, Guest, Program};

const KERNEL: &str = "bookworm-backports";
const BARE: &str = "-nodefaults -no-user-config -display none";

/// A machine without a guest, under the plugin, with shell commands before and after it.
fn bare(before: &str, options: &[String], after: &str, seconds: u32) -> Finished {
    let command = format!("{before} {} {BARE} -plugin '{}' {after}", qemu("installed"), plugin_argument(options));
    Program::new("bash").arg("-c").arg(command).limit(seconds).run()
}

fn assert_refused(done: &Finished, words: &[&str]) {
    assert_eq!(done.status, Some(1), "{}", done.stderr);
    let [message] = done.messages()[..] else { panic!("{}", done.stderr) };
    assert!(words.iter().all(|word| message.contains(word)), "{words:?}: {message}");
}

#[test]
fn files_that_have_no_end_are_refused() {
    let pipe = scratch("faults-files").join("pipe.ko");
    assert_eq!(Program::new("mkfifo").arg(&pipe).run().status, Some(0));
    for option in ["suppress", "symbols", "debug"] {
        for path in [pipe.as_path(), Path::new("/dev/zero")] {
            let option = format!("{option}={}", path.display());
            assert_refused(&bare("", &[option], "", 20), &["no regular file", &path.display().to_string()]);
        }
    }
    assert_refused(&bare("", &["suppress=/".to_owned()], "", 20), &["no regular file"]);
    // QEMU merges two options with equal paths into one plugin.
    let link = scratch("faults-twice").join("link.so");
    std::os::unix::fs::symlink(plugin(), &link).expect("a link");
    let twice = bare("", &[], &format!("-plugin '{}'", link.display()), 20);
    assert_refused(&twice, &["another libleak is loaded", "-plugin once"]);
}

#[test]
fn a_terminal_that_is_gone_and_few_files() {
    // The reader of stderr is gone. Only writing to it fails.
    let done = bare("", &[], "2> >(exec true); echo status $?", 6);
    assert_fields!(format_args!("{done:?}"); done.stdout.is_empty() => true, done.status => Some(124));
    // No file of libleak may get the number of the closed stderr.
    let report = scratch("faults-closed").join("report");
    let done = bare("exec", &[format!("report={}", report.display())], "2>&-", 6);
    assert_fields!(""; done.status => Some(124), done.stderr.as_str() => "");
    assert_eq!(std::fs::read_to_string(&report).expect("the report's file"), "");
    // Hardly any file can be opened, and none can be written.
    let done = bare("ulimit -n 40; ulimit -f 0; exec", &[], "", 6);
    assert_eq!(done.status, Some(124), "{}", done.stderr);
    assert!(done.messages()[0].contains("nothing was tracked"), "{}", done.stderr);
}

/// A monitor between libleak and QEMU's monitor that fails in one way.
fn go_between(test: &str, qmp: PathBuf, fault: fn(&mut UnixStream, &mut UnixStream, &str) -> bool) -> PathBuf {
    let path = qmp.with_file_name(format!("{test}-between"));
    let listener = UnixListener::bind(&path).expect("a socket");
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let (Ok(mut client), Ok(mut monitor)) = (stream, UnixStream::connect(&qmp)) else { return };
            let (mut to_client, from_monitor) = (client.try_clone().expect("a socket"), monitor.try_clone());
            std::thread::spawn(move || {
                let mut chunk = [0; 4096];
                let mut from_monitor = from_monitor.expect("a socket");
                while let Ok(n) = from_monitor.read(&mut chunk)
                    && n > 0
                    && to_client.write_all(&chunk[..n]).is_ok()
                {}
            });
            let lines = BufReader::new(client.try_clone().expect("a socket")).lines();
            for line in lines.map_while(Result::ok) {
                if fault(&mut client, &mut monitor, &line) {
                    // QEMU's monitor takes one client at a time.
                    let _ = monitor.shutdown(std::net::Shutdown::Both);
                    let _ = client.shutdown(std::net::Shutdown::Both);
                    break;
                }
            }
        }
    });
    path
}

/// Dies instead of resuming the guest.
fn dies(_: &mut UnixStream, monitor: &mut UnixStream, line: &str) -> bool {
    let is_cont = line.contains("\"cont\"");
    is_cont || writeln!(monitor, "{line}").is_err()
}

/// The guest is stopped through a monitor that fails, and continues. In the same guest, the
/// report's folder and the control socket's file are removed, and the guest's clock jumps.
#[test]
fn a_monitor_dies_and_files_go() {
    let places = Places::new("faults");
    let folder = places.control.with_file_name("reports");
    std::fs::create_dir(&folder).expect("a folder");
    let qmp = places.control.with_file_name("qmp");
    let between = go_between("faults", qmp.clone(), dies);
    let step = "#!/bin/sh\ndate -s '2040-01-01 00:00' && date -s '1999-01-01 00:00'\n";
    let guest = Guest::new("faults", KERNEL)
        .module("leaky")
        .script("jump", step)
        .run(&["insmod:leaky", "jump"])
        .option(&format!("report={}", folder.join("report").display()))
        .option(&format!("suppress-print={}", folder.join("known").display()))
        .option(&format!("snapshot={}", folder.join("snapshot").display()))
        .option(&format!("qmp={}", between.display()))
        .qemu_arg("-qmp")
        .qemu_arg(&format!("unix:{},server=on,wait=off", qmp.display()));
    let guest = places.guest(guest);
    let boot = std::thread::scope(|scope| {
        let boot = scope.spawn(|| guest.boot());
        let mut orders = places.orders();
        let mut client = places.client();
        // The monitor stops the guest and dies. There is a result nevertheless.
        let mark = client.ask(&json!({"do": "mark", "name": "first"}));
        assert!(mark["live"]["objects"].as_u64() > Some(1000), "{mark}");
        // The guest runs, since it obeys.
        order(&mut orders, "add 3");
        places.wait_for("obey: done add 3");
        std::fs::remove_dir_all(&folder).expect("the folder goes away");
        std::fs::remove_file(&places.control).expect("the socket goes away");
        // A connected client continues, with the next way to stop the guest.
        let grown = client.ask(&json!({"do": "diff", "name": "first", "limit": 1000}));
        assert!(grown.to_string().contains("grower_add"), "{grown}");
        order(&mut orders, "end");
        boot.join().expect("the guest's thread")
    });
    assert_eq!(boot.status, Some(0), "{}\n{}", boot.hint(), boot.stderr);
    let messages = boot.messages();
    let said = |words: &[&str]| messages.iter().filter(|m| words.iter().all(|w| m.contains(w))).count();
    assert_eq!(
        said(&["warning: pausing through the monitor", "closed the connection", "for 60 s"]),
        1,
        "{messages:#?}"
    );
    assert_eq!(said(&["error: cannot write report=", "make the folder"]), 1, "{messages:#?}");
    assert_eq!(said(&["suppress-print=", "make the folder"]), 1, "{messages:#?}");
    assert_eq!(said(&["snapshot"]), 1, "{messages:#?}");
    assert_eq!(messages.len(), 4, "{messages:#?}");
    // The report goes to stderr instead of the file. The mark left out earlier leaks.
    assert_eq!(boot.report().objects, [], "{}", boot.hint());
}

/// The warning comes once.
fn assert_closed(boot: &Boot, why: &str) {
    assert_eq!(boot.status, Some(0), "{}\n{}", boot.hint(), boot.stderr);
    assert!(boot.console.contains("libleak-guest: off"), "{}", boot.hint());
    let start = format!("warning: {why}; objects after the first ");
    let messages = boot.messages();
    assert_eq!(messages.iter().filter(|m| m.starts_with(&start)).count(), 1, "{messages:#?}");
}

/// Leaks from before the limit are reported, and no others.
#[test]
fn max_memory_is_kept() {
    let boot = Guest::new("faults-max-memory", KERNEL)
        .groups()
        .module("flood")
        .run(&["insmod:flood"])
        .option("max-memory=64M")
        .boot();
    assert_closed(&boot, "max-memory= was reached");
    let report = boot.report();
    assert!(boot.stderr.contains("libleak: unreliable: max-memory= was reached"), "{}", boot.stderr);
    assert_fields!(boot.hint(); report.summary.unreferenced < 100_000 => true, report.summary.allocations < 200_000 => true);
    assert!(report.objects.iter().all(|o| o.frames[1].starts_with("flood_init")), "{}", boot.stderr);
}

/// QEMU's memory is limited after the boot. The guest then keeps a million objects. QEMU survives.
/// The check of that many objects does not fit, and a message says so.
#[test]
fn a_host_without_memory() {
    let places = Places::new("faults-memory");
    let pid = places.control.with_file_name("pid");
    let guest = places.guest(Guest::new("faults-memory", KERNEL).memory(768));
    let guest = guest.qemu_arg("-pidfile").qemu_arg(&pid.display().to_string());
    let boot = std::thread::scope(|scope| {
        let boot = scope.spawn(|| guest.boot());
        let mut orders = places.orders();
        let pid = std::fs::read_to_string(&pid).expect("QEMU's pid");
        let status = std::fs::read_to_string(format!("/proc/{}/status", pid.trim())).expect("QEMU runs");
        let size = status.lines().find_map(|l| l.strip_prefix("VmSize:")).expect("its size");
        let kib: u64 = size.trim().trim_end_matches("kB").trim().parse().expect("KiB");
        let limit = format!("--as={}", (kib + (40 << 10)) << 10);
        // Not through `Program::run`, which would wait until no guest runs.
        let done = Command::new("prlimit").args(["--pid", pid.trim(), &limit]).status();
        assert!(done.expect("prlimit, of util-linux, starts").success());
        order(&mut orders, "add 1000000");
        places.wait_for("obey: done add 1000000");
        // There may be no thread for a new client. It gets one of two messages.
        let refused = places.leak(&["scan"]);
        let told = |words| refused.stderr.contains(words);
        assert_fields!(refused.stderr; refused.status => Some(24), (told("a check needs about") || told("no thread")) => true);
        order(&mut orders, "end");
        boot.join().expect("the guest's thread")
    });
    assert_closed(&boot, "the host had no memory for libleak");
    assert!(
        boot.messages().last().is_some_and(|m| m.starts_with("error: no result: a check needs about")),
        "{}",
        boot.stderr
    );
}
