//! Tests with the output of compilers for a small file. The source and `sizeof` give the expected
//! types.

use super::{DwarfError, read};
use crate::btf::Btf;
use crate::elf::Elf;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

const SOURCE: &str = "
typedef unsigned int u32;
typedef const volatile u32 odd;
enum color { RED, GREEN = 7, BLUE = 0xffffffff };
enum wide { SMALL = 1, LARGE = 0x100000002 };
struct list { struct list *next, *prev; };
union both { long number; char *text; };
struct page {
	odd flags;
	unsigned low : 3, high : 12;
	union {
		struct { struct list lru; long *p; };
		struct { u32 order : 4; enum color color; };
	};
	struct list heads[2][3];
	union both both;
	_Bool yes;
	double real;
	struct gone *gone;
	char name[];
} __attribute__((aligned(16)));
struct outer { struct { int inside; } part; struct page *pages[4]; int tail[0]; };
extern int elsewhere(void *opaque, ...);
struct page *find(struct list *list, u32 (*match)(struct page *), int);
struct page *find(struct list *list, u32 (*match)(struct page *), int count)
{
	enum wide wide = LARGE;
	return elsewhere(list, match, count, wide) ? (struct page *)list : 0;
}
static inline __attribute__((always_inline)) long inlined(long x) { return x * 3; }
static __attribute__((noinline)) enum color twin(struct outer *o) { return o->part.inside; }
void many(const char *format, ...) { struct outer o; elsewhere(&o, inlined(twin(&o))); }
union both *unions(union both *u) { return u; }
";

/// A function and a struct whose names [`SOURCE`] has too. The prototype and the size differ.
const OTHER: &str = "
struct list { int other; };
static __attribute__((noinline)) int twin(int a, struct list *b) { return a + b->other; }
int other(int a, struct list *b) { return twin(a, b); }
";

const EXPECTED: &[(&str, &str)] = &[
    ("struct list", "16 { next@0 *; prev@64 *;}"),
    ("union both", "8 { number@0 int8; text@0 *;}"),
    ("enum color", "4 { RED=0x0; GREEN=0x7; BLUE=0xffffffff;}"),
    ("enum wide", "8 { SMALL=0x1; LARGE=0x100000002;}"),
    (
        "struct page",
        "160 { flags@0 int4; low@32:3 int4; high@35:12 int4; @64 24 { @0 24 { lru@0 struct list; p@128 *;}; @0 8 { order@0:4 int4; \
         color@32 enum4 color;};}; heads@256 [6]struct list; both@1024 union both; yes@1088 int1; real@1152 float8; gone@1216 *; \
         name@1280 [0]int1;}",
    ),
    ("struct outer", "40 { part@0 4 { inside@0 int4;}; pages@64 [4]*; tail@320 [0]int4;}"),
    ("function find", "*page(list,match,count,)"),
    ("function many", "void(format,,)"),
    ("function twin", "enum4 color(o,)"),
    ("function unions", "*(u,)"),
];

struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str) -> Scratch {
        let path = std::env::temp_dir().join(format!("libleak-dwarf-{}-{name}", std::process::id()));
        let _ = std::fs::remove_dir_all(&path);
        std::fs::create_dir_all(&path).unwrap();
        Scratch(path)
    }

    fn write(&self, name: &str, text: &str) {
        std::fs::write(self.0.join(name), text).unwrap();
    }

    fn run(&self, command: &str) {
        let mut words = command.split_whitespace();
        let done = Command::new(words.next().unwrap()).args(words).current_dir(&self.0).output().unwrap();
        assert!(done.status.success(), "{command}: {}", String::from_utf8_lossy(&done.stderr));
    }

    fn types(&self, name: &str) -> Result<BTreeMap<String, String>, DwarfError> {
        let blob = read(&Elf::open(&self.0.join(name)).unwrap())?;
        let btf = Btf::parse(&blob).unwrap();
        assert_eq!(btf.blob().len(), blob.len());
        Ok(btf.definitions().collect())
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn assert_expected(types: &BTreeMap<String, String>, how: &str) {
    for (name, expected) in EXPECTED {
        assert_eq!(types.get(*name).map(String::as_str), Some(*expected), "{name} {how}");
    }
    assert!(!types.contains_key("function inlined") && !types.contains_key("function elsewhere"), "{how}");
}

/// The installed compilers. gcc is required.
fn compilers() -> Vec<&'static str> {
    let clang = Command::new("clang").arg("--version").output().is_ok_and(|done| done.status.success());
    if !clang {
        eprintln!("there is no clang: what it writes is not tested");
    }
    if clang { vec!["gcc", "clang"] } else { vec!["gcc"] }
}

