//! Frames of the kernel's stacks.
//!
//! - [`orc`]: the kernel's own unwind table (CONFIG_UNWINDER_ORC)
//! - [`step`]: from a frame to its caller, by that table or by frame pointers
//!   (CONFIG_UNWINDER_FRAME_POINTER)
//! - [`walk`]: the stack of a running CPU, as the kernel would save it
//! - [`cache`]: a cache of the most used rules
//! - [`memo`]: a memo of earlier walks
//! - [`frames`]: the frames of a sleeping task

pub mod cache;
pub mod frames;
pub mod memo;
pub mod orc;
pub mod step;
pub mod walk;
