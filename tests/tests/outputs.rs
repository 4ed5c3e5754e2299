//! Reports of groups in all formats and destinations.

use detector::Count;
use detector::report::{Format, json};
use std::path::Path;
use tests::assert_fields;
use tests::assert_has;
use tests::program::{leak, scratch};
use tests::{Finished, Guest, Program, planted, report};

const KERNEL: &str = "bookworm-backports";

fn guest(test: &str) -> Guest {
    Guest::new(test, KERNEL).groups().module("leaky").losing(planted::lost)
}

fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_else(|why| panic!("{}: {why}", path.display()))
}

/// `leak check` of a snapshot.
fn check(snapshot: &Path, words: &str) -> Finished {
    let done = Program::new(leak()).arg("check").arg(snapshot).args(words).run();
    assert_fields!(done.stdout; done.status => Some(0), done.stderr.as_str() => "");
    done
}

/// All formats have the same contents. The planted list is one direct leak and two indirect ones.
#[test]
fn every_form_says_the_same() {
    let folder = scratch("outputs-files");
    let [text, lines, console] = ["report.txt", "report.jsonl", "console"].map(|name| folder.join(name));
    let mut guest = guest("outputs").run(&["insmod:leaky", "sleep:5"]).option("scan=2").option("min-age=0");
    for path in [&text, &lines, &console] {
        guest = guest.option(&format!("report={}", path.display()));
    }
    // Output files of an earlier attempt are emptied at the start.
    let boot = guest.option("format=console").boot();
    boot.assert_ended_well();
    assert!(!boot.stderr.contains("unreferenced"), "{}", boot.hint());

    let reports = json::read(&read(&lines)).expect("lines of JSON");
    assert!(reports.len() > 2, "{} reports; {}", reports.len(), boot.hint());
    let write = |format: Format| reports.iter().map(|r| format.write(r, false)).collect::<String>();
    assert!(write(Format::Text) == read(&text), "{}\n{}", write(Format::Text), read(&text));
    assert!(write(Format::Console) == read(&console), "{}", read(&console));
    assert_eq!(write(Format::JsonLines), read(&lines));
    assert_eq!(std::fs::read_dir(&folder).unwrap().count(), 3, "a temporary file stays");

    let each: String = reports.iter().map(|r| Format::Text.write(r, true)).collect();
    let objects: Vec<_> = report::parse(&each).into_iter().flat_map(|r| r.objects).collect();
    boot.assert_planted(&objects);
    assert_eq!(read(&console).matches("BUG: memory leak\nunreferenced object ").count(), {
        reports.iter().map(|r| r.groups.len()).sum::<usize>()
    });

    // The list: its head retains the other nodes.
    let groups = reports.iter().flat_map(|r| &r.groups);
    let list: Vec<_> = groups.filter(|g| g.frames[1].to_string().starts_with("leak_list")).collect();
    let [direct, indirect] = list[..] else { panic!("{list:#?}") };
    assert_fields!(
        format_args!("{direct:#?}");
        direct.direct => true,
        direct.leaks.len() => 1,
        direct.retains() => Count { objects: 2, bytes: 192 },
    );
    assert_fields!(
        format_args!("{indirect:#?}");
        indirect.direct => false,
        indirect.leaks.len() => 2,
        indirect.bytes() => 192,
    );
    for leak in &direct.leaks {
        assert_fields!(format_args!("{leak:?}"); leak.tgid => leak.pid, leak.cpu < 2 => true, leak.cache.is_some() => true);
    }
}

#[test]
fn a_hundred_thousand_leaks_of_one_place_are_one_group() {
    let boot = Guest::new("outputs-flood", KERNEL).groups().module("flood").run(&["insmod:flood"]).boot();
    boot.assert_ended_well();
    assert!(boot.console.contains("flood: lost 100000"), "{}", boot.hint());
    let report = boot.report();
    // A stale word may hide one of that many.
    let [object] = &report.objects[..] else { panic!("{} groups; {}", report.objects.len(), boot.hint()) };
    let group = object.group.as_ref().expect("a group");
    assert_fields!(format_args!("{group:?}; {}", boot.hint()); group.direct => true, (99_900..=100_000).contains(&group.objects) => true);
    assert_eq!(group.bytes, 32 * group.objects);
    assert!(planted::is_frame_of(&object.frames[1], "flood_init", "flood") || object.frames[1].ends_with(" [flood]"));
    assert!(boot.stderr.lines().count() < 60, "{}", boot.hint());
    boot.assert_trustworthy();
}

