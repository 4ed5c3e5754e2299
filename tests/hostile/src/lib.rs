//! What must hold whatever the bytes are that come from a guest, a file or a client.
//!
//! One function for each kind of untrusted input: it reads the bytes as the program does, and asserts that nothing more is read,
//! kept or written than may be, and that what was made of them agrees with itself. [`TARGETS`] has them all. `tests/fuzz` gives them to
//! libFuzzer, and the property tests of this package give them a few thousand inputs in every run of the tests.
//!
//! Where a whole guest is needed it is that of `tests/golden/snapshot`, a small kernel of our own, and the input says which words of its
//! memory are overwritten: see [`guest`]. `LIBLEAK_FUZZ_SNAPSHOT` names another snapshot.

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

/// A kind of untrusted input: its name, and what must hold of it.
pub type Target = (&'static str, fn(&[u8]));

/// All of them.
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
