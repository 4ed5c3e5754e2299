//! Types that are made of debugging information: the same answers as those of BTF, and a guest
//! whose kernel has none in its memory, as people build kernels, which needs no option.

use guest_symbols::btf::Btf;
use guest_symbols::elf::Elf;
use guest_symbols::types::dwarf;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use tests::program::{Program, cache, module_debug_folder, scratch, workspace};
use tests::{Boot, Guest, planted};

/// A kernel whose vmlinux has both.
const BOTH: &str = "selfbuilt-kmemleak";
/// A kernel without BTF.
const NONE: &str = "selfbuilt-nobtf";

/// Has a kernel built, if it is not here yet.
fn build(kernel: &str) {
    let script = format!(
        ". '{0}/scripts/lib/common.sh'; . '{0}/scripts/lib/kernels.sh'; guest_kernel {kernel}",
        workspace().display()
    );
    let done = Program::new("bash").arg("-c").arg(script).limit(7200).run();
    assert_eq!(done.status, Some(0), "{}", done.stderr);
}

/// Every vmlinux with both that is here.
fn vmlinux_with_both() -> Vec<PathBuf> {
    build(BOTH);
    let kernels = fs::read_dir(cache().join("kernels")).expect("kernels").flatten();
    let files = kernels.map(|kernel| kernel.path().join("debug/vmlinux"));
    let has_both = |elf: Elf| elf.has_dwarf() && elf.has_section(".BTF");
    let mut files: Vec<PathBuf> = files.filter(|path| Elf::open(path).is_ok_and(has_both)).collect();
    files.sort();
    assert!(files.iter().any(|path| path.starts_with(cache().join("kernels").join(BOTH))), "{files:?}");
    files
}

/// The words in quotes in the program's sources: whatever it asks for by name is among them.
fn words_of_the_program() -> BTreeSet<String> {
    fn walk(folder: &Path, words: &mut BTreeSet<String>) {
        for entry in fs::read_dir(folder).expect("sources").flatten() {
            let path = entry.path();
            if path.is_dir() {
                walk(&path, words);
            } else if path.extension().is_some_and(|e| e == "rs") {
                let text = fs::read_to_string(&path).expect("a source");
                words.extend(text.split('"').map(str::to_owned));
            }
        }
    }
    let mut words = BTreeSet::new();
    for part in ["guest-symbols", "checker", "plugin", "tests"] {
        walk(&workspace().join(part).join("src"), &mut words);
    }
    words
}

#[test]
fn debugging_information_gives_the_answers_of_btf() {
    let words = words_of_the_program();
    for path in vmlinux_with_both() {
        let elf = Elf::open(&path).expect("a vmlinux");
        let of_dwarf = Btf::parse(&dwarf::read(&elf).expect("types")).expect("a blob");
        let of_btf = Btf::parse(&elf.section(".BTF").expect("BTF")).expect("BTF");
        let dwarf: BTreeMap<String, String> = of_dwarf.definitions().collect();
        let mut btf: BTreeMap<String, Vec<String>> = BTreeMap::new();
        of_btf.definitions().for_each(|(name, is)| btf.entry(name).or_default().push(is));
        let (mut asked, mut equal, mut missing, mut other) = (0, 0, Vec::new(), Vec::new());
        for (name, is) in &btf {
            let is_asked = name.split_once(' ').is_some_and(|(_, name)| words.contains(name));
            asked += usize::from(is_asked);
            match dwarf.get(name) {
                Some(also) if is.len() == 1 && is[0] == *also => equal += 1,
                Some(also) => {
                    assert!(!is_asked, "{name} is {also} and not {} in {}", is.join(" or "), path.display());
                    other.push(name.as_str());
                }
                None => {
                    assert!(!is_asked, "there is no {name} in {}", path.display());
                    missing.push(name.as_str());
                }
            }
            // All that is asked of a struct by name.
            if let Some(name) = name.strip_prefix("struct ").filter(|_| dwarf.get(name) == Some(&is[0])) {
                assert_eq!(of_dwarf.size_of(name), of_btf.size_of(name), "{name}");
                assert_eq!(of_dwarf.numbers(name), of_btf.numbers(name), "{name}");
            }
        }
        println!(
            "{}: {equal} equal, {asked} of them asked for, {} missing, {} other",
            path.display(),
            missing.len(),
            other.len()
        );
        assert!(asked > 60 && equal > 10_000, "{asked} of {equal}");
        // Types within functions, and functions of which there are several.
        assert!(missing.len() < equal / 40, "{missing:?}");
        // Of weak functions that others take the place of, BTF may have the weak one.
        let unlike: Vec<_> = other.iter().filter(|name| !name.contains("_sys_") && btf[**name].len() == 1).collect();
        assert!(unlike.len() < 20, "{unlike:?}");
    }
}

