//! The proof that the guest is stopped.

/// Proof that nothing writes to guest RAM: no vCPU executes, or the only one that could is in a
/// callback of ours.
///
/// Whoever stops the guest makes one and lends it to what is to be done meanwhile. It can be
/// neither copied nor kept, so what borrows it has ended when the guest goes on.
///
/// The ways to stop the guest are QEMU's exclusive section, a monitor, the handlers of a reset,
/// QEMU's exit, and the first block of a kernel, which the boot CPU translates while all others
/// wait.
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

/// What is done while the guest is stopped.
pub type Work = Box<dyn FnOnce(&GuestStopped) + Send>;
