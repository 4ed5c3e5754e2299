//! Snapshots: a guest at one moment in one file, with everything that its report depends on, so that the same check
//! can be made again without the guest.
//!
//! - [`write()`]: makes the file, while the guest is stopped
//! - [`Snapshot`]: reads it back
//! - [`trim()`]: leaves out what the report does not depend on
//!
//! # The format
//!
//! All numbers are little-endian and of fixed width. *Bytes* are a u32 length and as many bytes; *text* is bytes that
//! are UTF-8. A flag is one byte, 0 or 1.
//!
//! The file is the magic `LEAKSNAP`, a u32 version, and one LZ4 frame whose blocks have checksums. In the frame, one
//! after the other:
//!
//! | part | fields |
//! |---|---|
//! | kernel | text release; u64 virtual and u64 physical address of `_text`; u64 length of the image; u64 number of symbols |
//! | symbols | flag, whether they came from a file and not from the kernel's memory. If so: bytes of a System.map at the running kernel's addresses; flag, and bytes of BTF |
//! | time | u64 milliseconds since tracking began; u64 least age in milliseconds of what is reported; byte, 1 if unseen objects are, and 2 if events had ended before |
//! | counters | 10 u64, as in [`checker::guest_state::Counters`] |
//! | troubles | u32 number, and as many texts: why the report is not to be trusted |
//! | registers | u32 number, and as many u64 |
//! | modules | u32 number; for each u64 sequence number of the load, text name, u32 number of ranges and for each u64 start and end, u32 number of symbols and for each u64 address, u8 letter, text name |
//! | tests | u32 number of stretches, and for each u64 end, text name of the test, empty for none; u32 number of tests that are over and told of in this report first, and for each text name, u8 result (0 none, 1 ok, 2 not ok, 3 skip); text name of the test that runs, and of the one that the report is of, both empty for none; u64 boundaries left out |
//! | stacks | u32 number, and for each u32 number of frames and as many u64, innermost first; the first is number 1 |
//! | objects | names of tasks, readings of clocks, sizes, and the live objects, 32 bytes each: see [`objects`] |
//! | memory | u32 number of ranges of RAM, for each u64 start and u64 end, ascending; then runs: u64 physical address, u64 length and the bytes, ascending, ended by a run of length 0 at address 0. What is in no run is zero |
//! | end | `LEAKSEND` |
//!
//! Text and read-only data of the kernel are in its RAM, so the kernel is found there again as the plugin found it.
//!
//! A change of any of this raises [`VERSION`]; a reader reads its own version only, since a snapshot is for whoever
//! looks into a report now, and no archive.

#![forbid(unsafe_code)]

mod error;
mod fields;
mod guest_tests;
pub mod objects;
mod ram;
mod read;
#[cfg(test)]
mod tests;
mod trim;
mod write;

pub use error::{ReadError, WriteError};
pub use read::Snapshot;
pub use trim::trim;
pub use write::{Written, try_path, write};

/// What every snapshot starts with.
pub const MAGIC: [u8; 8] = *b"LEAKSNAP";
/// The version of the format.
pub const VERSION: u32 = 4;
/// What the contents end with.
const END: [u8; 8] = *b"LEAKSEND";
