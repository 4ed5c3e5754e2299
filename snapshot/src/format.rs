//! The constants of the file format.

/// The first bytes of every snapshot.
pub const MAGIC: [u8; 8] = *b"LEAKSNAP";
/// The version of the format.
pub const VERSION: u32 = 4;
/// The last bytes of the contents.
pub(crate) const END: [u8; 8] = *b"LEAKSEND";
