//! What the tests in `tests/tests` share: booting a guest under the plugin, and reading what came of it.
//!
//! The plugin is the one that `cargo build --release` made; `scripts/test` does that first.

#![forbid(unsafe_code)]

pub mod boot;
pub mod contexts;
pub mod control;
pub mod fields;
pub mod guest;
pub mod hidden;
pub mod kmemleak_objects;
pub mod monitor;
pub mod planted;
pub mod program;
pub mod report;
pub mod sample;

pub use boot::Boot;
pub use guest::Guest;
pub use hidden::Lost;
pub use program::{Finished, Program};
pub use report::{Report, Summary, Unreferenced};
