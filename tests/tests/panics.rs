//! A panic in libleak ends the tracking and nothing else. stderr gets one line, the guest runs to
//! its end, and clients get answers. The last report says that it is unreliable.
//!
//! LIBLEAK_ALL_PANICS asks for one guest per place.

use serde_json::{Value, json};
use tests::assert_fields;
use tests::assert_has;
use tests::control::{Places, order};
use tests::program::{argument, faulty_plugin, qemu};
use tests::{Boot, Finished, Guest, Program};

const KERNEL: &str = "bookworm-backports";
const BARE: &str = "-nodefaults -no-user-config -display none -plugin";

/// A machine without a guest that runs for this many seconds.
fn bare(places: &str, options: &[String], seconds: u32) -> Program {
    let plugin = argument(&faulty_plugin(), options);
    Program::new(qemu("installed")).args(BARE).arg(plugin).env("LIBLEAK_PANIC", places).limit(seconds)
}

/// The only line about a panic, which is libleak's and not Rust's.
fn assert_one_line(messages: &[&str], stderr: &str, place: &str) {
    let first = messages.first().unwrap_or_else(|| panic!("{stderr}"));
    assert!(first.starts_with("error: internal error, nothing is tracked from now on: injected, in "), "{stderr}");
    assert_has(first, &[place, "plugin/src/", "please report this"]);
    assert_fields!(stderr; stderr.contains("panicked at") => false, stderr.contains("RUST_BACKTRACE") => false);
    assert_eq!(stderr.matches("from now on").count(), 1, "{stderr}");
}

fn assert_bare(done: &Finished, place: &str, status: i32, last: &str) {
    assert_eq!(done.status, Some(status), "{place}: {}", done.stderr);
    let messages = done.messages();
    assert_one_line(&messages, &done.stderr, place);
    assert!(messages.len() <= 2, "{place}: {}", done.stderr);
    assert_has(&done.stderr, &[last]);
}

#[test]
fn before_a_guest_runs() {
    // QEMU does not start if the plugin cannot.
    for place in ["constructor", "install"] {
        assert_bare(&bare(place, &[], 5).run(), place, 1, "returned error code -1");
    }
    // QEMU ends when told to: 124 means that.
    assert_bare(
        &bare("vcpu-init", &[], 3).run(),
        "vcpu-init",
        124,
        "no result: an internal error had ended the tracking",
    );
}

/// A panic of a thread ends its current task. The next client is served.
#[test]
fn of_threads_that_serve_clients() {
    let threads = "listener,client,events,scanner";
    let places = Places::new("panics-bare");
    let done = std::thread::scope(|scope| {
        let qemu = bare(threads, &[format!("control={}", places.control.display())], 10);
        let qemu = scope.spawn(move || qemu.run());
        for request in ["status", "status", "events"] {
            // The thread and the connection are gone.
            let mut client = places.client();
            let answer = client.line_after(format!("{{\"do\":\"{request}\"}}\n").as_bytes());
            assert_fields!(request; answer.is_none_or(|a| a["do"] == "events") => true, client.line().is_none() => true);
        }
        let mut late = places.client();
        for _ in 0..3 {
            let answer = late.answer(&json!({"do": "scan"}));
            let error = answer["error"].as_str().unwrap_or_else(|| panic!("{answer}"));
            assert!(error.contains("an internal error has ended the tracking"), "{error}");
        }
        let status = late.ask(&json!({"do": "status"}));
        assert_eq!(status["tracking"], Value::Bool(false), "{status}");
        qemu.join().expect("QEMU's thread")
    });
    assert_bare(&done, "listener", 124, "no result: an internal error had ended the tracking");
}

/// The guest completes all steps, and the report says that it is unreliable.
fn assert_marked(boot: &Boot, place: &str) {
    assert_eq!(boot.status, Some(0), "{}\n{}", boot.hint(), boot.stderr);
    assert!(boot.console.contains("libleak-guest: off"), "{}", boot.hint());
    assert_one_line(&boot.messages(), &boot.stderr, place);
    let report = boot.reports().pop().unwrap_or_else(|| panic!("{place}: no report; {}", boot.stderr));
    assert!(boot.stderr.contains("libleak: unreliable: an internal error ended the tracking"), "{}", boot.stderr);
    // Objects that were freed after the panic are not leaks.
    let names = |o: &tests::report::Unreferenced| o.frames.iter().any(|f| f.contains("[leaky]"));
    let others: Vec<_> = report.objects.iter().filter(|o| !names(o)).collect();
    assert!(others.is_empty(), "{place}: {}\n{}", boot.hint(), boot.stderr);
}

