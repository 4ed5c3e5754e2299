//! Source lines of a real kernel and of a module. The guest prints its frames, and the source files
//! give the expected lines.

use lines::{Lines, LinesError};
use snapshot::Snapshot;
use tests::assert_fields;
use tests::assert_has;
use tests::contexts;
use tests::program::{cache, module_debug_folder, scratch};
use tests::{Boot, Guest};

/// A kernel whose vmlinux with debugging information is local. Those of distributions are downloads
/// of hundreds of MB.
const KERNEL: &str = "selfbuilt-kmemleak";

/// Splits `NAME+0xOFFSET/0xSIZE`, which may end in ` [MODULE]`.
fn parts(frame: &str) -> Option<(&str, u64, u64, Option<&str>)> {
    let (place, module) = match frame.split_once(" [") {
        Some((place, module)) => (place, Some(module.strip_suffix(']')?)),
        None => (frame, None),
    };
    let (name, numbers) = place.split_once('+')?;
    let (offset, size) = numbers.split_once('/')?;
    let hex = |s: &str| u64::from_str_radix(s.strip_prefix("0x")?, 16).ok();
    Some((name, hex(offset)?, hex(size)?, module))
}

fn boot(name: &str, kernel: &str) -> (Boot, Snapshot) {
    let file = scratch(&format!("{name}-snapshot")).join("guest.snapshot");
    let boot = Guest::new(name, kernel)
        .module_debug("contexts")
        .script("in-contexts", "#!/bin/sh\ninsmod /modules/contexts.ko inlined=1\n")
        .option(&format!("snapshot={}", file.display()))
        .losing(contexts::lost)
        .run(&["in-contexts", "rmmod:contexts"])
        .boot();
    boot.assert_ended_well();
    let snapshot = Snapshot::open(&file).unwrap_or_else(|why| panic!("{why}; {}", boot.hint()));
    std::fs::remove_file(&file).unwrap();
    (boot, snapshot)
}

#[test]
fn calls_have_the_lines_of_their_sources() {
    let (boot, snapshot) = boot("lines", KERNEL);
    let moment = snapshot.moment();
    let vmlinux = cache().join("kernels").join(KERNEL).join("debug");
    let lines = Lines::open(&[vmlinux, module_debug_folder(KERNEL)]).unwrap();
    lines.check_kernel(moment.kernel, moment.memory).unwrap();

    // The frame of the allocation in the report.
    let leaks = contexts::leaks(&boot.console);
    let address = leaks.iter().find(|leak| leak.kind == "inlined").expect("a leak through an inlined function").address;
    let object = boot.report().objects.into_iter().find(|o| o.address == address).expect("it is reported");
    let (name, offset, size, module) = parts(&object.frames[1]).expect("a frame");
    assert_fields!(""; name => "leak_inlined", module => Some("contexts"));
    let places = lines.module("contexts", name, offset, size);
    let line = |kind| contexts::lines(&boot.console).into_iter().find(|l| l.kind == kind).expect("a line").line;
    let [.., inlined, inlining] = &places[..] else { panic!("{places:?}") };
    let place = |p: &lines::Place| (p.function.clone().unwrap_or_default(), p.file.clone(), p.line);
    assert_eq!(place(inlined), ("inlined_helper".to_owned(), "contexts.c".to_owned(), line("inlined")));
    assert_eq!(place(inlining), ("leak_inlined".to_owned(), "contexts.c".to_owned(), line("inlining")));
    // kmalloc() is inlined, too.
    assert_fields!(format_args!("{places:?}"); places.len() > 2 => true, places[0].file => "include/linux/slab.h");

    // All other frames. Their functions must be those of the symbols.
    let (mut of_kernel, mut files) = (0, Vec::new());
    for frame in leaks.iter().flat_map(|leak| &leak.frames) {
        let (name, offset, size, module) = parts(frame).expect("a frame");
        let places = match module {
            Some(module) => lines.module(module, name, offset, size),
            None => {
                of_kernel += 1;
                let start = moment.kernel.symbols.lookup(name).expect("a function of the kernel");
                lines.kernel(moment.kernel, start + offset)
            }
        };
        let outer = places.last().unwrap_or_else(|| panic!("no place of {frame}"));
        // Assembly has no functions, and compilers' variants have a suffix.
        if let Some(function) = &outer.function {
            assert_eq!(Some(function.as_str()), name.split('.').next(), "{places:?}");
        }
        assert_fields!(format_args!("{outer:?}"); outer.file.starts_with('/') => false, outer.line > 0 => true);
        files.push(outer.file.clone());
    }
    assert!(of_kernel > 30, "{of_kernel} frames");
    for file in ["init/main.c", "kernel/kthread.c", "kernel/workqueue.c", "arch/x86/entry/entry_64.S", "contexts.c"] {
        assert!(files.iter().any(|f| f == file), "no frame in {file}: {files:?}");
    }
    let problems = lines.take_problems();
    assert!(problems.is_empty(), "{problems:?}");
}

