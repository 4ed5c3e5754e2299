//! Checks that no input from a guest, a file or a client causes harm.
//!
//! There is one function per kind of untrusted input, listed in [`TARGETS`]. It parses the bytes as
//! the program does. It asserts that no bound is exceeded and that the result is consistent.
//! `tests/fuzz` passes these functions to libFuzzer. The property tests of this package call them
//! with a few thousand inputs in every run.
//!
//! Functions that need a guest use `tests/golden/snapshot`, which has a small kernel. The input
//! selects the words of its memory that are overwritten: see [`guest`]. `LIBLEAK_FUZZ_SNAPSHOT`
//! names another snapshot.

pub mod btf;
pub mod console;
pub mod control;
pub mod files;
pub mod guest;
pub mod input;
pub mod kallsyms;
pub mod modules;
pub mod options;
pub mod paging;
pub mod reports;
pub mod seeds;
pub mod snapshots;
pub mod structures;
pub mod suppressions;
pub mod types;
pub mod unwind;
pub mod whole;

/// A kind of untrusted input: its name, and the function that checks it.
pub type Target = (&'static str, fn(&[u8]));

/// All kinds of input.
pub const TARGETS: [Target; 20] = [
    ("kallsyms", kallsyms::check),
    ("btf", btf::check),
    ("types", types::check),
    ("unwind", unwind::check),
    ("modules", modules::check),
    ("pages", structures::pages),
    ("slabs", structures::slabs),
    ("percpu", structures::percpu),
    ("vmap", structures::vmap),
    ("tasks", structures::tasks),
    ("paging", paging::check),
    ("symbol_file", files::symbol_file),
    ("boot_image", files::boot_image),
    ("snapshot", snapshots::check),
    ("control", control::check),
    ("reports", reports::check),
    ("suppressions", suppressions::check),
    ("options", options::check),
    ("console", console::check),
    ("whole_check", whole::check),
];
