//! The interface to QEMU and libc. All unsafe code is here.
//!
//! - [`api`]: the plugin API, looked up at load; [`optional`]: functions that only builds with
//!   loadable modules export
//! - [`regs`], [`direct`]: registers of the current vCPU; [`arch`]: their names and places
//! - [`vcpu`]: work on vCPUs' threads; [`lifecycle`]: resets and snapshots
//! - [`witness`]: the proof that the guest is stopped
//! - [`ram`], [`layout`]: guest RAM as it is mapped in this process
//! - [`stores`]: stores of the guest; [`sparse`]: large tables that are mostly empty
//! - [`host`], [`allocator`], [`signals`]: the QEMU process
//! - [`panics`]: catches panics in whatever QEMU calls ([`guard`])
//!

pub mod allocator;
pub mod api;
mod arch;
mod direct;
pub mod host;
mod job;
mod layout;
pub mod lifecycle;
mod optional;
pub mod panics;
pub mod ram;
pub mod regs;
pub mod signals;
pub mod sparse;
pub mod stores;
pub mod vcpu;
pub mod witness;

pub use panics::{guard, inject};
