//! Allocator hooks: which functions ([`table`]), where calls return to ([`callsite`]), and what happens when
//! they are entered and return ([`tracker`]).

pub mod callsite;
pub mod context;
pub mod table;
pub mod tracker;
