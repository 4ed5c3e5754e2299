//! Memory images that QEMU writes of a guest: `leak check` finds in them what the module lost.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use tests::monitor::{Monitor, wait_for};
use tests::program::{leak, scratch};
use tests::report::{self, Unreferenced};
use tests::{Finished, Guest, Program, planted};

const KERNEL: &str = "bookworm-backports";
/// The line of the console after which the guest only waits.
const READY: &str = "begin sleep:";
/// QEMU's options for `dump-guest-memory`. Not every QEMU has all.
const FORMATS: [(&str, &str); 6] =
    [("elf", ""), ("paging", "-p"), ("zlib", "-z"), ("raw", "-z -R"), ("lzo", "-l"), ("snappy", "-s")];

/// The files of a test.
struct Files {
    folder: PathBuf,
    console: PathBuf,
    monitor: PathBuf,
    qmp: PathBuf,
}

impl Files {
    fn new(test: &str) -> Files {
        let folder = scratch(&format!("{test}-files"));
        let file = |name| folder.join(name);
        Files { console: file("console"), monitor: file("monitor"), qmp: file("qmp"), folder }
    }

    /// Boots a guest that leaks, and calls `meanwhile` once it only waits. Returns the console.
    fn boot(&self, guest: Guest, meanwhile: impl FnOnce(&mut Monitor)) -> String {
        let guest = guest.module("leaky").console(&self.console).monitor(&self.monitor);
        let guest = guest.run(&["insmod:leaky", "workload", "sleep:200"]);
        let guest = guest.qemu_arg("-qmp").qemu_arg(&format!("unix:{},server=on,wait=off", self.qmp.display()));
        let _ = std::fs::remove_file(&self.console);
        std::thread::scope(|scope| {
            let boot = scope.spawn(|| guest.boot());
            wait_for(&self.console, READY);
            meanwhile(&mut Monitor::connect(&self.monitor));
            boot.join().expect("the guest boots").console
        })
    }

    /// Has the monitor write an image. `None` if this QEMU does not know the format.
    fn dump(&self, monitor: &mut Monitor, (name, options): (&str, &str)) -> Option<PathBuf> {
        let file = self.folder.join(name);
        let _ = std::fs::remove_file(&file);
        let said = monitor.command(&format!("dump-guest-memory {options} {}", file.display()));
        (!said.contains("Error") && file.exists()).then_some(file)
    }
}

fn check(image: &Path) -> Finished {
    Program::new(leak()).arg("check").arg(image).arg("--each").run()
}

/// The objects that a check of an image reports. Nothing may make it unreliable.
fn objects(image: &Path) -> Vec<Unreferenced> {
    let checked = check(image);
    assert_eq!((checked.status, checked.stderr.as_str()), (Some(0), ""), "{}", image.display());
    assert!(!checked.stdout.contains("unreliable"), "{}: {}", image.display(), checked.stdout);
    report::parse(&checked.stdout).pop().expect("a report").objects
}

fn addresses(objects: &[Unreferenced]) -> BTreeSet<u64> {
    objects.iter().map(|object| object.address).collect()
}

/// What the module lost and what the metadata of this kernel shows. Before 6.18 large kmallocs have
/// no mark.
fn lost(console: &str) -> BTreeMap<u64, String> {
    let all = planted::planted(console);
    assert_eq!(all.len(), 8, "{console}");
    all.into_iter().filter(|p| p.kind != "kmalloc-large").map(|p| (p.address, p.kind)).collect()
}

/// The objects are those that were lost. A stale word may hide one of the structures.
fn assert_found(found: &BTreeSet<u64>, lost: &BTreeMap<u64, String>, name: &str) {
    let others: Vec<_> = found.iter().filter(|at| !lost.contains_key(at)).collect();
    assert!(others.is_empty(), "{name}: reported and not lost: {others:x?}");
    let missing: BTreeSet<&str> =
        lost.iter().filter(|(at, _)| !found.contains(at)).map(|(_, kind)| &kind[..4.min(kind.len())]).collect();
    assert!(missing.len() <= 1, "{name}: lost and not reported: {missing:?}");
    if !missing.is_empty() {
        println!("{name}: hidden: {missing:?}");
    }
}

