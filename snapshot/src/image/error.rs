//! Errors of memory images. Each names the file, the cause, and what to do.

use guest_symbols::kernel::KernelError;
use std::io;
use std::path::PathBuf;

/// What is wrong with a file.
#[derive(Debug, thiserror::Error)]
pub enum Flaw {
    /// The file cannot be read.
    #[error("it cannot be read: {0}")]
    Io(#[from] io::Error),
    /// The file ends too early.
    #[error("it is truncated: its {0} ends at byte {1}, and the file has {2} bytes; copy or write it again")]
    Truncated(&'static str, u64, u64),
    /// A field has an impossible value.
    #[error("its {0} has the impossible value {1:#x}; copy or write it again")]
    Field(&'static str, u64),
    /// It is of another kind of machine.
    #[error("it is the memory of another kind of machine (its {0} is {1}); only x86-64 is known")]
    Machine(&'static str, u64),
    /// It is one part of a split dump.
    #[error("it is one part of a split dump; join the parts with makedumpfile --reassemble")]
    Part,
    /// It has no memory.
    #[error("it has no memory")]
    Empty,
}

/// Why an image cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// The file cannot be opened.
    #[error("cannot open {path}: {why}; give a memory image, or a file that the option snapshot= wrote")]
    Open {
        /// The path given.
        path: PathBuf,
        /// The error of the system.
        why: io::Error,
    },
    /// The format is unknown.
    #[error(
        "{path} is no memory image of a known form; known are ELF cores and kdump files of QEMU, libvirt, kdump and makedumpfile, and snapshots of libleak"
    )]
    Unknown {
        /// The path given.
        path: PathBuf,
    },
    /// The file is truncated or damaged.
    #[error("{path} cannot be used: {why}")]
    Flaw {
        /// The path given.
        path: PathBuf,
        /// What is wrong.
        why: Flaw,
    },
    /// The file does not show where a kernel is.
    #[error(
        "no kernel is found in {path}: it has neither registers of a CPU that runs Linux, nor a segment of the kernel's image, nor VMCOREINFO"
    )]
    NoKernel {
        /// The path given.
        path: PathBuf,
    },
    /// The kernel in the image cannot be read.
    #[error("the kernel in {path} cannot be read: {why}")]
    Kernel {
        /// The path given.
        path: PathBuf,
        /// Why not.
        why: KernelError,
    },
    /// The image needs more host memory than there is.
    #[error("{path} has {bytes} bytes of RAM, which are too many to check here; use a larger machine")]
    NoRoom {
        /// The path given.
        path: PathBuf,
        /// Bytes of the guest's RAM.
        bytes: u64,
    },
}
