//! Errors. [`LinesError`] says which file, what is wrong, and what to do about it.

use guest_symbols::elf::{ElfFlaw, SectionError};
use std::path::PathBuf;

/// Why there is no debugging information.
#[derive(Debug, thiserror::Error)]
pub enum LinesError {
    /// The path does not exist.
    #[error("debug={path}: there is no such file or folder")]
    Missing {
        /// The path given.
        path: PathBuf,
    },
    /// The file cannot be read.
    #[error("cannot read debug={path}: {why}")]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// The error of the system.
        why: std::io::Error,
    },
    /// The folder contains no usable file.
    #[error(
        "debug={path}: neither a vmlinux with debugging information nor a module (*.ko, *.ko.debug) lies in or below this folder"
    )]
    NothingFound {
        /// The folder given.
        path: PathBuf,
    },
    /// The file is neither a vmlinux nor a module.
    #[error("debug={path} is neither a vmlinux nor a module of an x86-64 kernel: {why}")]
    NoElf {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: ElfFlaw,
    },
    /// The file has no debugging information.
    #[error(
        "debug={path} has no debugging information; build the kernel with CONFIG_DEBUG_INFO, or give the vmlinux of the distribution's package of debugging symbols (Debian: linux-image-RELEASE-dbg)"
    )]
    NoDwarf {
        /// The file.
        path: PathBuf,
    },
    /// The debugging information is malformed.
    #[error("the debugging information of debug={path} cannot be read: {why}; build or fetch the file again")]
    BadDwarf {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: DwarfError,
    },
    /// The vmlinux belongs to another kernel.
    #[error(
        "debug={path} does not fit the running kernel: the file is of {theirs}, the guest runs {ours}; give the vmlinux of the guest's own kernel"
    )]
    OtherKernel {
        /// The file.
        path: PathBuf,
        /// Version and build ID of the file.
        theirs: String,
        /// Version and build ID of the guest.
        ours: String,
    },
}

/// Why debugging information cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum DwarfError {
    /// A section cannot be read.
    #[error(transparent)]
    Section(#[from] SectionError),
    /// The contents of the sections are malformed.
    #[error(transparent)]
    Contents(#[from] gimli::Error),
}
