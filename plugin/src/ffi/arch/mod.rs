//! What differs between the architectures of guests, as far as QEMU's side of it goes. Each
//! architecture has a file with the same names in it. The plugin is built for one of them.

mod x86_64;

pub use x86_64::{GENERAL_REGISTERS, NAMES, PER_CPU_BASE_WITHIN, REGISTERS, Reg, STATE_ORDER};
