//! Live objects, what refers to them, and reports of those that nothing refers to any more.
//!
//! Pure: it knows neither QEMU nor Linux. Addresses are virtual addresses of the guest kernel; memory
//! arrives as byte slices.
//!
//! - [`objects`]: the map of live objects that allocation and free events keep, and what it keeps of each ([`object`])
//! - [`frozen`]: the live objects of one moment, with the names of tasks ([`comms`]) and the time ([`clock`])
//! - [`index`]: from an address, the block it lies in
//! - [`bits`]: a bit for each block
//! - [`scan`]: marks blocks that are referenced, from roots on
//! - [`stacks`]: allocation stacks, each kept once
//! - [`control`]: what a control socket and its clients say
//! - [`graph`]: direct and indirect leaks
//! - [`report`]: what is said of them
//! - [`suppress`]: what the user does not want to hear of
//! - [`guest_tests`]: tests that the guest runs, and [`ktap`], the lines that tell of them

#![deny(unsafe_code)]

pub mod bits;
pub mod clock;
pub mod comms;
pub mod control;
pub mod frozen;
pub mod graph;
pub mod guest_tests;
pub mod index;
pub mod ktap;
pub mod object;
pub mod objects;
pub mod report;
pub mod scan;
pub mod stacks;
mod striped;
pub mod suppress;
