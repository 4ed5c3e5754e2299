//! The data model of a report: groups of leaks, their frames, and kmemleak's checksum.

use super::encoding;
use crate::count::Count;
use crate::guest_tests::Test;
use crate::live::objects::Kind;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;

/// A source location.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    /// The function, which may be inlined.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub function: Option<String>,
    /// The file as the debugging information names it, relative to the build directory.
    pub file: String,
    /// The line, counted from 1. 0 if the line is unknown.
    pub line: u32,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            0 => f.write_str(&self.file),
            line => write!(f, "{}:{line}", self.file),
        }
    }
}

/// One frame of an allocation stack.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Frame {
    /// Virtual address: the allocator's first instruction, or a return address. 0 if the allocation
    /// was not seen.
    #[serde(with = "encoding::hex")]
    pub address: u64,
    /// The function that contains the address, if it is known.
    #[serde(flatten)]
    pub function: Option<Function>,
    /// Source locations, innermost inlined function first. Empty without debugging information.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub places: Vec<Place>,
}

/// A function as kallsyms names it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Function {
    /// The name. Empty if no symbol covers the address.
    #[serde(rename = "function")]
    pub name: String,
    /// The frame's offset in the function, in bytes.
    pub offset: u64,
    /// The distance to the next symbol, in bytes.
    pub size: u64,
    /// The module, or `bpf`. `None` for the kernel image.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub module: Option<String>,
}

impl Frame {
    /// All names of the frame: module, function, inlined functions and source files.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        let function = self.function.iter().flat_map(|f| f.module.as_deref().into_iter().chain([f.name.as_str()]));
        function.chain(self.places.iter().flat_map(|p| p.function.as_deref().into_iter().chain([p.file.as_str()])))
    }

    /// Writes the frame with a source location. The location stands before the module, as in the
    /// output of scripts/decode_stacktrace.sh and syzkaller.
    pub(super) fn write(&self, f: &mut impl fmt::Write, place: Option<&Place>) -> fmt::Result {
        match &self.function {
            _ if self.address == 0 => f.write_str("(allocation not seen)")?,
            Some(Function { name, offset, size, .. }) if !name.is_empty() => write!(f, "{name}+{offset:#x}/{size:#x}")?,
            _ => write!(f, "{:#x}", self.address)?,
        }
        if let Some(place) = place {
            write!(f, " {place}")?;
        }
        match self.function.as_ref().and_then(|function| function.module.as_ref()) {
            Some(module) => write!(f, " [{module}]"),
            None => Ok(()),
        }
    }
}

impl fmt::Display for Frame {
    /// As `%pS` prints it (lib/vsprintf.c).
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.write(f, None)
    }
}

/// One unreferenced object.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Leak {
    /// Virtual address, or `__percpu` pointer.
    #[serde(rename = "address", with = "encoding::hex")]
    pub addr: u64,
    /// Size in bytes, as kmemleak counts it: the object size of the cache, or the requested size.
    pub size: u64,
    /// The allocator that the object comes from.
    pub kind: Kind,
    /// The slab cache.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cache: Option<String>,
    /// The likely type: `struct NAME`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub guess: Option<String>,
    /// The comm of the allocating task, or `hardirq` or `softirq`.
    pub comm: String,
    /// The pid of the allocating thread. 0 in interrupts.
    pub pid: u32,
    /// The pid of the allocating process. 0 in interrupts.
    pub tgid: u32,
    /// The CPU of the allocation.
    pub cpu: u32,
    /// Jiffies at allocation.
    pub jiffies: u64,
    /// The age in milliseconds of the host's clock.
    #[serde(rename = "age_ms")]
    pub age: u64,
    /// The first bytes of the object: at least 32, or all if it is smaller.
    #[serde(with = "encoding::bytes")]
    pub head: Vec<u8>,
    /// The CPU whose copy of a per-CPU object is shown.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shown_cpu: Option<u32>,
    /// The [`Checksum`] of the contents.
    #[serde(with = "encoding::hex")]
    pub crc: u32,
    /// The indirect leaks that are reachable from a direct leak. Each counts for one direct leak. 0
    /// for indirect leaks.
    pub retains: Count,
    /// Where it was lost, with `history=on`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub loss: Option<Box<Loss>>,
}

/// How an object was lost.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum How {
    /// The last reference was overwritten.
    Overwritten,
    /// The object with the last reference was freed.
    Freed,
    /// The memory with the last reference was allocated again.
    Reused,
    /// It was never stored outside of registers and stacks.
    #[default]
    Frame,
    /// The last reference remains. Nothing refers to the memory that contains it.
    Held,
}

/// The last reference to an object, stacks excluded.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reference {
    /// Where it is, or was.
    pub place: String,
    /// The instruction that stored it.
    pub stored_by: Frame,
}

