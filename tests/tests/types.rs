//! Types from debugging information. They give the same answers as BTF. A guest whose kernel has no
//! BTF needs no option if its vmlinux lies where the kernel was built.

use guest_symbols::btf::Btf;
use guest_symbols::elf::Elf;
use guest_symbols::types::{self, dwarf};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use tests::assert_fields;
use tests::program::{cache, workspace};
use tests::tree::{add_module, add_vmlinux, assert_lines, assert_refused, build, guest, tree};
use tests::{Boot, bzimage, planted};

/// The kernel of the guests. Its vmlinux has BTF and DWARF.
const KERNEL: &str = "selfbuilt-kmemleak";
/// Another kernel, whose vmlinux also has both.
const OTHER: &str = "selfbuilt-debug";

/// Every vmlinux in the cache with BTF and DWARF.
fn vmlinux_with_both() -> Vec<PathBuf> {
    build(KERNEL);
    let kernels = fs::read_dir(cache().join("kernels")).expect("kernels").flatten();
    let files = kernels.map(|kernel| kernel.path().join("debug/vmlinux"));
    let has_both = |elf: Elf| elf.has_dwarf() && elf.has_section(".BTF");
    let mut files: Vec<PathBuf> = files.filter(|path| Elf::open(path).is_ok_and(has_both)).collect();
    files.sort();
    assert!(files.iter().any(|path| path.starts_with(cache().join("kernels").join(KERNEL))), "{files:?}");
    files
}

/// The quoted words in the program's sources. They include all names that it asks for.
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
            // The answers about a struct by its name.
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
        assert_fields!(format_args!("{asked} of {equal}"); asked > 60 => true, equal > 10_000 => true);
        // Types inside functions, and functions that are defined several times.
        assert!(missing.len() < equal / 40, "{missing:?}");
        // BTF may have a weak function where the kernel has the one that replaces it.
        let unlike: Vec<_> = other.iter().filter(|name| !name.contains("_sys_") && btf[**name].len() == 1).collect();
        assert!(unlike.len() < 20, "{unlike:?}");
    }
}

/// A bzImage whose kernel has zeroes in place of its BTF.
fn without_btf(image: Vec<u8>) -> Vec<u8> {
    bzimage::changed(image, |kernel| {
        // The header of BTF: version 1, no flags, 24 bytes long.
        let header = memchr::memmem::find(kernel, &[0x9f, 0xeb, 1, 0, 24, 0, 0, 0]).expect("BTF");
        let btf = Btf::blob_len(&kernel[header..]).expect("a blob");
        assert!(btf > 1_000_000, "{btf} bytes");
        kernel[header..header + btf].fill(0);
    })
}

#[test]
fn a_kernel_without_btf_needs_no_option() {
    let folder = tree("types-tree", KERNEL, without_btf);
    add_vmlinux(&folder, KERNEL, "--remove-section .BTF --remove-section .BTF_ids");
    let guest = guest("types-dwarf", KERNEL, &folder).losing(planted::lost);
    // This boot is only to build the module.
    guest.clone().without_plugin().boot();
    add_module(&folder, KERNEL);
    // The types have to be read from the vmlinux, not from the cache.
    let id = Elf::open(&folder.join("vmlinux")).expect("a vmlinux").build_id().expect("a build id");
    let kept = cache().join("types");
    let _ = fs::remove_file(kept.join(id.iter().map(|byte| format!("{byte:02x}")).collect::<String>()));
    assert!(types::cache::load(&kept, &id).is_none());
    let boot = guest.boot();
    boot.assert_ended_well();
    boot.assert_planted(&boot.report().objects);
    boot.assert_trustworthy();
    assert_eq!(planted::planted(&boot.console).len(), 8);
    assert_lines(&boot);
    assert!(types::cache::load(&kept, &id).is_some(), "the types are kept");
}

/// The message names the options to set, in the syntax of the usual build tools.
#[test]
fn a_kernel_without_types_names_the_options_to_set() {
    let folder = tree("types-none", KERNEL, without_btf);
    let words = [
        "has no types",
        "CONFIG_DEBUG_INFO_BTF is off",
        "vng --build --configitem CONFIG_DEBUG_KERNEL=y --configitem CONFIG_DEBUG_INFO_DWARF_TOOLCHAIN_DEFAULT=y",
        "kunit.py run --kconfig_add CONFIG_DEBUG_KERNEL=y --kconfig_add CONFIG_DEBUG_INFO_DWARF_TOOLCHAIN_DEFAULT=y",
        "CONFIG_DEBUG_KERNEL=y CONFIG_DEBUG_INFO_DWARF_TOOLCHAIN_DEFAULT=y in its .config",
    ];
    let assert_said = |boot: &Boot, further: &[&str]| assert_refused(boot, &[&words[..], further].concat());
    assert_said(&guest("types-missing", KERNEL, &folder).boot(), &[]);
    // The vmlinux of another kernel is not used.
    build(OTHER);
    add_vmlinux(&folder, OTHER, "--remove-section .BTF");
    assert_said(
        &guest("types-other", KERNEL, &folder).boot(),
        &["vmlinux is not used: it is of", "build id", "the guest runs"],
    );
    add_vmlinux(&folder, KERNEL, "--strip-debug --remove-section .BTF");
    assert_said(&guest("types-stripped", KERNEL, &folder).boot(), &["it has neither BTF nor debugging information"]);
}
