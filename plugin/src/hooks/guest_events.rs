//! What hooks pass on: calls of the guest that are not of memory. Whoever listens is made for each
//! kernel, and goes with it.

use super::table::Event;
use super::tracker::Tracker;
use crate::ffi::api::Block;
use libc::c_uint;

/// Listens to a kernel.
pub trait GuestEvents: Send + Sync {
    /// A function is entered on vCPU `vcpu`. In the callback of that vCPU, which must not wait here
    /// for long.
    fn event(&self, tracker: &Tracker, vcpu: c_uint, event: Event<u64>);

    /// QEMU translates a block of the kernel or of a process.
    fn translate(&self, tracker: &Tracker, block: Block);
}
