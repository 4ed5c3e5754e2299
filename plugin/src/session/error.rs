//! Errors: why a session does not start, and why there is no kernel to check.

use detector::suppress::SuppressError;
use guest_symbols::symbol_file::SymbolFileError;
use lines::LinesError;
use snapshot::WriteError;

/// Why an option's file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A file of suppressions.
    #[error(transparent)]
    Suppressions(#[from] SuppressError),
    /// The snapshot.
    #[error(transparent)]
    Snapshot(#[from] WriteError),
    /// The symbol file.
    #[error(transparent)]
    Symbols(#[from] SymbolFileError),
    /// Debugging information.
    #[error(transparent)]
    Debug(#[from] LinesError),
}

/// Why no kernel is tracked, or why a scan of the tracked kernel would be wrong.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NotTracked {
    /// libleak panicked.
    #[error("an internal error has ended the tracking, see QEMU's stderr; the only report left is that at QEMU's end")]
    Halted,
    /// Another accelerator runs the guest.
    #[error(
        "QEMU translated no guest code, so nothing was tracked; the guest ran under KVM or another accelerator, or not at all; use -accel tcg"
    )]
    NoCode,
    /// The kernel cannot be tracked.
    #[error("nothing was tracked: {0}")]
    NoKernel(String),
    /// One kernel has ended, and the next has not been found.
    #[error("no kernel runs in the guest now: it is starting again")]
    Between,
    /// No kernel was found.
    #[error("nothing was tracked: no Linux kernel ran in the guest")]
    NoLinux,
    /// The tracked kernel is gone, and QEMU did not report it.
    #[error(
        "no result: the guest started another kernel, and only its first kernel was tracked; use -no-reboot, and start QEMU again for each boot"
    )]
    Replaced,
    /// The kernel of this release has allocated nothing.
    #[error(
        "nothing was tracked: Linux {0} was found, but it ended before its first allocation, or has no known allocator"
    )]
    NoAllocations(String),
}

/// Why the kernel is no longer the one that was tracked when libleak panicked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum TakeUpError {
    /// Its time went back.
    #[error("the guest has gone back in time, or started again")]
    Rewound,
    /// It is another.
    #[error("another kernel runs since")]
    OtherKernel,
}
