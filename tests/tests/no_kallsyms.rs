//! Guests whose kernels lack symbols: without CONFIG_KALLSYMS_ALL, and without CONFIG_KALLSYMS.
//! With the kernel's vmlinux they need no option. Without it, a message says what to build.
//!
//! The kernels are those of a kernel with all symbols, whose symbol table is changed in the image.

use guest_symbols::elf::Elf;
use std::ops::Range;
use std::path::Path;
use tests::tree::{add_module, add_vmlinux, assert_lines, assert_refused, guest, tree, vmlinux_of};
use tests::{Boot, bzimage, planted};

/// The kernel of the guests.
const KERNEL: &str = "selfbuilt-kmemleak";
/// Another kernel.
const OTHER: &str = "selfbuilt-debug";

/// The places of the symbol table's parts in a kernel that is an ELF file (scripts/kallsyms.c).
struct Kallsyms {
    count: usize,
    names: usize,
    tokens: usize,
    index: Range<usize>,
}

impl Kallsyms {
    fn of(kernel: &[u8]) -> Kallsyms {
        let symbols = Elf::open(&vmlinux_of(KERNEL)).expect("a vmlinux").symbols().expect("symbols");
        let place = |name: &str| {
            let name = format!("kallsyms_{name}");
            let symbol = symbols.iter().find(|(_, _, symbol)| *symbol == name);
            bzimage::offset_of(kernel, symbol.unwrap_or_else(|| panic!("no {name}")).0)
        };
        let index = place("token_index");
        Kallsyms {
            count: place("num_syms"),
            names: place("names"),
            tokens: place("token_table"),
            index: index..index + 512,
        }
    }
}

/// An image without names of data. Each has the same length and type, and another text.
fn without_data_symbols(image: Vec<u8>) -> Vec<u8> {
    bzimage::changed(image, |kernel| {
        let table = Kallsyms::of(kernel);
        let count = u32::from_le_bytes(kernel[table.count..table.count + 4].try_into().expect("4 bytes"));
        let index = kernel[table.index.clone()].to_vec();
        let first = |token: u8| {
            let at = 2 * usize::from(token);
            kernel[table.tokens + usize::from(u16::from_le_bytes([index[at], index[at + 1]]))]
        };
        let types: Vec<u8> = (0..=255).map(first).collect();
        let (mut at, mut renamed) = (table.names, 0);
        for _ in 0..count {
            let (len, start) = match kernel[at] {
                low if low < 0x80 => (usize::from(low), at + 1),
                low => (usize::from(low & 0x7f) | usize::from(kernel[at + 1]) << 7, at + 2),
            };
            // Token 48 is the digit 0.
            if b"bBdDrRvVaA".contains(&types[usize::from(kernel[start])]) && len > 1 {
                kernel[start + 1..start + len].fill(b'0');
                renamed += 1;
            }
            at = start + len;
        }
        assert!(renamed > 5_000 && count > 2 * renamed, "{renamed} of {count}");
    })
}

/// An image without symbols: none is counted, and there are zeroes in place of names and tokens.
fn without_symbols(image: Vec<u8>) -> Vec<u8> {
    bzimage::changed(image, |kernel| {
        let table = Kallsyms::of(kernel);
        kernel[table.count..table.count + 4].fill(0);
        kernel[table.names..table.index.end].fill(0);
    })
}

fn assert_found(boot: &Boot) {
    boot.assert_ended_well();
    boot.assert_planted(&boot.report().objects);
    boot.assert_trustworthy();
    assert_eq!(planted::planted(&boot.console).len(), 8);
    assert_lines(boot);
}

/// Boots without a vmlinux, with that of another kernel, and with the kernel's own.
fn with_and_without_vmlinux(name: &str, folder: &Path, words: &[&str]) {
    let guest = |which: &str| guest(&format!("{name}-{which}"), KERNEL, folder);
    assert_refused(&guest("missing").boot(), words);
    tests::tree::build(OTHER);
    add_vmlinux(folder, OTHER, "--strip-debug");
    assert_refused(&guest("other").boot(), &[words, &["vmlinux does not fit the running kernel"]].concat());
    add_vmlinux(folder, KERNEL, "--remove-section .BTF --remove-section .BTF_ids");
    add_module(folder, KERNEL);
    assert_found(&guest("found").losing(planted::lost).boot());
}

#[test]
fn a_kernel_without_data_symbols_needs_its_vmlinux() {
    let folder = tree("kallsyms-data", KERNEL, without_data_symbols);
    let words = [
        "has no data symbols, such as init_top_pgt (CONFIG_KALLSYMS_ALL is off)",
        "build it with CONFIG_DEBUG_KERNEL=y CONFIG_KALLSYMS_ALL=y in its .config",
        "vng --build --configitem CONFIG_DEBUG_KERNEL=y --configitem CONFIG_KALLSYMS_ALL=y",
        "kunit.py run --kconfig_add CONFIG_DEBUG_KERNEL=y --kconfig_add CONFIG_KALLSYMS_ALL=y",
        "or pass symbols=PATH with its vmlinux or System.map",
    ];
    with_and_without_vmlinux("kallsyms-data", &folder, &words);
}

#[test]
fn a_kernel_without_symbols_needs_its_vmlinux() {
    let folder = tree("kallsyms-none", KERNEL, without_symbols);
    let words = [
        "has no usable kallsyms (no kallsyms token table)",
        "CONFIG_KALLSYMS=y CONFIG_DEBUG_KERNEL=y CONFIG_KALLSYMS_ALL=y in its .config",
        "vng --build --configitem CONFIG_KALLSYMS=y --configitem CONFIG_DEBUG_KERNEL=y --configitem CONFIG_KALLSYMS_ALL=y",
        "kunit.py run --kconfig_add CONFIG_KALLSYMS=y --kconfig_add CONFIG_DEBUG_KERNEL=y --kconfig_add CONFIG_KALLSYMS_ALL=y",
        "or pass symbols=PATH with its vmlinux or System.map",
    ];
    with_and_without_vmlinux("kallsyms-none", &folder, &words);
}
