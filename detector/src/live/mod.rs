//! Live objects: allocations that were seen and whose free was not.
//!
//! The plugin's hooks write here from every vCPU thread. A check takes a copy ([`frozen`]).

pub mod clock;
pub mod comms;
pub mod frozen;
pub mod object;
pub mod objects;
pub mod stacks;
mod striped;
