//! Allocators besides the slab: the objects of each, and which of its memory holds references.

pub mod kfence;
