//! Errors of snapshots. Each names the file, the cause, and what to do.

use crate::format::VERSION;
use guest_symbols::kernel::KernelError;
use std::io;
use std::path::PathBuf;

/// Why a snapshot was not written. An existing file of this name is unchanged.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    /// The temporary file cannot be created.
    #[error("cannot make snapshot {path}: {why}; give a path in a folder that exists and is writable")]
    Create {
        /// The temporary name.
        path: PathBuf,
        /// The error of the system.
        why: io::Error,
    },
    /// The file was created and cannot be completed.
    #[error(
        "cannot write snapshot {path}: {why}; it needs some 50 MiB for a booted guest, and the path must not be a folder"
    )]
    Write {
        /// The requested name.
        path: PathBuf,
        /// The error of the system.
        why: io::Error,
    },
    /// The kernel's location in memory is unknown.
    #[error("cannot write snapshot {path}: the kernel has no symbol {symbol}")]
    NoImage {
        /// The requested name.
        path: PathBuf,
        /// The missing symbol.
        symbol: &'static str,
    },
}

/// Why a snapshot cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The file cannot be opened.
    #[error("cannot open snapshot {path}: {why}; give a file that the option snapshot= wrote")]
    Open {
        /// The path given.
        path: PathBuf,
        /// The error of the system.
        why: io::Error,
    },
    /// The file is not a snapshot.
    #[error("{path} is not a snapshot of libleak; give a file that the option snapshot= wrote")]
    NotSnapshot {
        /// The path given.
        path: PathBuf,
    },
    /// The format has another version.
    #[error(
        "snapshot {path} has format {found}, and this program reads format {VERSION} only; use the libleak that wrote it"
    )]
    Version {
        /// The path given.
        path: PathBuf,
        /// The version of the file.
        found: u32,
    },
    /// The file is truncated or its contents are invalid.
    #[error(
        "snapshot {path} is damaged in its part \"{part}\", at byte {at} of the contents: {why}; copy or write it again"
    )]
    Damaged {
        /// The path given.
        path: PathBuf,
        /// The part of the format.
        part: &'static str,
        /// Offset in bytes in the uncompressed contents.
        at: u64,
        /// What is wrong there.
        why: String,
    },
    /// This machine has too little memory for the guest.
    #[error(
        "the guest of snapshot {path} has {bytes} bytes of RAM, which do not fit into memory here; use a larger machine"
    )]
    NoRoom {
        /// The path given.
        path: PathBuf,
        /// Bytes of the guest's RAM.
        bytes: u64,
    },
    /// The snapshot contains no usable kernel.
    #[error("the kernel in snapshot {path} cannot be read: {why}; use the libleak that wrote it")]
    Kernel {
        /// The path given.
        path: PathBuf,
        /// Why the kernel was not found.
        why: KernelError,
    },
    /// The kernel in the memory is not the recorded one.
    #[error("the memory in snapshot {path} has {found}, but it was taken of {recorded}; use the libleak that wrote it")]
    OtherKernel {
        /// The path given.
        path: PathBuf,
        /// Release and number of symbols of the kernel in the memory.
        found: String,
        /// Release and number of symbols as recorded.
        recorded: String,
    },
}