#[test]
#[cfg_attr(miri, ignore = "Miri cannot start compilers")]
fn all_that_is_asked_of_what_compilers_write() {
    let scratch = Scratch::new("forms");
    scratch.write("a.c", SOURCE);
    for compiler in compilers() {
        for options in ["-gdwarf-4", "-gdwarf-5", "-gdwarf-5 -gz=zlib", "-gdwarf-5 -O0", "-gdwarf-4 -gstrict-dwarf"] {
            let command = format!("{compiler} -O2 -fno-pic -mcmodel=kernel {options} -c a.c -o a.o");
            scratch.run(&command);
            assert_expected(&scratch.types("a.o").unwrap(), &command);
            // A vmlinux has no relocations either.
            scratch.run("ld -Ttext=0xffffffff81000000 -e find --unresolved-symbols=ignore-all -o a.elf a.o");
            assert_expected(&scratch.types("a.elf").unwrap(), &command);
        }
        scratch.run("objcopy --compress-debug-sections=zstd a.elf z.elf");
        assert_expected(&scratch.types("z.elf").unwrap(), "zstd");
    }
}

#[test]
#[cfg_attr(miri, ignore = "Miri cannot start compilers")]
fn names_that_are_defined_more_than_once() {
    let scratch = Scratch::new("twice");
    scratch.write("a.c", SOURCE);
    scratch.write("b.c", OTHER);
    scratch.write("c.c", &SOURCE.replace("find", "find2").replace("many", "many2").replace("unions", "unions2"));
    scratch.run("gcc -g -O2 -fno-pic -c a.c b.c c.c");
    scratch.run("ld -e find --unresolved-symbols=ignore-all -o all.elf b.o a.o c.o");
    let types = scratch.types("all.elf").unwrap();
    // Two of three units have this definition.
    assert_eq!(types["struct list"], EXPECTED[0].1);
    assert_eq!(types["function other"], "int4(a,b,)");
    assert!(!types.contains_key("function twin"), "it is either");
    assert_eq!(types["function find2"], types["function find"]);
}

#[test]
#[cfg_attr(miri, ignore = "Miri cannot start compilers")]
fn types_of_other_units() {
    let scratch = Scratch::new("lto");
    scratch.write("a.c", SOURCE);
    scratch.write("b.c", "int elsewhere(void *opaque, ...) { return opaque != 0; }\n");
    for compiler in compilers() {
        let linker = if compiler == "gcc" { "" } else { "-fuse-ld=lld" };
        if compiler == "clang" && Command::new("ld.lld").arg("--version").output().is_err() {
            eprintln!("there is no ld.lld: what clang writes with -flto is not tested");
            continue;
        }
        let command = format!(
            "{compiler} -g -O2 -flto {linker} -nostdlib -static -Wl,-e,find -Wl,-u,many -Wl,-u,unions -o a.elf a.c b.c"
        );
        scratch.run(&command);
        let types = scratch.types("a.elf").unwrap();
        for (name, expected) in EXPECTED.iter().filter(|(name, _)| name.starts_with("struct")) {
            assert_eq!(types.get(*name).map(String::as_str), Some(*expected), "{name} {command}");
        }
        assert_eq!(types["function find"], "*page(list,match,count,)", "{command}");
    }
}

#[test]
#[cfg_attr(miri, ignore = "Miri cannot start compilers")]
fn what_gives_no_types_says_why() {
    let scratch = Scratch::new("none");
    scratch.write("a.c", SOURCE);
    scratch.run("gcc -c a.c");
    assert!(matches!(scratch.types("a.o"), Err(DwarfError::None)));
    for version in [4, 5] {
        scratch.run(&format!("gcc -gdwarf-{version} -gsplit-dwarf -c a.c"));
        let why = scratch.types("a.o").unwrap_err();
        assert!(matches!(why, DwarfError::Split) && why.to_string().contains("CONFIG_DEBUG_INFO_SPLIT"), "{why}");
    }
}

#[test]
#[cfg_attr(miri, ignore = "Miri cannot start compilers")]
fn broken_sections_are_errors_or_other_types() {
    let scratch = Scratch::new("broken");
    scratch.write("a.c", SOURCE);
    scratch.run("gcc -g -O2 -fno-pic -c a.c");
    scratch.run("ld -e find --unresolved-symbols=ignore-all -o a.elf a.o");
    let whole = std::fs::read(Path::new(&scratch.0).join("a.elf")).unwrap();
    let info = Elf::open(&scratch.0.join("a.elf")).unwrap().plain_section(".debug_info").unwrap();
    let (mut refused, mut other, mut same) = (0, 0, 0);
    let right = scratch.types("a.elf").unwrap();
    for at in 0..info.1 {
        for flip in [0x01, 0xff] {
            let mut bytes = whole.clone();
            bytes[(info.0 + at) as usize] ^= flip;
            match read(&Elf::of_bytes(bytes.into()).unwrap()) {
                Ok(blob) if Btf::parse(&blob).unwrap().definitions().collect::<BTreeMap<_, _>>() == right => same += 1,
                Ok(_) => other += 1,
                Err(_) => refused += 1,
            }
        }
    }
    // If one of these is rare, the damage was not in relevant places.
    assert!(refused > 50 && other > 50 && same > 50, "{refused} {other} {same}");
}
