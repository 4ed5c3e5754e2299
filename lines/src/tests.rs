//! Compares results with files compiled by gcc. The sources give the lines, relocations give the
//! calls.

use crate::testing::Scratch;
use crate::{Lines, LinesError, Place};
use guest_symbols::identity::Identity;
use object::{Object, ObjectSection, ObjectSymbol};
use std::path::{Path, PathBuf};

/// A small kernel tree with its own build folder, as distributions have it.
const HEADER: &str = "\
void *allocate(unsigned long size);
static inline __attribute__((always_inline)) void *helper(unsigned long size)
{
	return allocate(size + 1);
}
";
const SOURCE: &str = "\
#include <linux/helper.h>

static inline __attribute__((always_inline)) void *middle(unsigned long size)
{
	return helper(size * 3);
}

__attribute__((noinline)) void *outer(unsigned long size)
{
	void *p;

	p = middle(size);
	asm volatile(\"\" : : : \"memory\");
	return p;
}
";
/// Two static functions of one name in one module. One is longer.
const TWIN: &str = "\
void *allocate(unsigned long size);
static __attribute__((noinline)) void *twin(unsigned long size)
{
	void *p = allocate(size);
	asm volatile(\"\" : : : \"memory\");
	FILLER
	return p;
}
void *NAME(unsigned long size) { return twin(size); }
";

fn places() -> Vec<Place> {
    let place =
        |function: &str, file: &str, line| Place { function: Some(function.to_owned()), file: file.to_owned(), line };
    vec![
        place("helper", "include/linux/helper.h", 4),
        place("middle", "mm/outer.c", 5),
        place("outer", "mm/outer.c", 12),
    ]
}

/// `build/some-module.ko`. Its code is not in the first section.
fn module(name: &str, options: &str) -> (Scratch, PathBuf) {
    let scratch = Scratch::new(name);
    scratch.write("tree/include/linux/helper.h", HEADER.as_bytes());
    scratch.write("tree/mm/outer.c", SOURCE.as_bytes());
    scratch.run(
        "tree/build",
        &format!(
            "gcc -O2 {options} -fno-pic -mcmodel=kernel -ffunction-sections -I../include -c ../mm/outer.c -o some-module.ko"
        ),
    );
    let path = scratch.path().join("tree/build/some-module.ko");
    (scratch, path)
}

/// For `function`: the offset at which its call of `allocate` returns, and its size.
fn call_in(path: &Path, function: &str) -> Vec<(u64, u64)> {
    let data = std::fs::read(path).unwrap();
    let elf = object::File::parse(&*data).unwrap();
    let mut found = Vec::new();
    for symbol in elf.symbols().filter(|s| s.name() == Ok(function)) {
        let section = elf.section_by_index(symbol.section_index().unwrap()).unwrap();
        for (at, relocation) in section.relocations() {
            let object::RelocationTarget::Symbol(target) = relocation.target() else { continue };
            let within = (symbol.address()..symbol.address() + symbol.size()).contains(&at);
            if within && elf.symbol_by_index(target).unwrap().name() == Ok("allocate") {
                found.push((at + 4 - symbol.address(), symbol.size()));
            }
        }
    }
    found
}

#[test]
#[cfg_attr(miri, ignore = "Miri cannot start gcc")]
fn inlined_functions_of_a_module_are_told_from_each_other() {
    for (i, options) in ["-g -gdwarf-5", "-g -gdwarf-4", "-g -gz=zlib", "-g -fdebug-prefix-map=./="].iter().enumerate()
    {
        let (_scratch, path) = module(&format!("module-{i}"), options);
        let (offset, size) = call_in(&path, "outer")[0];
        let lines = Lines::open(std::slice::from_ref(&path)).unwrap();
        assert_eq!(lines.module("some_module", "outer", offset, size), places(), "{options}");
        // The function is the last of its section, so the file does not know the next symbol.
        assert_eq!(lines.module("some_module", "outer", offset, size + 100), places());
        assert_eq!(lines.module("some_module", "outer", offset, 0), places());
        assert_eq!(lines.module("some_module", "outer", offset, size - 1), []);
        assert_eq!(lines.module("other_module", "outer", offset, size), []);
        assert_eq!(lines.module("some_module", "other", offset, size), []);
        assert!(lines.take_problems().is_empty());
    }
}

#[test]
#[cfg_attr(miri, ignore = "Miri cannot start gcc")]
fn functions_of_equal_names_are_told_apart_by_size() {
    let scratch = Scratch::new("twins");
    for (name, filler) in [("one", ""), ("two", "asm volatile(\".skip 64, 0x90\");"), ("end", "")] {
        scratch.write(
            &format!("{name}.c"),
            TWIN.replace("FILLER", filler).replace("NAME", &format!("call_{name}")).as_bytes(),
        );
        scratch.run("", &format!("gcc -O2 -g -fno-pic -mcmodel=kernel -c {name}.c"));
    }
    scratch.run("", "ld -r -o twins.ko one.o two.o");
    let path = scratch.path().join("twins.ko");
    let lines = Lines::open(&[scratch.path().to_owned()]).unwrap();
    // kallsyms counts to the next function, which is aligned.
    let calls = call_in(&path, "twin").into_iter().map(|(offset, size)| (offset, size.next_multiple_of(16)));
    let mut files: Vec<String> = Vec::new();
    for (offset, size) in calls {
        let found = lines.module("twins", "twin", offset, size);
        assert_eq!((found.len(), found[0].line), (1, 4), "{found:?}");
        files.push(found[0].file.clone());
    }
    files.sort();
    assert_eq!(files, ["one.c", "two.c"]);
    // Both functions match.
    assert_eq!(lines.module("twins", "twin", 10, 0), []);
    scratch.run("", "ld -r -o twins.ko one.o end.o");
    let same = Lines::open(std::slice::from_ref(&path)).unwrap();
    let (offset, size) = call_in(&path, "twin")[0];
    assert_eq!(same.module("twins", "twin", offset, size.next_multiple_of(16)), []);
}

#[test]
#[cfg_attr(miri, ignore = "Miri cannot start gcc")]
fn modules_of_another_release_in_a_folder_are_left_out() {
    let (scratch, path) = module("releases", "-g");
    let (offset, size) = call_in(&path, "outer")[0];
    for release in ["6.1", "6.12"] {
        scratch.write("info", format!("license=GPL\0vermagic={release} SMP mod_unload \0").as_bytes());
        std::fs::create_dir_all(scratch.path().join(release)).unwrap();
        let add = "objcopy --add-section .modinfo=info --set-section-flags .modinfo=alloc,readonly,data";
        scratch.run("", &format!("{add} tree/build/some-module.ko {release}/some_module.ko"));
    }
    let open = |folder: &str| Lines::open(&[scratch.path().join(folder)]).unwrap();
    for (folder, release, n) in [("6.1", "6.1", 3), ("6.1", "6.12", 0), ("6.12", "6.12", 3)] {
        let lines = open(folder);
        lines.check(&Identity::default(), release).unwrap();
        assert_eq!(lines.module("some_module", "outer", offset, size).len(), n, "{folder} {release}");
    }
}

/// A vmlinux, and the offset from `.text` at which the call in it returns.
fn vmlinux(name: &str) -> (Scratch, PathBuf, u64) {
    let (scratch, object) = module(name, "-g");
    let (offset, _) = call_in(&object, "outer")[0];
    scratch.write("tree/build/rest.c", b"void *allocate(unsigned long size) { return 0; }\nconst char linux_banner[] = \"Linux version 6.1.0-test (gcc) #1\\n\";\n");
    scratch.run("tree/build", "gcc -O2 -g -fno-pic -mcmodel=kernel -c rest.c");
    // The first unit is assembly and includes no header.
    let head = scratch.write("tree/arch/head.S", b".globl start\nstart:\n\tnop\n\tret\n");
    scratch.run("", &format!("gcc -g -c {} -o tree/build/head.o", head.display()));
    let link = "ld -Ttext=0xffffffff81000000 -e outer --build-id=sha1 -o vmlinux";
    scratch.run("tree/build", &format!("{link} head.o rest.o some-module.ko"));
    let path = scratch.path().join("tree/build/vmlinux");
    let data = std::fs::read(&path).unwrap();
    let elf = object::File::parse(&*data).unwrap();
    let outer = elf.symbols().find(|s| s.name() == Ok("outer")).unwrap().address();
    (scratch, path, outer - 0xffff_ffff_8100_0000 + offset)
}

#[test]
#[cfg_attr(miri, ignore = "Miri cannot start gcc")]
fn a_vmlinux_speaks_of_the_kernel_that_it_is() {
    let (scratch, path, offset) = vmlinux("vmlinux");
    let id = {
        let data = std::fs::read(&path).unwrap();
        object::File::parse(&*data).unwrap().build_id().unwrap().unwrap().to_vec()
    };
    let ours = Identity { build_id: Some(id), banner: Some("Linux version 6.1.0-test (gcc) #1".to_owned()) };
    // In a folder, beside a link to it.
    std::os::unix::fs::symlink(&path, scratch.path().join("vmlinux-6.1.0-test")).unwrap();
    let lines = Lines::open(&[scratch.path().to_owned()]).unwrap();
    assert_eq!(lines.vmlinux.len(), 1);
    assert_eq!(lines.image(offset), [], "not before it was checked");
    lines.check(&ours, "6.1.0-test").unwrap();
    assert_eq!(lines.image(offset), places());
    assert_eq!(lines.image(1 << 20), []);
    // Assembly, compiled by its absolute name outside of the build folder.
    let start = lines.image(1);
    assert_eq!((start.len(), start[0].file.as_str(), start[0].line), (1, "arch/head.S", 3), "{start:?}");
    // Without a build ID, the banner is compared.
    let banner_only = Identity { build_id: None, ..ours.clone() };
    Lines::open(std::slice::from_ref(&path)).unwrap().check(&banner_only, "6.1.0-test").unwrap();
    let rebuilt = Identity { build_id: Some(vec![0xab; 20]), ..ours };
    let error = Lines::open(&[path]).unwrap().check(&rebuilt, "6.1.0-test").unwrap_err();
    assert!(matches!(error, LinesError::OtherKernel { .. }));
    let text = error.to_string();
    assert!(text.contains(&"ab".repeat(20)) && text.contains("Linux 6.1.0-test, build id"), "{text}");
}

#[test]
#[cfg_attr(miri, ignore = "Miri cannot start gcc")]
fn files_without_debugging_information_are_named() {
    let (scratch, path) = module("stripped", "-g0");
    let error = Lines::open(std::slice::from_ref(&path)).err().unwrap();
    assert!(matches!(error, LinesError::NoDwarf { .. }), "{error}");
    assert!(error.to_string().contains("CONFIG_DEBUG_INFO") && error.to_string().contains("some-module.ko"));
    // In a folder, the file is opened at the first lookup.
    let lines = Lines::open(&[scratch.path().to_owned()]).unwrap();
    assert_eq!(lines.module("some_module", "outer", 5, 0), []);
    assert_eq!(lines.module("some_module", "outer", 5, 0), []);
    let problems = lines.take_problems();
    assert!(matches!(problems[..], [LinesError::NoDwarf { .. }]), "{problems:?}");
    let empty = scratch.path().join("tree/mm");
    assert!(matches!(Lines::open(&[empty]).err().unwrap(), LinesError::NothingFound { .. }));
}

#[test]
#[cfg_attr(miri, ignore = "Miri cannot start gcc")]
fn broken_files_are_errors() {
    let (scratch, path) = module("broken", "-g");
    let (offset, size) = call_in(&path, "outer")[0];
    let whole = std::fs::read(&path).unwrap();
    // xorshift64
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut random = |below: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state % below as u64) as usize
    };
    let (mut refused, mut silent, mut told) = (0, 0, 0);
    for round in 0..1500 {
        let mut bytes = whole.clone();
        if round % 5 == 0 {
            bytes.truncate(random(whole.len()));
        }
        for _ in 0..=random(16) {
            // Half of the damage hits the section headers at the end.
            let from = if random(2) == 0 { bytes.len().saturating_sub(2000) } else { 0 };
            if bytes.len() > from {
                let at = from + random(bytes.len() - from);
                bytes[at] = random(256) as u8;
            }
        }
        let path = scratch.write("broken/some_module.ko", &bytes);
        let Ok(lines) = Lines::open(&[path]) else {
            refused += 1;
            continue;
        };
        let found = lines.module("some_module", "outer", offset, size);
        for at in [0, 1, offset + 1, u64::MAX] {
            lines.module("some_module", "outer", at, 0);
        }
        if found == places() {
            told += 1;
        } else {
            silent += 1;
        }
    }
    // If one of the results is missing, the damage is in the wrong places.
    assert!(refused > 100 && silent > 100 && told > 100, "{refused} {silent} {told}");
}
