//! leak-guest asks libleak from inside the guest, and makes the file of kmemleak for kernels that
//! have none.

use tests::report;
use tests::{Boot, Guest};

/// A harness that knows kmemleak's file and nothing else, as xfstests use it (common/rc). It stops
/// at the first of 20 runs that leaks.
const HARNESS: &str = "#!/bin/sh
knob=/sys/kernel/debug/kmemleak
[ -w $knob ] || { echo 'harness: skipped, there is no kmemleak'; exit 4; }
echo scan=off >$knob || exit 1
echo clear >$knob || exit 1
for i in $(seq 20); do
    mkdir -p /tmp/run-$i
    [ $i != 13 ] || echo 200 >/sys/module/loser/parameters/lose
    echo scan >$knob || exit 1
    cat $knob >/tmp/leaks
    if [ -s /tmp/leaks ]; then
        echo \"harness: run $i leaks\"
        cat /tmp/leaks
        break
    fi
done
echo clear >$knob
[ -z \"$(cat $knob)\" ] && echo 'harness: cleared'
echo wrong >$knob 2>/dev/null || echo 'harness: a wrong word is refused'
";

/// Mounts the file. What debugfs has is still there, also what comes later.
const MOUNT: &str = "#!/bin/sh
/guest/leak-guest mount || exit
/guest/leak-guest mount && exit 1
cd /sys/kernel/debug
[ -e bdi ] && [ ! -e zram ] && cat sleep_time >/dev/null || exit 1
modprobe zram && [ -e zram ] && ls | grep -q zram && rmmod zram && [ ! -e zram ]
";

/// The program's own commands.
const COMMANDS: &str = "#!/bin/sh
/guest/leak-guest hello
echo 300 >/sys/module/loser/parameters/lose
/guest/leak-guest mark || exit 1
/guest/leak-guest scan >/dev/null; echo \"commands: $?\"
echo 1000 >/sys/module/loser/parameters/lose
/guest/leak-guest scan; echo \"commands: $?\"
/guest/leak-guest scan >/dev/null; echo \"commands: $?\"
/guest/leak-guest test 'a name'
echo 2000 >/sys/module/loser/parameters/lose
/guest/leak-guest test
";

fn guest(test: &str, kernel: &str) -> Guest {
    Guest::new(test, kernel).module("loser").leak_guest().kmods("fuse,zram").run(&["insmod:loser"])
}

/// The part of the console between a step's begin and end.
fn step<'a>(boot: &'a Boot, name: &str) -> &'a str {
    let from = boot.console.split_once(&format!("libleak-guest: begin {name}\n"));
    let to = from.and_then(|(_, rest)| rest.split_once(&format!("libleak-guest: end {name} ")));
    to.unwrap_or_else(|| panic!("no step {name}; {}", boot.hint())).0
}

fn harness(test: &str, kernel: &str) {
    let guest = guest(test, kernel).script("mount", MOUNT).script("harness", HARNESS).script("commands", COMMANDS);
    let boot = guest.run(&["mount", "harness", "commands"]).boot();
    boot.assert_ended_well();
    let said = step(&boot, "harness");
    for line in ["harness: run 13 leaks", "harness: cleared", "harness: a wrong word is refused"] {
        assert!(said.contains(line), "no {line:?}; {}", boot.hint());
    }
    // kmemleak's words, and none of libleak's.
    let objects = said.matches("unreferenced object 0x").count();
    assert!((3..=4).contains(&objects) && said.matches(" (size 256):").count() == objects, "{}", boot.hint());
    assert!(said.contains("lose_one+0x") && !said.contains("libleak: "), "{}", boot.hint());
    assert!(said.contains(&format!("kmemleak: {objects} new suspected memory leaks")), "{}", boot.hint());

    let said = step(&boot, "commands");
    let statuses: Vec<&str> = said.lines().filter_map(|line| line.strip_prefix("commands: ")).collect();
    assert_eq!(statuses, ["0", "23", "0"], "{}", boot.hint());
    assert!(said.contains("libleak 0") && said.contains("lose_one+0x"), "{}", boot.hint());
    let asked = report::parse(&said.lines().filter(|l| !l.contains("] ")).collect::<Vec<_>>().join("\n"));
    let sizes: Vec<u64> = asked.iter().flat_map(|report| &report.objects).map(|object| object.size).collect();
    assert!((3..=4).contains(&sizes.len()) && sizes.iter().all(|&size| size == 1024), "{sizes:?}; {}", boot.hint());
    // The report at the end has what no scan had, and the same kernel is trusted.
    let last = boot.reports().pop().expect("a report");
    assert!(last.objects.iter().all(|object| object.size == 2048), "{}", boot.hint());
    boot.assert_trustworthy();
}

#[test]
fn a_harness_of_kmemleak_stops_at_the_run_that_leaks() {
    harness("leak-guest", "bookworm-backports");
}

#[test]
fn a_guest_that_is_not_trusted_gets_no_answer() {
    const REFUSED: &str = "#!/bin/sh
for command in hello scan clear mark 'test name' mount; do
    /guest/leak-guest $command; echo \"refused: $?\"
done
[ ! -e /sys/kernel/debug/kmemleak ]
";
    let boot = guest("leak-guest-off", "bookworm-backports")
        .script("refused", REFUSED)
        .run(&["refused"])
        .option("guest-markers=off")
        .boot();
    boot.assert_ended_well();
    let said = step(&boot, "refused");
    assert_eq!(said.matches("refused: 24").count(), 6, "{}", boot.hint());
    assert_eq!(said.matches("guest-markers=off").count(), 5, "{}", boot.hint());
    assert_eq!(boot.reports().len(), 1, "{}", boot.hint());
}
