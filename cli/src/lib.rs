//! What of the program `leak` others may use: how images of kernels are read.

pub mod image;
