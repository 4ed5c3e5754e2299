//! What can go wrong with a snapshot: each says which file, what, and what to do.

use crate::VERSION;
use guest_symbols::kernel::KernelError;
use std::io;
use std::path::PathBuf;

/// Why a snapshot was not written. The file of that name, if there is one, is left as it was.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    /// The file cannot be made.
    #[error("cannot make snapshot {path}: {why}; give a path in a folder that exists and is writable")]
    Create {
        /// The temporary name.
        path: PathBuf,
        /// The system's word.
        why: io::Error,
    },
    /// It was made and could not be finished.
    #[error(
        "cannot write snapshot {path}: {why}; it needs some 50 MiB for a booted guest, and no folder may be called so"
    )]
    Write {
        /// The name that was asked for.
        path: PathBuf,
        /// The system's word.
        why: io::Error,
    },
    /// The kernel's place in memory is not known.
    #[error("cannot write snapshot {path}: the kernel has no symbol {symbol}")]
    NoImage {
        /// The name that was asked for.
        path: PathBuf,
        /// What is missing.
        symbol: &'static str,
    },
}

/// Why a snapshot could not be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The file cannot be opened.
    #[error("cannot open snapshot {path}: {why}; give a file that the option snapshot= wrote")]
    Open {
        /// The path given.
        path: PathBuf,
        /// The system's word.
        why: io::Error,
    },
    /// It is something else.
    #[error("{path} is no snapshot of libleak; give a file that the option snapshot= wrote")]
    NotSnapshot {
        /// The path given.
        path: PathBuf,
    },
    /// Its format is not this program's.
    #[error(
        "snapshot {path} has format {found}, and this program reads format {VERSION} only; use the libleak that wrote it"
    )]
    Version {
        /// The path given.
        path: PathBuf,
        /// The format of the file.
        found: u32,
    },
    /// It is cut off, or its contents make no sense.
    #[error(
        "snapshot {path} is damaged in its part \"{part}\", at byte {at} of the contents: {why}; copy or write it again"
    )]
    Damaged {
        /// The path given.
        path: PathBuf,
        /// Which part of the format.
        part: &'static str,
        /// Offset in bytes into the uncompressed contents.
        at: u64,
        /// What is wrong there.
        why: String,
    },
    /// The guest is larger than this machine.
    #[error(
        "the guest of snapshot {path} has {bytes} bytes of RAM, for which there is no room here; use a larger machine"
    )]
    NoRoom {
        /// The path given.
        path: PathBuf,
        /// RAM of the guest.
        bytes: u64,
    },
    /// There is no usable kernel in it.
    #[error("the kernel in snapshot {path} cannot be read: {why}; use the libleak that wrote it")]
    Kernel {
        /// The path given.
        path: PathBuf,
        /// Why not.
        why: KernelError,
    },
    /// The kernel that is found is not the one that was tracked.
    #[error("the memory in snapshot {path} has {found}, but it was taken of {recorded}; use the libleak that wrote it")]
    OtherKernel {
        /// The path given.
        path: PathBuf,
        /// Release and number of symbols found.
        found: String,
        /// The same as recorded.
        recorded: String,
    },
}
