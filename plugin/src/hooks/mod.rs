//! Allocator hooks: which functions ([`table`]), where calls return to ([`callsite`]), what of translated code is watched
//! for that ([`translate`]), what happens when they are entered and return ([`calls`]), to the live map then ([`allocations`]), whose
//! stack it was ([`unwinder`], over the kernel's [`code`]), and what of it is text that the guest says ([`guest_text`]). All of it is methods of
//! what is known of the guest's kernel ([`tracker`]), of which there may be one after the other ([`current`]).
//! How much of what a guest makes up is kept is in [`limits`], and what there is room for on the host in [`memory_budget`].

pub mod allocations;
pub mod arch;
pub mod attach;
mod calls;
mod callsite;
pub mod code;
pub mod context;
pub mod current;
pub mod guest_text;
pub mod limits;
mod loaded;
pub mod memory_budget;
pub mod resolved;
mod return_watches;
pub mod table;
mod tracer_returns;
pub mod tracker;
pub mod translate;
pub mod troubles;
pub mod unwinder;
