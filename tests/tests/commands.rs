//! The smaller commands of `leak`, and the files in scripts/examples.

use std::path::{Path, PathBuf};
use tests::assert_fields;
use tests::assert_has;
use tests::program::{cache, leak, scratch, workspace};
use tests::{Finished, Guest, Program, planted};

fn run(words: &str) -> Finished {
    Program::new(leak()).args(words).limit(120).run()
}

/// The addresses of these names in output of the format of nm.
fn addresses(text: &str, names: &[&str]) -> Vec<u64> {
    let find = |name: &&str| {
        let line = text.lines().find(|line| line.split(' ').nth(2) == Some(name))?;
        u64::from_str_radix(line.split(' ').next()?, 16).ok()
    };
    names.iter().filter_map(find).collect()
}

/// One guest gives the snapshot, the reports, and the kernel image.
#[test]
fn symbols_and_comparisons() {
    let folder = scratch("commands-files");
    let [snapshot, lines] = ["guest.snapshot", "guest.jsonl"].map(|name| folder.join(name));
    let boot = Guest::new("commands", "bookworm-backports")
        .module("leaky")
        .run(&["insmod:leaky", "workload"])
        .losing(planted::lost)
        .option(&format!("snapshot={}", snapshot.display()))
        .option(&format!("report={}", lines.display()))
        .boot();
    boot.assert_ended_well();

    // The guest runs at another address than the image is linked for. All symbols move by one
    // distance.
    let names = ["_text", "linux_banner", "init_task", "kmem_cache_alloc_noprof", "slab_caches"];
    let running = run(&format!("symbols {}", snapshot.display()));
    let image = run(&format!("symbols {}", cache().join("kernels/bookworm-backports/vmlinuz").display()));
    let [there, here] = [&running, &image].map(|done| addresses(&done.stdout, &names));
    assert_fields!(
        format_args!("{}{}", running.stderr, image.stderr);
        there.len() => names.len(),
        here.len() => names.len(),
    );
    let slides: Vec<u64> = there.iter().zip(&here).map(|(there, here)| there.wrapping_sub(*here)).collect();
    assert!(slides.iter().all(|slide| *slide == slides[0] && slide % (2 << 20) == 0), "{slides:x?}");
    let readme = run(&format!("symbols {}", workspace().join("README.md").display()));
    assert_eq!(readme.status, Some(1), "{}", readme.stderr);
    assert_has(&readme.stderr, &["README.md"]);

    // The list's head and its members are two groups, every other object is one. One may be hidden.
    let text = std::fs::read_to_string(&lines).unwrap();
    let groups = text.matches(r#""type":"group""#).count();
    assert!((5..=7).contains(&groups), "{groups} groups; {}", boot.hint());
    let lines = lines.display();
    let same = run(&format!("compare {lines} {lines}"));
    assert_fields!(
        same.stderr;
        same.status => Some(0),
        same.stdout.as_str() => format!("0 new, 0 grown, 0 gone, {groups} unchanged\n").as_str(),
    );
    let clean = folder.join("clean.jsonl");
    let head = text.lines().next().unwrap().replace(&format!("\"groups\":{groups}"), "\"groups\":0");
    std::fs::write(&clean, head).unwrap();
    let worse = run(&format!("compare {} {lines}", clean.display()));
    assert_eq!(worse.status, Some(23), "{}", worse.stdout);
    assert_has(&worse.stdout, &["new leak in leak_list [leaky]: "]);
    let better = run(&format!("compare --json {lines} {}", clean.display()));
    assert_eq!(better.status, Some(0), "{}", better.stdout);
    assert_has(&better.stdout, &["\"new\": []"]);
    std::fs::write(&clean, "").unwrap();
    let none = run(&format!("compare {lines} {}", clean.display()));
    assert_eq!(none.status, Some(24), "{}", none.stderr);
    assert_has(&none.stderr, &["no result"]);
}

/// Images with each compression that distributions use.
#[test]
fn symbols_of_every_kind_of_image() {
    for kernel in ["bookworm", "bookworm-backports", "trixie-backports", "selfbuilt-kmemleak"] {
        let done = run(&format!("symbols {}", cache().join("kernels").join(kernel).join("vmlinuz").display()));
        assert_eq!(done.status, Some(0), "{kernel}: {}", done.stderr);
        assert_eq!(addresses(&done.stdout, &["_text"]), [0xffff_ffff_8100_0000], "{kernel}");
        assert!(done.stdout.lines().count() > 40_000, "{kernel}");
    }
}

#[test]
fn doctor_and_completions() {
    let done = run("doctor");
    assert_eq!(done.status, Some(0), "{}", done.stdout);
    for line in ["ok    plugin: ", " loads the plugin\n", "KVM: ", "virtme-ng: "] {
        assert!(done.stdout.contains(line), "no {line} in:\n{}", done.stdout);
    }
    let done = run("doctor --plugin /no/such.so --qemu /bin/true");
    assert_eq!(done.status, Some(1), "{}", done.stdout);
    assert!(done.stdout.contains("bad   plugin: there is no plugin at /no/such.so"), "{}", done.stdout);
    let done = run("doctor --qemu /bin/true");
    assert_eq!(done.status, Some(1), "{}", done.stdout);
    assert_has(&done.stdout, &["bad   QEMU: /bin/true"]);
    for shell in ["bash", "zsh", "fish"] {
        let done = run(&format!("completions {shell}"));
        assert_eq!(done.status, Some(0), "{}", shell);
        assert_has(&done.stdout, &["keep-kvm"]);
    }
}

fn example(name: &str) -> PathBuf {
    workspace().join("scripts/examples").join(name)
}

fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_else(|why| panic!("{}: {why}", path.display()))
}

/// The examples are well-formed, and the plugin has every option that they use.
#[test]
fn examples_are_well_formed() {
    let json: serde_json::Value = serde_json::from_str(&read(&example("syzkaller.cfg"))).expect("JSON");
    assert_eq!(json["type"], "qemu");
    let arguments = json["vm"]["qemu_args"].as_str().expect("arguments");
    assert_has(arguments, &["-accel tcg", "format=console"]);
    let xml = read(&example("libvirt.xml"));
    let done = Program::new("python3").args("-c").arg("import sys, xml.dom.minidom as d; d.parse(sys.argv[1])");
    let done = done.arg(example("libvirt.xml")).run();
    assert_eq!(done.status, Some(0), "{}", done.stderr);
    let yaml = read(&example("github-actions.yml"));
    assert!(yaml.lines().all(|line| !line.contains('\t')), "{}", yaml);
    assert_has(&yaml, &["leak run "]);

    let help = Program::new(tests::program::qemu("installed"))
        .args("-machine none -display none -plugin")
        .arg(tests::program::plugin_argument(&["help".to_owned()]))
        .run();
    let xml_value = xml.lines().find_map(|line| line.split("libleak.so,").nth(1)).expect("options");
    for options in [arguments.split("libleak.so,").nth(1).expect("options"), xml_value] {
        let options = options.split([' ', '\'', '"']).next().unwrap();
        for key in options.split(',').map(|option| option.split('=').next().unwrap()) {
            assert!(help.stderr.contains(&format!("  {key}=")), "no option {key}: {}", help.stderr);
        }
    }
}