/// A folder laid out as a kernel's tree, with the kernel's image and what more is wanted of a
/// vmlinux.
fn tree(name: &str, kernel: &str) -> PathBuf {
    let folder = scratch(name);
    let boot = folder.join("arch/x86/boot");
    fs::create_dir_all(&boot).expect("a folder");
    fs::copy(cache().join("kernels").join(kernel).join("vmlinuz"), boot.join("bzImage")).expect("the image");
    folder
}

/// A copy of a kernel's vmlinux, changed by objcopy.
fn vmlinux(from: &str, to: &Path, how: &str) {
    let from = cache().join("kernels").join(from).join("debug/vmlinux");
    let done = Program::new("objcopy").args(how).arg(from).arg(to).run();
    assert_eq!(done.status, Some(0), "{}", done.stderr);
}

fn guest(test: &str, folder: &Path) -> Guest {
    Guest::new(test, NONE)
        .module_debug("leaky")
        .qemu_arg("-kernel")
        .qemu_arg(folder.join("arch/x86/boot/bzImage").to_str().expect("text"))
        .run(&["insmod:leaky", "workload"])
}

/// Where the module's debugging information is, when it is built: in the tree.
fn add_module(folder: &Path) {
    let file = module_debug_folder(NONE).join("leaky.ko");
    fs::copy(file, folder.join("leaky.ko")).expect("the module");
}

fn assert_lines(boot: &Boot) {
    assert!(boot.stderr.contains(" leaky.c:"), "no line of the module; {}", boot.hint());
    assert!(boot.stderr.contains("init/main.c:"), "no line of the kernel; {}", boot.hint());
}

#[test]
fn a_kernel_as_people_build_it_needs_no_option() {
    build(NONE);
    let folder = tree("types-tree", NONE);
    vmlinux(NONE, &folder.join("vmlinux"), "--remove-section .BTF --remove-section .BTF_ids");
    let guest = guest("types-dwarf", &folder).losing(planted::lost);
    // Has the module built.
    guest.clone().without_plugin().boot();
    add_module(&folder);
    let boot = guest.boot();
    boot.assert_ended_well();
    boot.assert_planted(&boot.report().objects);
    boot.assert_trustworthy();
    assert_lines(&boot);
}

/// One line that says what to do, in the words of those who build kernels.
#[test]
fn a_kernel_without_types_says_what_to_set() {
    build(NONE);
    let folder = tree("types-none", NONE);
    let words = [
        "has no types",
        "CONFIG_DEBUG_INFO_BTF is off",
        "vng --build --configitem CONFIG_DEBUG_KERNEL=y --configitem CONFIG_DEBUG_INFO_DWARF_TOOLCHAIN_DEFAULT=y",
        "kunit.py run --kconfig_add CONFIG_DEBUG_KERNEL=y --kconfig_add CONFIG_DEBUG_INFO_DWARF_TOOLCHAIN_DEFAULT=y",
        "CONFIG_DEBUG_KERNEL=y CONFIG_DEBUG_INFO_DWARF_TOOLCHAIN_DEFAULT=y in its .config",
    ];
    let assert_said = |boot: &Boot, further: &[&str]| {
        let said = boot.messages();
        for word in words.iter().chain(further) {
            assert!(said.first().is_some_and(|line| line.contains(word)), "no {word:?} in {said:#?}");
        }
        assert!(!boot.stderr.contains("unreferenced"), "{}", boot.stderr);
    };
    assert_said(&guest("types-missing", &folder).boot(), &[]);
    // Nor is that of another kernel used.
    build(BOTH);
    vmlinux(BOTH, &folder.join("vmlinux"), "--remove-section .BTF");
    assert_said(
        &guest("types-other", &folder).boot(),
        &["vmlinux is not used: it is of", "build id", "the guest runs"],
    );
    vmlinux(NONE, &folder.join("vmlinux"), "--strip-debug --remove-section .BTF");
    assert_said(&guest("types-stripped", &folder).boot(), &["it has neither BTF nor debugging information"]);
}
