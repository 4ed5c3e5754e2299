//! Requests to a running guest: answers are right for every client, and the guest is not disturbed.
//!
//! LIBLEAK_CONTROL_SCANS is the number of scans under load. `scripts/many-scans` sets it.

use serde_json::{Value, json};
use snapshot::Snapshot;
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::{Duration, Instant};
use tests::assert_fields;
use tests::assert_has;
use tests::control::{Client, Places, order};
use tests::program::{plugin_argument, qemu};
use tests::{Boot, Guest, Program};

/// Boots a guest and runs the test beside it.
fn talk(guest: &Guest, talk: impl FnOnce()) -> Boot {
    std::thread::scope(|scope| {
        let boot = scope.spawn(|| guest.boot());
        talk();
        boot.join().expect("the guest's thread")
    })
}

/// Waits until objects are tracked.
fn wait_until_it_tracks(client: &mut Client) {
    let began = Instant::now();
    while client.ask(&json!({"do": "status"}))["tracking"] != true {
        assert!(began.elapsed() < Duration::from_secs(100));
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// The functions of a stack, with their modules.
fn functions(stack: &Value) -> Vec<(String, String)> {
    let text = |v: &Value| v.as_str().unwrap_or_default().to_owned();
    stack.as_array().into_iter().flatten().map(|f| (text(&f["function"]), text(&f["module"]))).collect()
}

fn is_of(stack: &Value, module: &str, function: &str) -> bool {
    functions(stack).contains(&(function.to_owned(), module.to_owned()))
}

/// Reads every line `zoo: KIND SPECIES 0xADDRESS SIZE` of a console.
fn specimens(console: &str, kind: &str) -> Vec<(String, u64, u64)> {
    let lines = console.lines().filter_map(|l| l.split_once("zoo: ")?.1.strip_prefix(kind)?.strip_prefix(' '));
    lines
        .filter_map(|line| {
            let mut words = line.split_whitespace();
            let species = words.next()?.to_owned();
            let address = u64::from_str_radix(words.next()?.strip_prefix("0x")?, 16).ok()?;
            Some((species, address, words.next()?.parse().ok()?))
        })
        .collect()
}

/// `why` names the holder of every held object, for its last byte too, and no holder of a lost one.
fn reasons_are_told(client: &mut Client, console: &str) {
    let held = specimens(console, "held");
    assert!(held.len() > 50, "{}", held.len());
    for (species, address, size) in &held {
        let answer = client.ask(&json!({"do": "why", "address": format!("{:#x}", address + size - 1)}));
        let path = &answer["paths"][0];
        assert_fields!(
            format_args!("{species}");
            &path["address"] => &json!(format!("{address:#x}")),
            &path["size"] => &json!(size),
        );
        let holders = path["holders"].as_array().expect("holders");
        let last = holders.last().unwrap_or_else(|| panic!("{species} has no holder: {answer}"));
        assert!(last["what"] != "object" || holders.len() > 1, "{species}: {answer}");
        if species == "in-vmalloc" {
            // tests/modules/zoo/zoo_held.c: vmalloc_holder[700].
            assert_fields!(
                format_args!("{answer}");
                holders[0]["offset"] => 0x15e0,
                holders[0]["kind"] => "vmalloc",
            );
            assert_eq!(last["what"], "root", "{answer}");
        }
    }
    let lost = specimens(console, "leak");
    let alone = lost.iter().filter(|(species, ..)| species == "kmalloc" || species == "vmalloc");
    let nobody = alone.filter(|(_, address, _)| {
        let answer = client.ask(&json!({"do": "why", "address": format!("{address:#x}")}));
        answer["paths"][0]["holders"] == json!([])
    });
    // A stale word may refer to one.
    assert!(nobody.count() > 0);
    let refused = client.answer(&json!({"do": "why", "address": "0x10", "id": "x"}));
    assert_fields!(""; refused["ok"] => false, refused["id"] => "x");
}

/// Growth is reported by stack and by site with its size, though all objects are referenced.
fn growth_is_told(places: &Places, client: &mut Client, orders: &mut UnixStream) {
    client.ask(&json!({"do": "mark", "name": "first"}));
    order(orders, "add 40");
    places.wait_for("obey: done add 40");
    let second = client.ask(&json!({"do": "mark"}));
    order(orders, "add 2");
    places.wait_for("obey: done add 2");
    for (mark, objects) in [(json!("first"), 42), (second["name"].clone(), 2)] {
        for by in ["stack", "site"] {
            let answer = client.ask(&json!({"do": "diff", "name": mark, "by": by, "limit": 1000}));
            let place = answer["places"]
                .as_array()
                .expect("places")
                .iter()
                .find(|p| is_of(&p["stack"], "grower", "grower_add"));
            let place = place.unwrap_or_else(|| panic!("{mark} by {by}: {answer}"));
            let (then, now) = then_and_now(place);
            assert_eq!(now - then, objects, "{place}");
            // The objects are in kmalloc-256.
            assert_eq!(place["now"]["bytes"], 256 * 42, "{place}");
        }
    }
    // The last mark by default, as text.
    let text = places.leak(&["diff", "--limit", "1000"]);
    assert_eq!(text.status, Some(0), "{}", text.stderr);
    assert!(text.stdout.contains("+2 objects, +512 bytes, now 42 objects, 10752 bytes\n"), "{}", text.stdout);
    let refused = client.answer(&json!({"do": "diff", "name": "never made"}));
    assert!(refused["error"].as_str().is_some_and(|e| e.contains("first")), "{refused}");
    let top = client.ask(&json!({"do": "top", "limit": 5}));
    assert_eq!(top["places"].as_array().map(Vec::len), Some(5), "{top}");
}

/// Counts of a site at a mark and now.
fn then_and_now(place: &Value) -> (u64, u64) {
    let count = |which: &str| place[which]["objects"].as_u64().expect("a number");
    (count("then"), count("now"))
}

/// Objects that a scan reports from the function that loses them.
fn lost(answer: &Value) -> u64 {
    let groups = answer["groups"].as_array().expect("groups").iter();
    for group in groups.clone() {
        assert!(is_of(&group["stack"], "grower", "grower_lose"), "a false report: {group}");
    }
    groups.map(|g| g["count"].as_u64().expect("a count")).sum()
}

/// A scan reports new leaks, once. Marks and clear leave out earlier ones. A stale word may hide
/// one of many.
fn news_are_told_once(places: &Places, client: &mut Client, orders: &mut UnixStream) {
    let mut lose = |count: u32| {
        order(orders, &format!("lose {count}"));
        places.wait_for(&format!("obey: done lose {count}"));
    };
    lose(30);
    let first = client.ask(&json!({"do": "scan", "min_age": 0, "id": 1}));
    assert!((28..=30).contains(&lost(&first)), "{first}");
    assert_fields!(""; first["id"] => 1, first["report"]["schema"] => 1);
    assert!(lost(&client.ask(&json!({"do": "scan", "min_age": 0}))) <= 2);
    // All objects are too young.
    lose(31);
    assert!(lost(&client.ask(&json!({"do": "scan", "min_age": 100_000}))) == 0);
    let cleared = client.ask(&json!({"do": "clear"}));
    assert!(cleared["objects"].as_u64() >= Some(29), "{cleared}");
    assert!(lost(&client.ask(&json!({"do": "scan", "min_age": 0}))) <= 2);
    lose(32);
    client.ask(&json!({"do": "mark", "name": "third"}));
    assert!(lost(&client.ask(&json!({"do": "scan", "min_age": 0}))) == 0);
    lose(33);
    let scan = places.leak(&["scan", "--min-age", "0"]);
    assert_eq!(scan.status, Some(23), "{}\n{}", scan.stdout, scan.stderr);
    let report = tests::report::parse(&scan.stdout);
    let [object] = report[0].objects.as_slice() else { panic!("{}", scan.stdout) };
    assert_fields!(scan.stdout; (31..=33).contains(&object.count()) => true, object.frames[1].starts_with("grower_lose") => true);
    // Objects that a stale word hid may still be reported.
    assert!(places.leak(&["scan", "--json"]).stdout.starts_with("{\"do\":\"scan\""));
}

/// Clients that misbehave do not disturb others.
fn bad_clients_do_no_harm(places: &Places, client: &mut Client) {
    let mut garbage = places.client();
    for line in [&b"\xff\x00garbage"[..], b"[]", &b"x".repeat(1 << 20), b"{\"do\":\"dance\"}"] {
        garbage.send(line);
        garbage.send(b"\n");
        let answer = garbage.line().expect("an answer");
        assert!(answer["error"].as_str().is_some_and(|e| e.contains("send ")), "{answer}");
    }
    garbage.ask(&json!({"do": "status"}));
    // One is in the middle of a request, one in the middle of an answer, one never reads.
    for _ in 0..20 {
        places.client().send(b"{\"do\":\"sc");
        let mut unread = places.client();
        unread.send(&b"{\"do\":\"top\",\"limit\":5000}\n".repeat(3));
        drop(unread);
    }
    let mut silent = places.client();
    silent.send(&b"{\"do\":\"status\"}\n".repeat(2000));
    let mut crowd: Vec<Client> = (0..100).map(|_| places.client()).collect();
    crowd.iter_mut().for_each(|c| c.send(b"{\"do\":\"scan\"}\n"));
    for each in &mut crowd {
        let answer = each.line().expect("an answer");
        assert_fields!(format_args!("{answer}"); answer["ok"] => true, answer["groups"] => json!([]));
    }
    // Every client gets an answer.
    let mut more: Vec<Client> = (0..250).map(|_| places.client()).collect();
    let refused = more.iter_mut().filter_map(|c| {
        // A refused client may be disconnected already.
        let answer = c.line_after(b"{\"do\":\"status\"}\n");
        answer.is_none_or(|a| a["ok"] == false).then_some(())
    });
    assert!(refused.count() >= 90);
    drop((crowd, more, silent));
    assert_eq!(client.ask(&json!({"do": "status"}))["tracking"], true);
}

#[test]
fn a_running_guest_is_asked() {
    let places = Places::new("control");
    // A killed process left this file.
    drop(UnixListener::bind(&places.control).expect("a stale socket"));
    let guest = places.guest(Guest::new("control", "bookworm-backports").module("zoo").run(&["insmod:zoo"]));
    let snapshot = places.control.with_file_name("snapshot");
    let boot = talk(&guest, || {
        let mut orders = places.orders();
        let mut client = places.client();
        assert_eq!(std::fs::metadata(&places.control).expect("the socket").mode() & 0o7777, 0o600);
        let mut events = places.client();
        events.ask(&json!({"do": "events"}));
        wait_until_it_tracks(&mut client);
        reasons_are_told(&mut client, &places.console_text());
        client.ask(&json!({"do": "snapshot", "path": snapshot}));
        // From here on, what the zoo lost is not new.
        growth_is_told(&places, &mut client, &mut orders);
        news_are_told_once(&places, &mut client, &mut orders);
        order(&mut orders, "workload 1 &");
        client.ask(&json!({"do": "mark", "name": "last"}));
        bad_clients_do_no_harm(&places, &mut client);
        let status = places.leak(&["status"]);
        assert_eq!(status.status, Some(0), "{}", status.stdout);
        assert_has(&status.stdout, &["tracking     yes"]);
        let watch = std::thread::scope(|scope| {
            let watch = scope.spawn(|| places.leak(&["watch", "--every", "0.2"]));
            std::thread::sleep(Duration::from_secs(2));
            order(&mut orders, "end");
            watch.join().expect("leak watch")
        });
        assert_eq!(watch.status, Some(0), "{}", watch.stderr);
        let lines: Vec<&str> = watch.stdout.lines().collect();
        assert!(lines.len() > 2, "{lines:#?}");
        assert_has(lines[0], &[" allocations/s"]);
        assert_eq!(lines.last(), Some(&"the guest has ended"));
        let events: Vec<Value> = std::iter::from_fn(|| events.line()).collect();
        let count = |name: &str| events.iter().filter(|e| e["event"] == name).count();
        assert_fields!(format_args!("{events:#?}"); count("mark") => 4, count("clear") => 1, count("scan") > 5 => true);
        assert_eq!(events.last().map(|e| &e["event"]), Some(&"end".into()));
    });
    boot.assert_ended_well();
    boot.assert_trustworthy();
    assert!(!places.control.exists(), "the socket is still there");
    // This is not the same as a report without leaks.
    let late = places.leak(&["scan"]);
    assert_eq!(late.status, Some(24), "{}", late.stderr);
    assert_has(&late.stderr, &["cannot reach libleak at "]);
    assert!(snapshot.exists());
}

/// A site of a module stays the same site when the module is loaded again at another address. The
/// module's first symbols were dropped meanwhile, and other modules lie at their addresses.
#[test]
fn a_mark_knows_the_modules_of_its_time() {
    let places = Places::new("control-gone");
    let others = "for round in $(seq 25); do\nfor module in veth overlay loop; do modprobe $module && rmmod $module; done\ndone\n";
    let guest = Guest::new("control-gone", "bookworm-backports")
        .script("devices", "#!/bin/sh\nmodprobe dummy numdummies=$1\n")
        .script("others", &format!("#!/bin/sh\nrmmod dummy\n{others}"));
    let guest = places.guest(guest);
    let snapshot = places.control.with_file_name("snapshot");
    let boot = talk(&guest, || {
        let mut orders = places.orders();
        let mut client = places.client();
        let mut do_so = |what: &str| {
            order(&mut orders, what);
            places.wait_for(&format!("obey: done {what}"));
        };
        do_so("devices 50");
        client.ask(&json!({"do": "mark", "name": "fifty"}));
        do_so("others 1");
        client.ask(&json!({"do": "snapshot", "path": snapshot}));
        let modules = Snapshot::open(&snapshot).expect("a snapshot").moment().modules.to_vec();
        assert!(!modules.iter().any(|load| load.module.name == "dummy"), "it is not forgotten");
        do_so("devices 60");
        let answer = client.ask(&json!({"do": "diff", "name": "fifty", "limit": 1000}));
        let all = answer["places"].as_array().expect("places");
        let of_dummy: Vec<_> =
            all.iter().filter(|p| is_of(&p["stack"], "dummy", "dummy_init_module")).map(then_and_now).collect();
        assert!(of_dummy.contains(&(50, 60)), "{of_dummy:?} {answer}");
        // The rest of the objects are as at the mark or more. Rarely needed ones, as of a tree, may
        // be new.
        assert!(of_dummy.iter().all(|(then, now)| *then > 0 || *now < 50), "{of_dummy:?} {answer}");
        order(&mut orders, "end");
    });
    boot.assert_ended_well();
}

/// An empty result is not reported if nothing can be found.
#[test]
fn a_guest_without_linux_is_no_guest_without_leaks() {
    let places = Places::new("control-bare");
    let plugin = plugin_argument(&[format!("control={}", places.control.display())]);
    let bare =
        Program::new(qemu("installed")).args("-nodefaults -no-user-config -display none -plugin").arg(plugin).limit(15);
    let done = std::thread::scope(|scope| {
        let bare = scope.spawn(|| bare.run());
        let mut client = places.client();
        let status = client.ask(&json!({"do": "status"}));
        assert_fields!(status; status["tracking"] => false, status["why"].is_string() => true);
        for request in ["scan", "mark", "clear", "top"] {
            let answer = client.answer(&json!({"do": request}));
            assert!(answer["error"].as_str().is_some_and(|e| e.contains("nothing was tracked")), "{answer}");
        }
        let scan = places.leak(&["scan"]);
        assert_eq!(scan.status, Some(24), "{}", scan.stderr);
        assert_has(&scan.stderr, &["nothing was tracked"]);
        assert_eq!(places.leak(&["status"]).status, Some(24));
        bare.join().expect("QEMU's thread")
    });
    let [message] = done.messages()[..] else { panic!("{}", done.stderr) };
    assert!(message.contains("nothing was tracked"), "{message}");
}

/// Many scans of a guest under load report no object that is not lost.
#[test]
fn many_scans_under_load_report_nothing() {
    let scans: usize = match std::env::var("LIBLEAK_CONTROL_SCANS") {
        Ok(n) => n.parse().expect("LIBLEAK_CONTROL_SCANS is a number"),
        Err(_) => return,
    };
    let kernel = std::env::var("LIBLEAK_CONTROL_KERNEL").unwrap_or_else(|_| "bookworm-backports".to_owned());
    let places = Places::new("control-many");
    // The first step puts stress-ng into the guest.
    let guest = Guest::new("control-many", &kernel).memory(1024).limit(3600).run(&["stress:1"]);
    let guest = places.guest(guest);
    let boot = talk(&guest, || {
        let mut orders = places.orders();
        let mut client = places.client();
        wait_until_it_tracks(&mut client);
        let (mut times, mut reported, mut loads) = (Vec::new(), Vec::new(), 0);
        let over = || places.console_text().matches("stress: done").count();
        let before = over();
        while times.len() < scans {
            // The load starts again when it ends.
            if over() - before == loads {
                loads += 1;
                order(&mut orders, "stress 60 &");
            }
            let began = Instant::now();
            let answer = client.ask(&json!({"do": "scan", "min_age": 0}));
            times.push(began.elapsed());
            reported.extend(answer["groups"].as_array().expect("groups").iter().cloned());
        }
        times.sort();
        let summary = client.ask(&json!({"do": "status"}));
        println!(
            "{kernel}: {scans} scans, {} groups reported, median answer {:?}, longest {:?}; {} turns of load, {}",
            reported.len(),
            times[scans / 2],
            times[scans - 1],
            loads,
            summary["figures"]
        );
        order(&mut orders, "end");
        assert_eq!(reported, [] as [Value; 0]);
    });
    boot.assert_ended_well();
    boot.assert_trustworthy();
    let _ = std::io::stdout().flush();
}
