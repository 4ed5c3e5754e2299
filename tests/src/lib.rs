//! The shared parts of the tests in `tests/tests`: booting a guest, and reading its output.
//! `tests/README.md` explains how a guest is made.
//!
//! The tests use the plugin of `cargo build --release`, which `scripts/test` runs first.

#![forbid(unsafe_code)]

pub mod boot;
pub mod bzimage;
pub mod contexts;
pub mod control;
pub mod fields;
pub mod guest;
pub mod hidden;
pub mod kmemleak_objects;
pub mod monitor;
pub mod page;
pub mod planted;
pub mod program;
pub mod report;
pub mod sample;
pub mod sandbox;
pub mod tree;

pub use boot::Boot;
pub use fields::assert_has;
pub use guest::Guest;
pub use hidden::Lost;
pub use page::Page;
pub use program::{Finished, Program};
pub use report::{Report, Summary, Unreferenced};