/// Where an object was lost, by the history of references.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Loss {
    /// How.
    pub how: How,
    /// The frame of the function that lost it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub by: Option<Frame>,
    /// Milliseconds of the host's clock since then. Absent if the moment is not known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub age_ms: Option<u64>,
    /// The stack at that moment, innermost frame first. It is the instruction alone, if other words
    /// still referred to the object.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub stack: Vec<Frame>,
    /// The outermost stack on which the object was held after that.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub held: Vec<Frame>,
    /// The last reference.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reference: Option<Reference>,
}

/// Leaks with equal stacks from one test. All are direct, or all are indirect.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Group {
    /// Whether nothing refers to the leaks. Otherwise only other leaks do.
    pub direct: bool,
    /// The test during which the leaks were allocated, if there is one.
    pub test: Option<String>,
    /// The common stack, innermost frame first. Never empty.
    pub frames: Vec<Frame>,
    /// The leaks in the order of allocation. Never empty.
    pub leaks: Vec<Leak>,
}

impl Group {
    /// The size of all leaks together, in bytes.
    pub fn bytes(&self) -> u64 {
        self.leaks.iter().map(|l| l.size).sum()
    }

    /// The ages of its oldest and its youngest leak.
    pub fn ages(&self) -> Ages {
        let ages = || self.leaks.iter().map(|l| l.age);
        Ages { oldest: ages().max().unwrap_or(0), youngest: ages().min().unwrap_or(0) }
    }

    /// The indirect leaks that are reachable from its leaks.
    pub fn retains(&self) -> Count {
        let mut sum = Count::default();
        self.leaks.iter().for_each(|leak| sum += leak.retains);
        sum
    }
}

/// The range of ages in a [`Group`], in milliseconds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Ages {
    /// The age of the leak that was allocated first.
    pub oldest: u64,
    /// The age of the leak that was allocated last.
    pub youngest: u64,
}

/// The figures of the summary line by name. Names have `_` for spaces.
pub type Figures = BTreeMap<String, u64>;

/// A suppression and the number of leaks that it matched.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Suppressed {
    /// The pattern after `leak:`.
    pub template: String,
    /// The file that contains it.
    pub file: String,
    /// The line in the file, counted from 1.
    pub line: usize,
    /// Suppressed objects, without the indirect leaks that are reachable from them.
    pub objects: u64,
    /// Bytes of the suppressed objects.
    pub bytes: u64,
}

/// The result of one check.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Report {
    /// The leaks. Direct groups come first. Each kind is sorted by bytes in descending order, and
    /// then by first allocation. The bytes include the indirect leaks that the group holds.
    pub groups: Vec<Group>,
    /// The test that ran or ended when the check was made.
    pub test: Option<String>,
    /// Tests that ended since the previous report.
    pub tests: Vec<Test>,
    /// What `uname -r` prints in the guest.
    pub release: String,
    /// The summary's figures.
    pub figures: Figures,
    /// Reasons not to trust the report. Empty if it is trustworthy.
    pub troubles: Vec<String>,
    /// Suppressions that matched.
    pub suppressed: Vec<Suppressed>,
    /// Suppressions that no check has used so far. Only the last report lists them.
    pub unused: Vec<Suppressed>,
    /// The summary line and the lines after it: troubles, suppressions, audit, notes, reference
    /// paths.
    pub closing: String,
}

/// The kernel's `crc32(0, ...)` over several runs of bytes. It is CRC-32 without the inversions
/// before and after.
#[derive(Default)]
pub struct Checksum(u32);

impl Checksum {
    /// Adds bytes.
    pub fn add(&mut self, bytes: &[u8]) {
        // The crate inverts the value at both ends, the kernel does not.
        let mut h = crc32fast::Hasher::new_with_initial(!self.0);
        h.update(bytes);
        self.0 = !h.finalize();
    }

    /// The checksum of all bytes so far.
    pub fn value(&self) -> u32 {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_stand_before_the_module() {
        let function = Function { name: "f".into(), offset: 1, size: 16, module: Some("m".into()) };
        let mut frame = Frame { address: 9, function: Some(function), places: Vec::new() };
        let place = Place { function: Some("f".into()), file: "a/b.c".into(), line: 7 };
        let mut text = String::new();
        frame.write(&mut text, Some(&place)).unwrap();
        assert_eq!((text.as_str(), frame.to_string().as_str()), ("f+0x1/0x10 a/b.c:7 [m]", "f+0x1/0x10 [m]"));
        frame.function = Some(Function { module: Some("m".into()), ..Function::default() });
        assert_eq!(frame.to_string(), "0x9 [m]");
        assert_eq!(Frame::default().to_string(), "(allocation not seen)");
        assert_eq!(Place { line: 0, ..place }.to_string(), "a/b.c");
    }

    /// Bit by bit, as in lib/crc32.c.
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
