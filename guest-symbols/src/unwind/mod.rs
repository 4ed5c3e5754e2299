//! Frames of the kernel's stacks.
//!
//! - [`orc`]: the kernel's own unwind table (CONFIG_UNWINDER_ORC)

pub mod orc;
