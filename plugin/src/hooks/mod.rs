//! Allocator hooks: which functions ([`table`]), where calls return to ([`callsite`]), what happens when
//! they are entered and return ([`tracker`]), what of it is text that the guest says ([`says`]), to the live map then ([`events`]), and whose stack it was
//! ([`stack`], over the kernel's [`code`]).

pub mod callsite;
pub mod code;
pub mod context;
pub mod events;
pub mod says;
pub mod stack;
pub mod table;
mod traced;
pub mod tracker;
mod watches;
