//! Errors. [`LinesError`] says which file, what is wrong, and what to do about it.

use object::{RelocationFlags, elf};
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
    #[error("the debugging information of debug={path} cannot be understood: {why}; build or fetch the file anew")]
    BadDwarf {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: DwarfError,
    },
    /// The vmlinux belongs to another kernel.
    #[error(
        "debug={path} does not belong to the running kernel: the file is of {theirs}, the guest runs {ours}; give the vmlinux of the guest's own kernel"
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

/// Why a file is not an ELF file of an x86-64 kernel.
#[derive(Debug, thiserror::Error)]
pub enum ElfFlaw {
    /// The headers are malformed.
    #[error(transparent)]
    Headers(#[from] object::read::Error),
    /// The file is for another machine.
    #[error("it is for machine {0:?} of ELF's list")]
    Machine(elf::Machine),
    /// The file is relocatable and not named like a module.
    #[error("it is an object file whose name does not end in .ko or .ko.debug")]
    ObjectFile,
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

/// A section that cannot be read.
#[derive(Debug, thiserror::Error)]
#[error("section {name}: {why}")]
pub struct SectionError {
    /// The name of the section.
    pub name: String,
    /// What is wrong with it.
    pub why: SectionFlaw,
}

/// Why a section cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum SectionFlaw {
    /// The headers or the compressed data are malformed.
    #[error(transparent)]
    Elf(#[from] object::read::Error),
    /// The file cannot be read.
    #[error(transparent)]
    Io(#[from] std::io::Error),
    /// The decompressed size, in bytes, is implausible.
    #[error("{0} bytes when decompressed")]
    TooLarge(u64),
    /// The section ends behind the file.
    #[error("it extends past the end of the file")]
    BeyondFile,
    /// The kind of a relocation is not supported.
    #[error("a relocation of unknown type, {0:?}")]
    UnknownRelocation(RelocationFlags),
    /// A relocation points behind the section. The field is its offset in bytes.
    #[error("a relocation outside of it")]
    RelocationOutside(u64),
}
