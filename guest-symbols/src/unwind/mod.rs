//! Frames of the kernel's stacks.
//!
//! - [`orc`]: the kernel's own unwind table (CONFIG_UNWINDER_ORC)
//! - [`frames`]: from frame to frame by it

pub mod frames;
pub mod orc;
