//! Allocator hooks: which functions ([`table`]), where calls return to ([`callsite`]), what happens when
//! they are entered and return ([`tracker`]), and to the live map then ([`events`]).

pub mod callsite;
pub mod context;
pub mod events;
pub mod table;
pub mod tracker;