fn guest(place: &str) -> Guest {
    let step = "#!/bin/sh
echo leak:scan >/proc/self/comm
echo 'libleak: scan' >/dev/kmsg
/guest/marker scan
echo 'ok 1 all of it'
/guest/workload 1
";
    Guest::new("panics", KERNEL)
        .module("leaky")
        // The return address of its allocator is watched only during the call.
        .module("pointer")
        .program("marker")
        .script("mark", step)
        .run(&["insmod:leaky", "insmod:pointer", "mark", "workload"])
        .option("scan=1")
        .panics(place)
}

#[test]
fn while_a_guest_runs() {
    // Places of different kinds: the hot path, a check in the exclusive section, libleak's threads.
    let some = ["return:30000", "workers"];
    let all = [
        "translate:30000",
        "entry:30000",
        "return:30000",
        "return-conditional",
        "vfree:3",
        "module",
        "scanner:8",
        "pause",
        "workers",
        "check",
        "comm",
        "kmsg",
        "cpuid",
        "marker",
        "reports",
        "console",
        "flush:3",
    ];
    let places = if std::env::var_os("LIBLEAK_ALL_PANICS").is_some() { &all[..] } else { &some[..] };
    for place in places {
        println!("{place}");
        // The small translation cache is flushed often.
        let boot = guest(place).accel(if place.starts_with("flush") { "tcg,tb-size=16" } else { "tcg" }).boot();
        let words = place.split(':').next().unwrap_or_default();
        assert_marked(&boot, &format!("injected, in {words}"));
    }
}

/// Clients get answers, and earlier leaks are reported.
#[test]
fn what_was_known_before_is_reported() {
    let places = Places::new("panics-known");
    let guest = Guest::new("panics-known", KERNEL).module("leaky").run(&["insmod:leaky"]).panics("pause");
    let guest = places.guest(guest);
    let boot = std::thread::scope(|scope| {
        let boot = scope.spawn(|| guest.boot());
        let mut orders = places.orders();
        let mut client = places.client();
        let answer = client.answer(&json!({"do": "mark"}));
        assert!(answer["error"].as_str().is_some_and(|e| e.contains("an internal error")), "{answer}");
        let scan = places.leak(&["scan"]);
        assert_eq!(scan.status, Some(24), "{}", scan.stderr);
        assert_has(&scan.stderr, &["an internal error"]);
        order(&mut orders, "workload 1");
        places.wait_for("obey: done workload");
        order(&mut orders, "end");
        boot.join().expect("the guest's thread")
    });
    assert_marked(&boot, "in pause");
    // A stale word may hide one.
    assert!(boot.reports().pop().is_some_and(|r| r.objects.len() >= 6), "{}", boot.hint());
    assert!(!places.control.exists(), "the socket is still there");
}

#[test]
fn a_check_that_fails_too_is_the_end_of_it() {
    let boot = Guest::new("panics-check", KERNEL).panics("return:30000,check").boot();
    assert_one_line(&boot.messages(), &boot.stderr, "in return");
    let last = "libleak: error: no result: the check failed by an internal error: injected, in check, at ";
    assert_eq!(boot.status, Some(0), "{}", boot.stderr);
    assert_has(&boot.stderr, &[last]);
}

#[test]
fn at_the_end() {
    let boot = Guest::new("panics-exit", KERNEL).panics("exit").boot();
    assert_one_line(&boot.messages(), &boot.stderr, "in exit");
    assert_fields!(boot.stderr; boot.status => Some(0), boot.reports().is_empty() => true);
    assert!(
        boot.stderr.contains("libleak: error: no result: the check failed by an internal error"),
        "{}",
        boot.stderr
    );
}
