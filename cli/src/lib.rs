//! The part of the program `leak` that others may use: reading kernel images.

pub mod image;
