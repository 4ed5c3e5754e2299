//! The interface through which hooks pass on calls that neither allocate nor free. Each kernel has
//! its own listener.

use super::table::Event;
use super::tracker::Tracker;
use crate::ffi::api::Block;
use libc::c_uint;

/// A listener for the events of a kernel.
pub trait GuestEvents: Send + Sync {
    /// A function is entered on vCPU `vcpu`. Called in a callback of that vCPU, so it must not wait
    /// for long.
    fn event(&self, tracker: &Tracker, vcpu: c_uint, event: Event<u64>);

    /// QEMU translates a block of the kernel or of a process.
    fn translate(&self, tracker: &Tracker, block: Block);
}