#[test]
fn a_vmlinux_of_another_kernel_is_refused() {
    let (_, snapshot) = boot("lines-refused", "bookworm");
    let moment = snapshot.moment();
    let vmlinux = cache().join("kernels").join(KERNEL).join("debug/vmlinux");
    let lines = Lines::open(&[vmlinux]).unwrap();
    let error = lines.check_kernel(moment.kernel, moment.memory).unwrap_err();
    assert!(matches!(error, LinesError::OtherKernel { .. }), "{error}");
    let text = error.to_string();
    assert_has(&text, &[KERNEL, &format!("Linux {}", moment.kernel.release)]);
    let text = moment.kernel.symbols.lookup("do_one_initcall").unwrap();
    assert_eq!(lines.kernel(moment.kernel, text + 0x20), []);
}

/// In a report, the source line follows the frame, and inlined functions have lines of their own. A
/// suppression may name the source file.
#[test]
fn reports_have_the_lines_of_allocations() {
    let script = "#!/bin/sh\ninsmod /modules/contexts.ko inlined=1\n";
    let vmlinux = cache().join("kernels").join(KERNEL).join("debug");
    let debug = |guest: Guest| {
        // Booting the guest creates the folder of the module's file.
        let guest = guest.module_debug("contexts").script("in-contexts", script).run(&["in-contexts"]);
        guest
            .option(&format!("debug={}", vmlinux.display()))
            .option(&format!("debug={}", module_debug_folder(KERNEL).display()))
    };
    let boot = debug(Guest::new("lines-report", KERNEL).losing(contexts::lost)).groups().boot();
    boot.assert_ended_well();
    let line = |kind| contexts::lines(&boot.console).into_iter().find(|l| l.kind == kind).expect("a line").line;
    let text: Vec<&str> = boot.stderr.lines().collect();
    let at = text
        .iter()
        .position(|l| l.trim_start().starts_with("leak_inlined+"))
        .unwrap_or_else(|| panic!("{}", boot.hint()));
    let around = text[at.saturating_sub(4)..=at].join("\n");
    assert!(text[at].ends_with(&format!(" contexts.c:{} [contexts]", line("inlining"))), "{around}\n{}", boot.hint());
    let helper = format!("contexts.c:{}", line("inlined"));
    assert!(
        text[at - 4..at].iter().any(|l| l.contains("inlined_helper") && l.contains(&helper)),
        "{around}\n{}",
        boot.hint()
    );
    assert!(text.iter().any(|l| l.contains("do_one_initcall+") && l.contains("init/main.c:")), "{}", boot.hint());

    let list = scratch("lines-suppress").join("list");
    std::fs::write(&list, "leak:contexts.c\n").unwrap();
    let boot = debug(Guest::new("lines-suppressed", KERNEL)).option(&format!("suppress={}", list.display())).boot();
    boot.assert_ended_well();
    assert_eq!(boot.report().objects, [], "{}", boot.hint());
    assert!(boot.stderr.contains(" contexts.c\n"), "{}", boot.hint());
}
