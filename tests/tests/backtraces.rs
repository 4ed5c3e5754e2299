//! Backtraces equal those of the guest's own kmemleak, for every object that both know.

use checker::guest_state::GuestState;
use guest_symbols::memory::StoppedMemory;
use snapshot::Snapshot;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt::Write as _;
use tests::kmemleak_objects;
use tests::program::scratch;
use tests::{Guest, planted};

/// Functions that take objects from caches: kmemleak knows who filled the cache (`CACHES`,
/// plugin/src/hooks/table.rs).
const TAKERS: [&str; 12] = [
    "napi_skb_cache_get",
    "__alloc_skb",
    "__napi_build_skb",
    "napi_build_skb",
    "napi_alloc_skb",
    "napi_get_frags",
    "mempool_alloc_noprof",
    "mempool_alloc_preallocated",
    "unit_alloc",
    "radix_tree_node_alloc",
    "mas_pop_node",
    "bio_alloc_bioset",
];

/// How often stacks agree.
#[derive(Debug, Default)]
struct Agreement {
    /// Objects for which both have a stack.
    both: u64,
    /// Those with equal stacks. A stack that kmemleak cut at an interrupt may be longer in libleak.
    same: u64,
    /// Those that kmemleak cut.
    cut: u64,
    /// Objects that were taken from a cache since, which are not compared.
    taken: u64,
    /// The others by kind of difference, with one example each.
    others: BTreeMap<String, (u64, String)>,
}

/// Compares both stacks of each object, starting at the allocator's caller. The position inside of
/// the allocator cannot be seen from outside.
fn compare<M: StoppedMemory>(moment: &GuestState<'_, M>) -> Agreement {
    let kernel = moment.kernel;
    let theirs: HashMap<u64, kmemleak_objects::Object> =
        kmemleak_objects::read(kernel, moment.memory).into_iter().map(|o| (o.address, o)).collect();
    let entries = kmemleak_objects::interrupt_entries(kernel);
    let is_entry = |at: u64| entries.iter().any(|r| r.contains(&at));
    let function = |at: u64| kernel.symbols.resolve(at).map_or("?", |r| r.name);
    let mut result = Agreement::default();
    for (address, object) in moment.objects.list() {
        let ours = moment.stacks.frames(object.stack());
        let Some(other) = theirs.get(address).filter(|o| !o.stack.is_empty() && !ours.is_empty()) else { continue };
        if TAKERS.contains(&function(ours[0]).split('.').next().unwrap_or_default()) {
            result.taken += 1;
            continue;
        }
        result.both += 1;
        // kmemleak's first frames lie in the allocator or in functions that it calls.
        let allocator = function(ours[0]);
        let inside = other.stack.iter().take(4).rposition(|&at| function(at) == allocator);
        let theirs = &other.stack[inside.map_or(0, |i| i + 1)..];
        let ours = &ours[1..];
        let n = ours.len().min(theirs.len());
        let cut = theirs.last().is_some_and(|&at| is_entry(at)) && theirs.len() < ours.len();
        // A stack that ends first was full: kmemleak has several frames in the allocator, libleak
        // one.
        let full = match ours.len() < theirs.len() {
            true => ours.len() == 15,
            false => other.stack.len() == 16,
        };
        if inside.is_some() && ours[..n] == theirs[..n] && (ours.len() == theirs.len() || cut || full) {
            result.same += 1;
            result.cut += u64::from(cut);
            continue;
        }
        let at = ours.iter().zip(theirs).position(|(a, b)| a != b).unwrap_or(n);
        let name = |stack: &[u64]| stack.get(at).map_or("(end)".to_owned(), |&f| function(f).to_owned());
        let what = match inside {
            None => format!("kmemleak has no frame of {allocator}"),
            Some(_) => format!(
                "below {}: {} here, {} there",
                function(if at == 0 { 0 } else { ours[at - 1] }),
                name(ours),
                name(theirs)
            ),
        };
        let example = || {
            let list = |stack: &[u64]| stack.iter().map(|&f| function(f)).collect::<Vec<_>>().join(" < ");
            format!("{address:#x}\n  here  {}\n  there {}", list(ours), list(theirs))
        };
        result.others.entry(what).or_insert_with(|| (0, example())).0 += 1;
    }
    result
}

fn table(agreement: &Agreement) -> String {
    let Agreement { both, same, cut, taken, others } = agreement;
    let percent = 100.0 * *same as f64 / *both as f64;
    let mut text = format!(
        "{both} objects are known to both: {same} backtraces are equal ({percent:.3} %), {cut} of them cut by kmemleak at an interrupt; {taken} more were taken from caches\n"
    );
    let mut others: Vec<_> = others.iter().collect();
    others.sort_by_key(|(_, (n, _))| std::cmp::Reverse(*n));
    for (what, (n, example)) in others.iter().take(20) {
        let _ = writeln!(text, "{n:6} {what}; {example}");
    }
    text
}

