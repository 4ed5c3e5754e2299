//! Differences between architectures in QEMU's interface. Each architecture has a file with the
//! same names. The plugin is built for one of them.

mod x86_64;

pub use x86_64::{GENERAL_REGISTERS, NAMES, PER_CPU_BASE_WITHIN, REGISTERS, Reg, STATE_ORDER};
