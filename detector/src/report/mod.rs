//! What a check has found, ready to be written: groups of leaks with equal stacks, and the forms they are written in.
//!
//! - here: the model, and kmemleak's checksum
//! - [`text`]: kmemleak's own words
//! - [`json`]: lines of JSON, and their schema

pub mod json;
pub mod text;

use crate::guest_tests::Test;
use crate::objects::Kind;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;
use std::str::FromStr;

/// A form that reports are written in.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Format {
    /// kmemleak's own words.
    #[default]
    Text,
    /// As [`Format::Text`], with the line before each object that parsers of kernel consoles (syzkaller's) start at.
    Console,
    /// Lines of JSON: see [`json`].
    JsonLines,
}

impl Format {
    /// The form of a file of that name.
    pub fn of(path: &Path) -> Format {
        match path.extension().and_then(|e| e.to_str()) {
            Some("jsonl") => Format::JsonLines,
            _ => Format::Text,
        }
    }

    /// A report in this form. With `each`, text has every object by itself and not only one of each group; JSON always has
    /// all of them.
    pub fn write(self, report: &Report, each: bool) -> String {
        let headline = if self == Format::Console { text::CONSOLE } else { "" };
        match self {
            Format::JsonLines => json::write(report),
            Format::Text | Format::Console if each => text::each(report, headline),
            Format::Text | Format::Console => text::groups(report, headline),
        }
    }
}

impl FromStr for Format {
    type Err = &'static str;

    fn from_str(name: &str) -> Result<Format, &'static str> {
        match name {
            "text" => Ok(Format::Text),
            "console" => Ok(Format::Console),
            "jsonl" => Ok(Format::JsonLines),
            _ => Err("neither text, jsonl nor console"),
        }
    }
}

/// One place in the source.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    /// The function, an inlined one too.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub function: Option<String>,
    /// The file as its debugging information names it, relative to where it was built.
    pub file: String,
    /// The line, counted from 1; 0 if it is not known.
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

/// One frame of an allocation's stack.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Frame {
    /// Virtual address: the start of the allocator, else a return address. 0 if the allocation was not seen.
    #[serde(with = "json::hex")]
    pub address: u64,
    /// The function it lies in; `None` where nothing is known of it.
    #[serde(flatten)]
    pub function: Option<Function>,
    /// Where in the source, innermost inlined function first; empty without debugging information.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub places: Vec<Place>,
}

/// A function as kallsyms names it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Function {
    /// Its name; empty where no symbol tells.
    #[serde(rename = "function")]
    pub name: String,
    /// The frame's place in it, in bytes.
    pub offset: u64,
    /// Its size in bytes, up to the next symbol.
    pub size: u64,
    /// The module it is in, or `bpf`; `None` for the kernel's image.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub module: Option<String>,
}

impl Frame {
    /// Its names, those of inlined functions and of source files too.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        let function = self.function.iter().flat_map(|f| f.module.as_deref().into_iter().chain([f.name.as_str()]));
        function.chain(self.places.iter().flat_map(|p| p.function.as_deref().into_iter().chain([p.file.as_str()])))
    }

    /// Writes it with a place in the source, where scripts/decode_stacktrace.sh and syzkaller have that: before the module.
    fn write(&self, f: &mut impl fmt::Write, place: Option<&Place>) -> fmt::Result {
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
    #[serde(rename = "address", with = "json::hex")]
    pub addr: u64,
    /// Size in bytes as kmemleak knows it: the cache's object size, or what was requested.
    pub size: u64,
    /// What it is made of.
    pub kind: Kind,
    /// Its slab cache.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cache: Option<String>,
    /// The type it seems to be of: `struct NAME`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
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
    #[serde(rename = "age_ms")]
    pub age: u64,
    /// The first bytes of the object; at least 32 where it has as many.
    #[serde(with = "json::bytes")]
    pub head: Vec<u8>,
    /// The CPU whose copy of a per-CPU object is shown.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shown_cpu: Option<u32>,
    /// [`Checksum`] of its contents.
    #[serde(with = "json::hex")]
    pub crc: u32,
    /// What hangs from a direct leak: indirect leaks, each counted for one direct leak, and their bytes. 0 for indirect
    /// leaks.
    #[serde(with = "json::counts")]
    pub retains: (u64, u64),
}

/// Leaks with equal stacks, of one test, and either all direct or all indirect.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Group {
    /// Whether nothing refers to them; else only other leaks do.
    pub direct: bool,
    /// The test in which they were allocated, if tests have names.
    pub test: Option<String>,
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

    /// The greatest and the least age of its leaks, in milliseconds.
    pub fn ages(&self) -> (u64, u64) {
        let ages = || self.leaks.iter().map(|l| l.age);
        (ages().max().unwrap_or(0), ages().min().unwrap_or(0))
    }

    /// Objects and bytes that hang from its leaks.
    pub fn retains(&self) -> (u64, u64) {
        self.leaks.iter().fold((0, 0), |(n, b), l| (n + l.retains.0, b + l.retains.1))
    }
}

/// The summary's figures: their names, as in the summary line with `_` for spaces, and their values.
pub type Figures = BTreeMap<String, u64>;

/// A suppression, and what it left out of a report.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Suppressed {
    /// The pattern after `leak:`.
    pub template: String,
    /// The file that it stands in.
    pub file: String,
    /// The line there, counted from 1.
    pub line: usize,
    /// Objects left out, without those that hang from them.
    pub objects: u64,
    /// Their bytes.
    pub bytes: u64,
}

/// Everything that one check says.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Report {
    /// What leaked: direct ones first, each of the two by bytes with what hangs from them, the most first, then by first
    /// allocation.
    pub groups: Vec<Group>,
    /// The test at whose end, or within which, the check was made.
    pub test: Option<String>,
    /// Tests that are over, since the report before.
    pub tests: Vec<Test>,
    /// What `uname -r` prints in the guest.
    pub release: String,
    /// The summary's figures.
    pub figures: Figures,
    /// Why it is not to be trusted; empty if it is.
    pub troubles: Vec<String>,
    /// Suppressions that were used.
    pub suppressed: Vec<Suppressed>,
    /// Suppressions that no check used so far; only the last report tells.
    pub unused: Vec<Suppressed>,
    /// The summary line, and all lines after it that there are or that were asked for: troubles, suppressions, the audit, notes, paths of references.
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

    #[test]
    fn formats_go_by_the_ending() {
        let formats = ["r.jsonl", "r.txt", "r", "/a.jsonl/r.log"].map(|p| Format::of(Path::new(p)));
        assert_eq!(formats, [Format::JsonLines, Format::Text, Format::Text, Format::Text]);
    }

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
