//! Hooks in the guest's kernel, and the state that they maintain.
//!
//! - [`tracker`]: a tracked kernel; [`current`]: the one that runs now
//! - [`table`], [`resolved`]: the hooked functions; [`arch`]: calling conventions
//! - [`callsite`], [`return_watches`], [`translate`]: return addresses, and callbacks in translated
//!   code
//! - [`calls`], [`pending`]: the hot path, entries and returns of functions
//! - [`allocations`], [`objects`]: the live map
//! - [`stores`]: the history of references
//! - [`unwinder`], [`code`], [`tracer_returns`]: allocation stacks
//! - [`guest`], [`context`], [`guest_text`], [`guest_time`], [`fingerprint`], [`attach`]: the
//!   guest's kernel
//! - [`modules`], [`loaded`]: modules and BPF programs
//! - [`hibernation`], [`image`]: the live map of a hibernated guest
//! - [`guest_events`]: the interface for markers and tests
//! - [`limits`], [`memory_budget`], [`troubles`]: limits, and reasons not to trust reports

mod allocations;
pub mod arch;
pub mod attach;
mod calls;
mod callsite;
mod code;
mod context;
pub mod current;
mod fingerprint;
pub mod guest;
pub mod guest_events;
pub mod guest_text;
mod guest_time;
mod hibernation;
mod image;
mod limits;
mod loaded;
mod memory_budget;
mod modules;
mod objects;
mod pending;
pub mod resolved;
mod return_watches;
mod stores;
pub mod table;
mod tracer_returns;
pub mod tracker;
pub mod translate;
pub mod troubles;
mod unwinder;

use dashmap::DashMap;
use detector::objects::AddressHasher;
use std::hash::BuildHasherDefault;

/// A map by guest virtual address.
type AddressMap<V> = DashMap<u64, V, BuildHasherDefault<AddressHasher>>;
