//! Allocators beside the slab: what each has given out, and which of its memory holds references.

pub mod kfence;