#[test]
fn what_is_suppressed_is_not_reported_nor_what_hangs_from_it() {
    let folder = scratch("outputs-suppress-files");
    let [known, printed, snapshot] = ["known", "printed", "snapshot"].map(|name| folder.join(name));
    std::fs::write(&known, "# the list\nleak:^leak_list\nleak:nobody_is_called_so\n").unwrap();
    let boot = Guest::new("outputs-suppress", KERNEL)
        .groups()
        .module("leaky")
        // Suppressed objects are not reported.
        .losing(|c| planted::lost(c).into_iter().filter(|lost| lost.structure != "list").collect())
        .run(&["insmod:leaky", "workload"])
        .option(&format!("suppress={}", known.display()))
        .option(&format!("suppress-print={}", printed.display()))
        .option(&format!("snapshot={}", snapshot.display()))
        .boot();
    boot.assert_ended_well();
    boot.assert_trustworthy();
    let report = boot.report();
    let left = 5 - boot.hidden_objects();
    assert_fields!(boot.hint(); report.summary.unreferenced => left, report.summary.suppressed => 3);
    assert!(!boot.stderr.contains("    leak_list"), "{}", boot.hint());
    let used = "Suppressions used:\n  count      bytes template\n      3        288 ^leak_list\n------";
    assert!(boot.stderr.contains(used), "{}", boot.hint());
    let unused = format!("not used: leak:nobody_is_called_so ({}, line 3)", known.display());
    assert_eq!(boot.stderr.matches("not used").count(), 1, "{}", boot.hint());
    assert_has(&boot.stderr, &[&unused]);

    // The same offline. There, nothing need be suppressed, and the printed suppressions cover the
    // rest.
    let all = check(&snapshot, "");
    assert_eq!(report::parse(&all.stdout)[0].summary.unreferenced, 3 + left, "{}", all.stdout);
    let known = format!("--suppress {}", known.display());
    let offline = check(&snapshot, &known);
    let before_summary = |text: &str| text.split("\nlibleak: ").next().map(str::to_owned);
    assert_eq!(before_summary(&boot.stderr), before_summary(&offline.stdout), "{}", boot.hint());
    let none = check(&snapshot, &format!("{known} --suppress {}", printed.display()));
    let summary = &report::parse(&none.stdout)[0].summary;
    assert_fields!(
        format_args!("{}\n{}", read(&printed), none.stdout);
        summary.unreferenced => 0,
        summary.suppressed => 3 + left,
    );
    assert!(read(&printed).contains("leak:^leak_vmalloc"), "{}", read(&printed));
    // A pattern may name a module.
    let module = folder.join("module");
    std::fs::write(&module, "leak:^leaky$\n").unwrap();
    let none = check(&snapshot, &format!("--suppress {} --format jsonl", module.display()));
    let report = json::read(&none.stdout).expect("a line of JSON").remove(0);
    assert_fields!(""; report.groups.len() => 0, report.suppressed[0].objects => 3 + left, report.suppressed[0].line => 1);
}

#[test]
fn a_full_disk_and_a_missing_folder_cost_no_report() {
    let nowhere = scratch("outputs-nowhere-files").join("nowhere/report.jsonl");
    let boot = guest("outputs-nowhere")
        .run(&["insmod:leaky", "workload"])
        .option(&format!("report={}", nowhere.display()))
        .option("report=/dev/full")
        .boot();
    assert_eq!(boot.status, Some(0), "{}", boot.hint());
    let messages = boot.messages();
    let [missing, full] = messages[..] else { panic!("{messages:#?}") };
    assert!(missing.starts_with("warning: cannot write report="), "{}", missing);
    assert_has(missing, &["make the folder"]);
    assert!(full.starts_with("error: cannot write report=/dev/full: "), "{}", full);
    assert_has(full, &["make room there"]);
    // The report comes once, though two files failed.
    assert_eq!(boot.report().summary.unreferenced, 8 - boot.hidden_objects(), "{}", boot.hint());
    assert!(!nowhere.exists());
}
