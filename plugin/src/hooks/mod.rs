//! Allocator hooks: which functions ([`table`]), where calls return to ([`callsite`]), what of translated code is watched
//! for that ([`translate`]), what happens when they are entered and return ([`calls`]), to the live map then ([`events`]), whose
//! stack it was ([`stack`], over the kernel's [`code`]), and what of it is text that the guest says ([`says`]). All of it is methods of
//! what is known of the guest's kernel ([`tracker`]), of which there may be one after the other ([`current`]).
//! How much of what a guest makes up is kept is in [`bounds`], and what there is room for on the host in [`memory`].

pub mod bounds;
mod calls;
mod callsite;
pub mod chosen;
pub mod code;
pub mod context;
pub mod current;
pub mod events;
pub mod image;
pub mod joined;
mod loaded;
pub mod memory;
pub mod says;
pub mod stack;
pub mod table;
mod traced;
pub mod tracker;
pub mod translate;
mod watches;