#[test]
fn backtraces_are_kmemleak_s() {
    let snapshot = scratch("backtraces-file").join("snapshot");
    let guest = Guest::new("backtraces", "selfbuilt-kmemleak").module("leaky").losing(planted::lost);
    let boot =
        guest.run(&["insmod:leaky", "workload"]).option(&format!("snapshot={}", snapshot.display())).limit(360).boot();
    boot.assert_ended_well();
    let snapshot = Snapshot::open(&snapshot).expect("the snapshot");
    let agreement = compare(&snapshot.moment());
    println!("{}", table(&agreement));
    assert!(agreement.taken * 50 < agreement.both, "{}", table(&agreement));
    assert!(agreement.both > 20_000, "{}", table(&agreement));
    assert!(agreement.same * 1000 >= agreement.both * 999, "{}\n{}", boot.hint(), table(&agreement));
}

/// BPF programs are code without a file. The kernel names them when it compiles them.
fn a_bpf_program_is_named(kernel: &str) {
    let test = format!("bpf-{kernel}");
    let snapshot = scratch(&format!("{test}-file")).join("snapshot");
    // The map is freed with the program that holds it, so the guest is switched off at once.
    let off = "#!/bin/sh\n/guest/bpf_maps &\nsleep 2\necho o >/proc/sysrq-trigger\nsleep 10\n";
    let boot = Guest::new(&test, kernel)
        .program("bpf_maps")
        .script("maps", off)
        .run(&["maps"])
        .option(&format!("snapshot={}", snapshot.display()))
        .boot();
    assert_eq!(boot.status, Some(0), "{}", boot.hint());
    assert!(boot.console.contains("bpf_maps: run 0"), "{}", boot.hint());
    let snapshot = Snapshot::open(&snapshot).expect("the snapshot");
    let moment = snapshot.moment();
    let stack = moment.objects.list().iter().find_map(|(_, object)| {
        let frames: Vec<String> = moment.names().frames(object).iter().map(ToString::to_string).collect();
        frames.iter().any(|f| f.contains("make_a_map")).then_some(frames)
    });
    let stack = stack.unwrap_or_else(|| panic!("no frame of the program; {}", boot.hint()));
    let at = stack.iter().position(|f| f.starts_with("bpf_prog_") && f.contains("_make_a_map+0x"));
    let at = at.unwrap_or_else(|| panic!("{stack:?}"));
    assert!(stack[..at].iter().any(|f| f.starts_with("bpf_sys_bpf+")), "{stack:?}");
    // The program's own frame is unwound by its frame pointer, the other frames by ORC.
    assert!(stack[at..].iter().any(|f| f.starts_with("bpf_prog_test_run_syscall+")), "{stack:?}");
    assert!(stack.len() == 16 || stack.last().unwrap().starts_with("entry_SYSCALL_64_after_hwframe+"), "{stack:?}");
    boot.assert_trustworthy();
}

#[test]
fn a_bpf_program_is_named_on_linux_6_1() {
    a_bpf_program_is_named("bookworm");
}

#[test]
fn a_bpf_program_is_named_on_linux_6_12() {
    a_bpf_program_is_named("bookworm-backports");
}

#[test]
fn a_bpf_program_is_named_on_linux_7_3() {
    a_bpf_program_is_named("trixie-backports");
}

/// The backtraces of `leaky`'s objects, with these words on the kernel command line. `step` loads
/// it.
fn of_leaky(test: &str, kernel: &str, append: &str, step: (&str, &str)) -> BTreeSet<Vec<String>> {
    let mut guest = Guest::new(test, kernel).module("leaky").losing(planted::lost);
    if !step.1.is_empty() {
        guest = guest.script(step.0, step.1);
    }
    let boot = guest.append(append).run(&[step.0]).limit(360).boot();
    boot.assert_ended_well();
    boot.assert_planted(&boot.report().objects);
    boot.assert_trustworthy();
    boot.report().objects.into_iter().map(|o| o.frames).collect()
}

/// Tracers put their own addresses on the stack, and call from trampolines.
#[test]
fn tracers_do_not_show_in_backtraces() {
    const PROBED: &str = "#!/bin/sh
mount -t tracefs tracefs /sys/kernel/tracing 2>/dev/null
cd /sys/kernel/tracing || exit 1
echo 'r:init do_init_module' >kprobe_events || exit 1
echo 'r:syscall do_syscall_64' >>kprobe_events
echo 1 >events/kprobes/init/enable || exit 1
insmod /modules/leaky.ko || exit 1
grep -q do_init_module trace
";
    for kernel in ["bookworm", "bookworm-backports", "trixie-backports"] {
        let test = |what: &str| format!("traced-{kernel}-{what}");
        let plain = of_leaky(&test("plain"), kernel, "", ("insmod:leaky", ""));
        assert!(plain.iter().all(|f| f.last().unwrap().starts_with("entry_SYSCALL_64_after_hwframe+")), "{plain:#?}");
        let graph = of_leaky(&test("graph"), kernel, "ftrace=function_graph", ("insmod:leaky", ""));
        assert_eq!(plain, graph, "{kernel}, function graph tracer");
        let probed = of_leaky(&test("probed"), kernel, "", ("probed", PROBED));
        assert_eq!(plain, probed, "{kernel}, kretprobe");
    }
}
