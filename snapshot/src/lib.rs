//! Snapshots: one guest at one moment in a file. A report can be made from it again without the
//! guest.
//!
//! - [`write()`]: writes the file while the guest is stopped
//! - [`Snapshot`]: reads it back
//! - [`trim()`]: leaves out what the report does not depend on
//!
//! # Example
//!
//! ```
//! use snapshot::Snapshot;
//! use std::path::Path;
//!
//! let path = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/golden/snapshot"));
//! let snapshot = Snapshot::open(path)?;
//! let moment = snapshot.moment();
//! println!("Linux {}: {} objects", moment.kernel.release, moment.objects.list().len());
//! assert!(moment.kernel.symbol("init_task").is_some());
//! # Ok::<(), snapshot::ReadError>(())
//! ```
//!
//! # The format
//!
//! All numbers are little-endian and have a fixed width. *Bytes* are a u32 length followed by that
//! many bytes. *Text* is bytes in UTF-8. A flag is one byte, 0 or 1.
//!
//! The file consists of the magic `LEAKSNAP`, a u32 version, and one LZ4 frame whose blocks have
//! checksums. The frame contains these parts in this order:
//!
//! | part | fields |
//! |---|---|
//! | kernel | text release; u64 virtual and u64 physical address of `_text`; u64 length of the image; u64 number of symbols |
//! | symbols | flag: the symbols came from a file and not from the kernel's memory. Only then: bytes of a System.map at the running kernel's addresses; flag, and bytes of BTF |
//! | time | u64 milliseconds since tracking began; u64 least age in milliseconds of reported objects; byte: bit 0 if unseen objects are reported, bit 1 if events had ended before |
//! | counters | 10 u64, as in [`checker::guest_state::Counters`] |
//! | troubles | u32 count, and that many texts: reasons not to trust the report |
//! | registers | u32 count, and that many u64 |
//! | modules | u32 count; for each u64 sequence number of the load, text name, u32 number of ranges and for each u64 start and end, u32 number of symbols and for each u64 address, u8 letter, text name |
//! | tests | u32 number of ranges, and for each u64 end, text name of the test, empty for none; u32 number of ended tests that this report lists first, and for each text name, u8 result (0 none, 1 ok, 2 not ok, 3 skip); text name of the running test, and of the report's test, both empty for none; u64 dropped boundaries |
//! | stacks | u32 count, and for each u32 number of frames and that many u64, innermost first; the first stack has number 1 |
//! | objects | task names, clock readings, sizes, and the live objects, 32 bytes each: see [`objects`] |
//! | memory | u32 number of RAM ranges, for each u64 start and u64 end, ascending; then runs: u64 physical address, u64 length and the bytes, ascending, ended by a run of length 0 at address 0. Memory outside of runs is zero |
//! | end | `LEAKSEND` |
//!
//! The kernel's text and read-only data are in its RAM. The reader therefore finds the kernel as
//! the plugin did.
//!
//! Any change of the format raises [`VERSION`]. A reader accepts its own version only. Snapshots
//! serve the analysis of a current report, they are not an archive.

#![forbid(unsafe_code)]

mod error;
mod fields;
mod format;
mod guest_tests;
pub mod image;
pub mod objects;
mod ram;
mod read;
#[cfg(test)]
mod tests;
mod trim;
mod write;

pub use error::{ReadError, WriteError};
pub use format::{MAGIC, VERSION};
pub use image::{Image, ImageError};
pub use read::Snapshot;
pub use trim::trim;
pub use write::{Written, try_path, write};
