//! Frames of the kernel's stacks.
//!
//! - [`orc`]: the kernel's own unwind table (CONFIG_UNWINDER_ORC)
//! - [`step`]: from a frame to its caller, by that table or by frame pointers (CONFIG_UNWINDER_FRAME_POINTER)
//! - [`walk`]: the stack of a CPU that runs, as the kernel would save it
//! - [`cache`]: the rules that walks need most
//! - [`memo`]: walks that were made before
//! - [`frames`]: the frames of a task that sleeps

pub mod cache;
pub mod frames;
pub mod memo;
pub mod orc;
pub mod step;
pub mod walk;
