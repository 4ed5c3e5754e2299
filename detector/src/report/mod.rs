//! What a check has found, ready to be written: groups of leaks with equal stacks, and the forms they are written in.
//!
//! - here: the model, and kmemleak's checksum
//! - [`text`]: kmemleak's own words

pub mod text;

use crate::objects::Kind;
use std::fmt;

/// One place in the source.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Place {
    /// The function, an inlined one too.
    pub function: Option<String>,
    /// The file as its debugging information names it, relative to where it was built.
    pub file: String,
    /// The line, counted from 1; 0 if it is not known.
    pub line: u32,
}

/// One frame of an allocation's stack.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Frame {
    /// Virtual address: the start of the allocator, else a return address. 0 if the allocation was not seen.
    pub address: u64,
    /// The function it lies in; `None` where nothing is known of it.
    pub function: Option<Function>,
    /// Where in the source, innermost inlined function first; empty without debugging information.
    pub places: Vec<Place>,
}

/// A function as kallsyms names it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Function {
    /// Its name.
    pub name: String,
    /// The frame's place in it, in bytes.
    pub offset: u64,
    /// Its size in bytes, up to the next symbol.
    pub size: u64,
    /// The module it is in, or `bpf`; `None` for the kernel's image.
    pub module: Option<String>,
}

impl Frame {
    /// Its names, those of inlined functions and of source files too.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        let function = self.function.iter().flat_map(|f| f.module.as_deref().into_iter().chain([f.name.as_str()]));
        function.chain(self.places.iter().flat_map(|p| p.function.as_deref().into_iter().chain([p.file.as_str()])))
    }
}

impl fmt::Display for Frame {
    /// As `%pS` prints it (lib/vsprintf.c).
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.function {
            _ if self.address == 0 => f.write_str("(allocation not seen)"),
            None => write!(f, "{:#x}", self.address),
            Some(Function { name, module: Some(module), .. }) if name.is_empty() => {
                write!(f, "{:#x} [{module}]", self.address)
            }
            Some(Function { name, offset, size, module: None }) => write!(f, "{name}+{offset:#x}/{size:#x}"),
            Some(Function { name, offset, size, module: Some(module) }) => {
                write!(f, "{name}+{offset:#x}/{size:#x} [{module}]")
            }
        }
    }
}

/// One unreferenced object.
#[derive(Debug, Clone)]
pub struct Leak {
    /// Virtual address, or `__percpu` pointer.
    pub addr: u64,
    /// Size in bytes as kmemleak knows it: the cache's object size, or what was requested.
    pub size: u64,
    /// What it is made of.
    pub kind: Kind,
    /// Its slab cache.
    pub cache: Option<String>,
    /// The type it seems to be of: `struct NAME`.
    pub guess: Option<String>,
    /// Task at allocation; `hardirq` or `softirq` in interrupts.
    pub comm: String,
    /// Its pid, the thread's own; 0 in interrupts.
    pub pid: u32,
    /// Its process's pid; 0 in interrupts.
    pub tgid: u32,
    /// The CPU that it ran on.
    pub cpu: u32,
    /// Jiffies at allocation.
    pub jiffies: u64,
    /// Milliseconds since the allocation, of the host's clock.
    pub age: u64,
    /// The first bytes of the object; at least 32 where it has as many.
    pub head: Vec<u8>,
    /// The CPU whose copy of a per-CPU object is shown.
    pub shown_cpu: Option<u32>,
    /// [`Checksum`] of its contents.
    pub crc: u32,
    /// What hangs from a direct leak: indirect leaks, each counted for one direct leak, and their bytes. 0 for indirect
    /// leaks.
    pub retains: (u64, u64),
}

/// Leaks with equal stacks, and either all direct or all indirect.
#[derive(Debug, Clone)]
pub struct Group {
    /// Whether nothing refers to them; else only other leaks do.
    pub direct: bool,
    /// Their stack, innermost frame first; not empty.
    pub frames: Vec<Frame>,
    /// The leaks, in the order of their allocation; not empty.
    pub leaks: Vec<Leak>,
}

impl Group {
    /// Bytes of all its leaks.
    pub fn bytes(&self) -> u64 {
        self.leaks.iter().map(|l| l.size).sum()
    }

    /// Objects and bytes that hang from its leaks.
    pub fn retains(&self) -> (u64, u64) {
        self.leaks.iter().fold((0, 0), |(n, b), l| (n + l.retains.0, b + l.retains.1))
    }
}

/// One figure of the summary, as structured reports give it: its name, as in the summary line with `_` for spaces, and its value.
pub type Figure = (&'static str, u64);

/// Everything that one check says.
#[derive(Debug, Clone, Default)]
pub struct Report {
    /// What leaked: direct ones first, each of the two by bytes, the most first, then by first allocation.
    pub groups: Vec<Group>,
    /// What `uname -r` prints in the guest.
    pub release: String,
    /// The summary's figures.
    pub figures: Vec<Figure>,
    /// The summary line, and all lines after it that were asked for: the audit, notes, paths of references.
    pub closing: String,
}

/// The kernel's `crc32(0, ...)`, continued over several runs of bytes: CRC-32 without the inversions
/// before and after.
#[derive(Default)]
pub struct Checksum(u32);

impl Checksum {
    /// Adds bytes.
    pub fn add(&mut self, bytes: &[u8]) {
        // The crate's value is inverted on the way in and out, the kernel's is not.
        let mut h = crc32fast::Hasher::new_with_initial(!self.0);
        h.update(bytes);
        self.0 = !h.finalize();
    }

    /// The checksum of what was added.
    pub fn value(&self) -> u32 {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Bit by bit, as lib/crc32.c defines it.
    fn crc32_le(mut crc: u32, bytes: &[u8]) -> u32 {
        for b in bytes {
            crc ^= u32::from(*b);
            for _ in 0..8 {
                crc = (crc >> 1) ^ (0xedb8_8320 * (crc & 1));
            }
        }
        crc
    }

    #[test]
    fn checksum_is_the_kernels() {
        let mut c = Checksum::default();
        c.add(b"0123");
        c.add(b"456789");
        assert_eq!(c.value(), crc32_le(0, b"0123456789"));
        assert_eq!(Checksum::default().value(), 0);
    }
}
