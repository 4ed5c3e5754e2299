//! Markers: the guest triggers scans, and every leak belongs to the test during which it was
//! allocated.

use detector::guest_tests::{Test, Verdict};
use detector::report::{Format, Report, json};
use std::path::PathBuf;
use tests::assert_fields;
use tests::assert_has;
use tests::program::{leak, scratch};
use tests::{Boot, Guest, Program};

/// The common part of the steps.
const HEAD: &str = "#!/bin/sh
lose() { echo $1 >/sys/module/loser/parameters/lose; }
say() { echo \"$1\" >/sys/module/loser/parameters/say; }
part() { printf %s \"$1\" >/sys/module/loser/parameters/say; }
insmod /modules/loser.ko
";

/// Markers in all three ways.
const MARKERS: &str = "
lose 200
echo 'leak:test A, the first' >/proc/self/comm
lose 90
echo 'libleak: test B' >/dev/kmsg
lose 190
echo leak:scan >/proc/self/comm
lose 500
/guest/marker scan
lose 3000
echo '<6>libleak: mark' >/dev/kmsg
lose 1000
echo leak:clear >/proc/self/comm
/guest/marker test C
lose 2000
/guest/marker test
lose 4000
printf 'leak:test \\033[2J\\377</name>\\n' >/proc/self/comm
lose 90
echo leak:test >/proc/self/comm
/guest/marker test \"$(head -c 65536 /dev/zero | tr '\\0' x | head -c 30000)\"
/guest/marker test 'the last, which has no end'
lose 500
";

/// Test output on the console and in the kernel's log. KUnit prints results of cases without an end
/// of line.
const LINES: &str = "
echo TAP version 13
echo 1..2
lose 60
echo '# selftests: net: foo.sh'
lose 90
echo '# ok 1 part'
lose 190
echo 'not ok 1 selftests: net: foo.sh # exit=1'
lose 500
echo 'ok 2 alone # SKIP there is none'
say '    # Subtest: suite'
say '    1..2'
lose 1000
part '    ok 1 case'
part '    not ok 2 other'
lose 2000
say 'ok 3 suite'
lose 4000
";

/// The same through pipes, whose readers write the lines when all is lost. Some lines are for
/// nobody.
const PIPES: &str = "
echo 'ok 9 nowhere' | cat >/dev/null
{
    lose 60
    echo '# selftests: net: foo.sh'
    lose 90
    { echo 'ok 1 part' | sed 's/^/# /'; }
    lose 190
    echo 'not ok 1 selftests: net: foo.sh # exit=1'
    lose 500
    printf 'ok 2 al'
    printf 'one # SKIP there is none\\n'
} | { sleep 2; cat; } | tee /tmp/log
echo 'leak:test after' >/proc/self/comm
lose 2000
";

struct Files {
    text: PathBuf,
    lines: PathBuf,
    snapshot: PathBuf,
}

fn guest(test: &str, kernel: &str, steps: &str) -> (Guest, Files) {
    let folder = scratch(&format!("{test}-reports"));
    let [text, lines, snapshot] = ["report.txt", "report.jsonl", "snapshot"].map(|name| folder.join(name));
    let guest = Guest::new(test, kernel)
        .groups()
        .module("loser")
        .program("marker")
        .script("steps", &format!("{HEAD}{steps}"))
        .option(&format!("report={}", text.display()))
        .option(&format!("report={}", lines.display()))
        .run(&["steps"]);
    (guest, Files { text, lines, snapshot })
}

impl Files {
    /// Writes a snapshot with each report.
    fn snapshot_option(&self) -> String {
        format!("snapshot={}", self.snapshot.display())
    }

    /// The reports. Text, JSON lines and the check of the snapshot must agree.
    fn reports(&self, boot: &Boot) -> Vec<Report> {
        boot.assert_ended_well();
        let read = |path| std::fs::read_to_string(path).expect("a report");
        let reports = json::read(&read(&self.lines)).expect("lines of JSON");
        let text: String = reports.iter().map(|r| Format::Text.write(r, false)).collect();
        assert!(text == read(&self.text), "{}", boot.hint());
        let last = reports.last().expect("a report");
        let done = Program::new(leak()).arg("check").arg(&self.snapshot).args("--format jsonl").run();
        assert_eq!(done.status, Some(0), "{}", done.stderr);
        let again = json::read(&done.stdout).expect("lines of JSON").remove(0);
        assert_fields!(
            boot.hint();
            &again.groups => &last.groups,
            &again.tests => &last.tests,
            &again.test => &last.test,
        );
        reports
    }
}

/// The sizes of `loser`'s objects in a report, with their tests. It loses several of each size,
/// since a stale word may hide one.
fn lost(report: &Report) -> Vec<(u64, Option<&str>)> {
    let ours = report.groups.iter().filter(|g| g.frames.iter().any(|f| f.to_string().ends_with("[loser]")));
    let mut lost: Vec<_> = ours
        .inspect(|g| assert!((3..=4).contains(&g.leaks.len()), "{g:#?}"))
        .map(|g| (g.leaks[0].size, g.test.as_deref()))
        .collect();
    lost.sort_unstable();
    lost
}

fn test(name: &str, result: Option<Verdict>) -> Test {
    Test { name: name.to_owned(), result }
}

const END: &str = "the last, which has no end";

fn markers(test_name: &str, kernel: &str) {
    let (guest, files) = guest(test_name, kernel, MARKERS);
    let boot = guest.option(&files.snapshot_option()).boot();
    let reports = files.reports(&boot);
    let [first, second, last] = &reports[..] else { panic!("{} reports; {}", reports.len(), boot.hint()) };
    // The report of a marker has earlier leaks, and no later ones.
    assert_eq!(lost(first), [(96, Some("A, the first")), (192, Some("B")), (256, None)], "{}", boot.hint());
    assert_eq!(lost(second), [(512, Some("B"))], "{}", boot.hint());
    let odd = "\\u{1b}[2J\u{fffd}</name>";
    // Neither objects from before the mark nor cleared ones.
    assert_eq!(lost(last), [(96, Some(odd)), (512, Some(END)), (2048, Some("C")), (4096, None)], "{}", boot.hint());
    assert_eq!([&first.test, &second.test, &last.test].map(Option::as_deref), [Some("B"), Some("B"), Some(END)]);
    assert_fields!(""; &first.tests => &vec![test("A, the first", None)], &second.tests => &vec![]);
    let long = "x".repeat(256);
    let ended: Vec<Test> = ["B", "C", odd, &long, END].iter().map(|name| test(name, None)).collect();
    assert_eq!(last.tests, ended, "{}", boot.hint());
    boot.assert_ended_well();
}

#[test]
fn markers_scan_and_name_tests_on_6_1() {
    markers("markers-6.1", "bookworm");
}

#[test]
fn markers_scan_and_name_tests_on_7_3() {
    markers("markers-7.3", "trixie-backports");
}

#[test]
fn lines_of_tests_name_them_and_are_times_to_scan() {
    let (guest, files) = guest("markers-ktap", "bookworm-backports", LINES);
    let boot = guest.option("per-test=on").option(&files.snapshot_option()).boot();
    let reports = files.reports(&boot);
    let foo = "selftests: net: foo.sh";
    let part = format!("{foo}/part");
    let want = [
        (part.as_str(), Verdict::Ok, vec![(64, None), (96, Some(part.as_str()))]),
        (foo, Verdict::NotOk, vec![(192, Some(foo))]),
        ("alone", Verdict::Skip, vec![(512, Some("alone"))]),
        ("suite/case", Verdict::Ok, vec![(1024, Some("suite/case"))]),
        ("suite/other", Verdict::NotOk, vec![]),
        ("suite", Verdict::Ok, vec![(2048, Some("suite"))]),
    ];
    assert_eq!(reports.len(), want.len() + 1, "{}", boot.hint());
    for (report, (name, result, leaks)) in reports.iter().zip(want) {
        assert_eq!(report.test.as_deref(), Some(name), "{}", boot.hint());
        assert_eq!(report.tests, [test(name, Some(result))], "{}", boot.hint());
        assert_eq!(lost(report), leaks, "{name}; {}", boot.hint());
    }
    let last = &reports[reports.len() - 1];
    assert_fields!(
        boot.hint();
        lost(last) => vec![(4096, None)],
        last.test.as_deref() => None,
        last.tests.len() => 0,
    );
}

#[test]
fn lines_in_pipes_count_when_they_are_written() {
    let (guest, files) = guest("markers-pipes", "bookworm-backports", PIPES);
    let boot = guest.option(&files.snapshot_option()).boot();
    let reports = files.reports(&boot);
    let [report] = &reports[..] else { panic!("{} reports; {}", reports.len(), boot.hint()) };
    let foo = "selftests: net: foo.sh";
    let part = format!("{foo}/part");
    let want = [(64, None), (96, Some(part.as_str())), (192, Some(foo)), (512, Some("alone")), (2048, Some("after"))];
    assert_eq!(lost(report), want, "{}", boot.hint());
    let ended = [
        test(&part, Some(Verdict::Ok)),
        test(foo, Some(Verdict::NotOk)),
        test("alone", Some(Verdict::Skip)),
        test("after", None),
    ];
    assert_eq!(report.tests, ended, "{}", boot.hint());
}

#[test]
fn a_guest_that_is_not_trusted_marks_nothing() {
    let (guest, files) = guest("markers-off", "bookworm-backports", &format!("{MARKERS}{LINES}"));
    let boot = guest.option("guest-markers=off").option("tests=off").option(&files.snapshot_option()).boot();
    let reports = files.reports(&boot);
    assert_eq!(reports.len(), 1, "{}", boot.hint());
    assert_fields!(boot.hint(); reports[0].groups.iter().all(|g| g.test.is_none()) => true, reports[0].tests.is_empty() => true);
    // Objects from before a mark are reported too: all come from one site.
    let sizes: u64 = reports[0].groups.iter().map(|g| g.leaks.len() as u64).sum();
    assert!(sizes >= 50, "{sizes}; {}", boot.hint());
}

#[test]
fn markers_as_fast_as_two_cpus_can_do_no_harm() {
    let (guest, files) = guest("markers-hostile", "bookworm-backports", "/guest/markers && exec /guest/busy");
    let boot = guest.program("markers").program("busy").option("scan=1").boot();
    assert_eq!(boot.status, Some(0), "{}", boot.hint());
    assert_has(&boot.console, &["libleak-guest: end steps 0", "libleak-guest: off"]);
    let messages = boot.messages();
    assert_eq!(messages.len(), 8, "{messages:?}; {}", boot.hint());
    assert!(messages.iter().all(|m| m.contains("is unknown; known are scan, mark")), "{messages:?}; {}", boot.hint());
    let text = std::fs::read_to_string(&files.text).expect("a report");
    assert!(!text.contains(|c: char| c.is_control() && c != '\n'), "{}", boot.hint());
    let reports = json::read(&std::fs::read_to_string(&files.lines).expect("reports")).expect("lines of JSON");
    // Two processes by two, five times, and the last report. Another thread writes a report every
    // second.
    assert!(reports.len() > 2 * 2 * 5 + 1, "{}; {}", reports.len(), boot.hint());
    let tests: Vec<&Test> = reports.iter().flat_map(|r| &r.tests).collect();
    let names: Vec<&str> = tests.iter().take(3).map(|t| t.name.as_str()).collect();
    // However the process gets the text.
    assert_eq!(names, ["fresh", "fresh line", "parts"], "{}", boot.hint());
    assert_fields!(format_args!("{}; {}", tests.len(), boot.hint()); tests.len() > 1000 => true, tests.iter().all(|t| t.name.len() <= 1024) => true);
    assert!(reports.iter().all(|r| r.groups.is_empty()), "{}", boot.hint());
    // This line measures how far the other CPU gets meanwhile, for the documentation.
    let busy = boot.console.lines().find_map(|l| l.split_once("busy: ")?.1.split_once(" scans, "));
    let (scans, percent) = busy.unwrap_or_else(|| panic!("no line of busy; {}", boot.hint()));
    println!("beside {scans} scans the other CPU comes {percent} as far as alone");
    assert!(scans.parse::<u32>().is_ok_and(|scans| scans > 0), "{scans}; {}", boot.hint());
}
