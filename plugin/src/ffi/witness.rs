//! The proof that the guest is stopped.

/// Proof that nothing writes to guest RAM: no vCPU executes, or the only one that does is in a
/// callback.
///
/// Code that stops the guest makes one, and lends it to the work that needs a stopped guest. It
/// cannot be copied, so nothing can keep it until after the guest runs again.
///
/// It is made in QEMU's exclusive section, by a monitor, in reset handlers, at QEMU's exit, and at
/// the first block of a kernel, which the boot CPU translates before others run.
pub struct GuestStopped(());

impl GuestStopped {
    /// States that the guest is stopped.
    ///
    /// # Safety
    /// As long as the result lives, nothing writes to guest RAM.
    pub unsafe fn new() -> GuestStopped {
        GuestStopped(())
    }
}

/// Work that needs a stopped guest.
pub type Work = Box<dyn FnOnce(&GuestStopped) + Send>;
