//! Reports: groups of leaks with equal stacks, and the formats they are written in.
//!
//! - the data model and kmemleak's checksum, re-exported here
//! - [`text`]: kmemleak's text format
//! - [`json`]: JSON lines, and their schema
//! - [`suppress`]: suppressions in LeakSanitizer's format
//! - [`control`]: the messages of the control socket

pub mod control;
mod encoding;
mod format;
pub mod json;
mod model;
pub mod suppress;
pub mod text;

pub use format::{Format, UnknownFormat};
pub use model::{
    Ages, Checksum, Figures, Frame, Function, Group, How, Leak, Loss, Place, Reference, Report, Suppressed,
};
