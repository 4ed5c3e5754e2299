//! Hooks: what is watched of the guest's kernel, and what is made of it.
//!
//! - [`tracker`]: one kernel that is tracked; [`current`]: of several that run one after the other,
//!   the one that runs now
//! - [`table`], [`resolved`]: which functions; [`arch`]: how they are called
//! - [`callsite`], [`return_watches`], [`translate`]: where calls return to, and what of translated
//!   code is watched for that
//! - [`calls`], [`pending`]: the hot path, when functions are entered and return
//! - [`allocations`], [`objects`]: to the live map
//! - [`unwinder`], [`code`], [`tracer_returns`]: whose stack it was
//! - [`guest`], [`context`], [`guest_text`], [`guest_time`], [`fingerprint`], [`attach`]: the guest
//!   as it is now
//! - [`modules`], [`loaded`]: code that comes and goes
//! - [`guest_events`]: calls that others listen to
//! - [`limits`], [`memory_budget`], [`troubles`]: how much is kept, and what to say if that is not
//!   all

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
mod limits;
mod loaded;
mod memory_budget;
mod modules;
mod objects;
mod pending;
pub mod resolved;
mod return_watches;
pub mod table;
mod tracer_returns;
pub mod tracker;
pub mod translate;
pub mod troubles;
mod unwinder;

use dashmap::DashMap;
use detector::objects::AddressHasher;
use std::hash::BuildHasherDefault;

/// A map by guest virtual addresses.
type AddressMap<V> = DashMap<u64, V, BuildHasherDefault<AddressHasher>>;