#[test]
fn every_format_shows_the_leaks() {
    let files = Files::new("images");
    let mut images = Vec::new();
    let by_socket = files.folder.join("by-socket");
    let console = files.boot(Guest::new("images", KERNEL).without_plugin(), |monitor| {
        for format in FORMATS {
            images.extend(files.dump(monitor, format));
        }
        let _ = std::fs::remove_file(&by_socket);
        let dump = Program::new(leak()).arg("dump").arg("--qmp").arg(&files.qmp).arg(&by_socket).run();
        assert_eq!((dump.status, dump.stderr.as_str()), (Some(0), ""));
        let dump =
            |format: &str| Program::new(leak()).args("dump x --format").arg(format).arg("--qmp").arg(&files.qmp).run();
        let refused = dump("no-such-format");
        assert!(refused.status == Some(1) && refused.stderr.contains("QEMU does not write"), "{}", refused.stderr);
        monitor.quit();
    });
    // Every QEMU has these.
    assert!(images.len() >= 3, "{images:?}");
    images.push(by_socket);
    let lost = lost(&console);
    for image in &images {
        assert_found(&addresses(&objects(image)), &lost, &image.display().to_string());
    }
    let text = check(&images[0]).stdout;
    assert!(text.contains("note: put slub_debug=U,") && text.contains("leaky_object"), "{text}");

    let whole = std::fs::read(&images[0]).unwrap();
    let cut = files.folder.join("cut");
    std::fs::write(&cut, &whole[..whole.len() / 2]).unwrap();
    let refused = check(&cut);
    assert!(refused.status == Some(1) && refused.stderr.contains("truncated"), "{}", refused.stderr);
    std::fs::write(&cut, &whole[100..4096]).unwrap();
    assert!(check(&cut).stderr.contains("is no memory image of a known form"));
}

#[test]
fn recorded_stacks_name_the_functions() {
    let files = Files::new("images-stacks");
    let mut image = None;
    let guest = Guest::new("images-stacks", KERNEL).without_plugin().append("slub_debug=U");
    let console = files.boot(guest, |monitor| {
        image = files.dump(monitor, FORMATS[0]);
        monitor.quit();
    });
    let (lost, objects) = (lost(&console), objects(&image.expect("an image")));
    assert_found(&addresses(&objects), &lost, "slub_debug=U");
    let mut named = 0;
    for object in &objects {
        let function = match lost[&object.address].as_str() {
            "kmalloc" => "leak_kmalloc",
            "kmem-cache" => "leak_cache_object",
            kind if kind.starts_with("list-") => "leak_list",
            _ => continue,
        };
        assert!(object.frames.iter().any(|f| f.starts_with(function) && f.ends_with("[leaky]")), "{object:x?}");
        named += 1;
    }
    assert!(named >= 2, "{objects:x?}");
}

/// The plugin's own snapshot of the same stopped guest has the same leaks, but for large kmallocs.
#[test]
fn the_tracked_snapshot_has_the_same_leaks() {
    let files = Files::new("images-tracked");
    let snapshot = files.folder.join("snapshot");
    let mut image = None;
    let guest = Guest::new("images-tracked", KERNEL).option(&format!("snapshot={}", snapshot.display()));
    let console = files.boot(guest, |monitor| {
        monitor.command("stop");
        image = files.dump(monitor, FORMATS[0]);
        monitor.quit();
    });
    let large: BTreeSet<u64> =
        planted::planted(&console).iter().filter(|p| p.kind == "kmalloc-large").map(|p| p.address).collect();
    let tracked: BTreeSet<u64> = addresses(&objects(&snapshot)).difference(&large).copied().collect();
    assert!(!tracked.is_empty());
    assert_eq!(addresses(&objects(&image.expect("an image"))), tracked);
}
