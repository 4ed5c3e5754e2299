//! All contact with QEMU's C side: the plugin API looked up at load ([`api`]), registers ([`regs`], [`direct`]), guest
//! RAM as it is mapped in this process ([`ram`], [`layout`]), and what only builds with loadable modules export
//! ([`host`]). Unsafe code stays in here. What QEMU calls goes through [`guard`].

pub mod allocator;
pub mod api;
mod direct;
pub mod host;
mod job;
mod layout;
pub mod panics;
pub mod ram;
pub mod regs;
pub mod signals;

pub use panics::{guard, inject};
