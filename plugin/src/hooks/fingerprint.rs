//! Distinguishes the tracked kernel from another kernel at the same address.

use crate::ffi::ram::Ram;
use guest_symbols::Kernel;
use guest_symbols::memory::{GuestMemory, PhysAddr};
use std::hash::{DefaultHasher, Hasher};

/// Bytes of read-only data that are hashed. KASLR has moved the addresses among them.
const BYTES: usize = 1 << 16;

/// A hash of the start of a kernel's read-only data (`__start_rodata`,
/// include/asm-generic/sections.h).
pub(super) struct Fingerprint {
    at: PhysAddr,
    hash: u64,
}

impl Fingerprint {
    /// The fingerprint of the kernel as it is now; `None` where its data cannot be read.
    pub fn of(kernel: &Kernel, ram: &Ram) -> Option<Fingerprint> {
        let at = kernel.image_phys(kernel.symbol("__start_rodata")?);
        Some(Fingerprint { at, hash: hash(ram, at)? })
    }

    /// Whether the same data is still there.
    pub fn is_there(&self, ram: &Ram) -> bool {
        hash(ram, self.at) == Some(self.hash)
    }
}

fn hash(ram: &Ram, at: PhysAddr) -> Option<u64> {
    let mut bytes = vec![0; BYTES];
    ram.read(at, &mut bytes).ok()?;
    let mut hasher = DefaultHasher::new();
    hasher.write(&bytes);
    Some(hasher.finish())
}
