//! Types from DWARF 4 and 5, as gcc and clang write it, translated into BTF.
//!
//! A kernel's units repeat the same headers thousands of times. `scan` reads the outermost
//! entries of each unit and finds where each name is defined. `convert` reads one definition of
//! each name. `encode` writes the definitions as BTF. The BTF has no typedefs and no qualifiers,
//! and its parameters have no types, because nothing asks for these.
//!
//! `.debug_info` is read unit by unit, unless it is compressed. So memory is only needed for names.
//! The sections are untrusted input. The work is bounded by their length.

mod convert;
mod encode;
mod entry;
mod scan;

use crate::elf::{Elf, SectionError, SectionFlaw, Source};
use std::borrow::Cow;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// The most threads that read units.
const MAX_THREADS: usize = 8;
/// The most units of a file. A kernel has about 5000.
const MAX_UNITS: usize = 1 << 20;
/// The most passes over types in other units. Such a type may refer to a further unit.
const MAX_ROUNDS: usize = 8;

/// Why types cannot be read from DWARF.
#[derive(Debug, thiserror::Error)]
pub enum DwarfError {
    /// The file has no DWARF.
    #[error("it has no debugging information")]
    None,
    /// The DWARF is in other files, due to CONFIG_DEBUG_INFO_SPLIT.
    #[error("its debugging information is in .dwo files (CONFIG_DEBUG_INFO_SPLIT), which libleak does not read")]
    Split,
    /// A section cannot be read.
    #[error(transparent)]
    Section(#[from] SectionError),
    /// A unit is malformed. The first field is its offset in `.debug_info`, in bytes.
    #[error("its debugging information cannot be understood: {1}, in the unit at {0:#x}")]
    Unit(u64, gimli::Error),
}

/// The section `.debug_info`.
#[derive(Clone, Copy)]
pub enum Info<'a> {
    /// It is in memory.
    Memory(&'a [u8]),
    /// It is in a file. The numbers are offset and size in bytes.
    File(&'a Source, u64, u64),
}

/// The sections that describe types. Missing sections are empty.
#[derive(Clone, Copy)]
pub struct Sections<'a> {
    /// `.debug_info`.
    pub info: Info<'a>,
    /// `.debug_abbrev`.
    pub abbrev: &'a [u8],
    /// `.debug_str`.
    pub strings: &'a [u8],
    /// `.debug_line_str`.
    pub line_strings: &'a [u8],
    /// `.debug_str_offsets`.
    pub string_offsets: &'a [u8],
}

impl<'a> Info<'a> {
    fn len(&self) -> u64 {
        match self {
            Info::Memory(bytes) => bytes.len() as u64,
            Info::File(_, _, len) => *len,
        }
    }

    /// A range of the section. `buffer` takes the bytes if they are in a file.
    fn bytes<'b>(&self, range: Range<u64>, buffer: &'b mut Vec<u8>) -> Result<&'b [u8], DwarfError>
    where
        'a: 'b,
    {
        let len = range.end.checked_sub(range.start).filter(|_| range.end <= self.len());
        let len = len.and_then(|len| usize::try_from(len).ok()).ok_or_else(|| bad(SectionFlaw::UnitOutside))?;
        match *self {
            Info::Memory(bytes) => Ok(&bytes[range.start as usize..][..len]),
            Info::File(file, offset, _) => {
                buffer.resize(len, 0);
                file.read_exact_at(buffer, offset + range.start).map_err(|why| bad(why.into()))?;
                Ok(buffer)
            }
        }
    }
}

fn bad(why: SectionFlaw) -> DwarfError {
    SectionError { name: ".debug_info".to_owned(), why }.into()
}

/// The types and prototypes in a file's debugging information, as a BTF blob.
///
/// # Errors
/// [`DwarfError`].
pub fn read(elf: &Elf) -> Result<Vec<u8>, DwarfError> {
    if !elf.has_section(".debug_info") {
        return Err(DwarfError::None);
    }
    let section = |name: &str| elf.section(name);
    let unpacked: Arc<[u8]>;
    let info = match elf.plain_section(".debug_info") {
        Some((offset, len)) => Info::File(elf.file(), offset, len),
        None => {
            unpacked = section(".debug_info")?;
            Info::Memory(&unpacked)
        }
    };
    let (abbrev, strings) = (section(".debug_abbrev")?, section(".debug_str")?);
    let (line_strings, string_offsets) = (section(".debug_line_str")?, section(".debug_str_offsets")?);
    let sections = Sections {
        info,
        abbrev: &abbrev,
        strings: &strings,
        line_strings: &line_strings,
        string_offsets: &string_offsets,
    };
    translate(&sections)
}

/// Like [`read`], for sections.
///
/// # Errors
/// [`DwarfError`].
pub fn translate(sections: &Sections<'_>) -> Result<Vec<u8>, DwarfError> {
    let units = units(&sections.info)?;
    let found = in_parallel(&units, |unit, out: &mut scan::Found| {
        let mut buffer = std::mem::take(&mut out.buffer);
        let bytes = sections.info.bytes(unit.clone(), &mut buffer);
        let done = bytes.and_then(|bytes| scan::unit(sections, unit.start, bytes, out));
        out.buffer = buffer;
        done
    })?;
    let mut wanted = scan::merge(found, sections);
    let mut parts: Vec<convert::Converted<'_>> = Vec::new();
    // A member takes more than a byte. The members of an anonymous struct are read again wherever
    // the struct is used.
    let most = AtomicU64::new(sections.info.len());
    for _ in 0..MAX_ROUNDS {
        if wanted.is_empty() {
            break;
        }
        let tasks = by_unit(&units, wanted);
        let done = in_parallel(&tasks, |(unit, wanted), out: &mut convert::Converted<'_>| {
            let mut buffer = std::mem::take(&mut out.buffer);
            let bytes = sections.info.bytes(unit.clone(), &mut buffer);
            let done = bytes.and_then(|bytes| convert::unit(sections, unit.start, bytes, wanted, &most, out));
            out.buffer = buffer;
            done
        })?;
        parts.extend(done);
        wanted = convert::foreign(&mut parts);
    }
    Ok(encode::blob(parts))
}

/// An entry to read: its offset in `.debug_info`, and its kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Wanted {
    at: u64,
    what: What,
}

/// The kind of an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum What {
    Struct,
    Union,
    Enum,
    Function,
    /// A type that another unit refers to.
    Foreign,
}

/// A name, from `.debug_str` or from a unit.
type Name<'a> = Cow<'a, [u8]>;

/// The ranges of the units in `.debug_info`.
fn units(info: &Info<'_>) -> Result<Vec<Range<u64>>, DwarfError> {
    let (mut units, mut buffer, mut at) = (Vec::new(), Vec::new(), 0u64);
    while at < info.len() && units.len() < MAX_UNITS {
        let head = info.bytes(at..info.len().min(at + 12), &mut buffer)?;
        let word = |i: usize, n: usize| {
            let mut word = [0; 8];
            head.get(i..i + n).map(|bytes| {
                word[..n].copy_from_slice(bytes);
                u64::from_le_bytes(word)
            })
        };
        // In the 64-bit format 0xffffffff precedes the length (DWARF 5, section 7.4).
        let end = match word(0, 4) {
            Some(0xffff_ffff) => word(4, 8).and_then(|len| at.checked_add(12)?.checked_add(len)),
            Some(len) => at.checked_add(4 + len),
            None => None,
        };
        let end = end.filter(|end| *end <= info.len()).ok_or_else(|| bad(SectionFlaw::UnitOutside))?;
        units.push(at..end);
        at = end;
    }
    Ok(units)
}

/// The wanted entries of each unit.
fn by_unit(units: &[Range<u64>], mut wanted: Vec<Wanted>) -> Vec<(Range<u64>, Vec<Wanted>)> {
    wanted.sort_unstable();
    wanted.dedup();
    let mut tasks: Vec<(Range<u64>, Vec<Wanted>)> = Vec::new();
    for one in wanted {
        let Some(unit) = units.get(units.partition_point(|unit| unit.end <= one.at)) else { continue };
        match tasks.last_mut().filter(|(last, _)| last == unit) {
            Some((_, wanted)) => wanted.push(one),
            None => tasks.push((unit.clone(), vec![one])),
        }
    }
    tasks
}

/// Calls `each` for every task, on several threads. Each thread has its own output.
fn in_parallel<T: Sync, O: Default + Send>(
    tasks: &[T],
    each: impl Fn(&T, &mut O) -> Result<(), DwarfError> + Sync,
) -> Result<Vec<O>, DwarfError> {
    let next = AtomicUsize::new(0);
    let failed = Mutex::new(None);
    let work = || {
        let mut out = O::default();
        while let Some(task) = tasks.get(next.fetch_add(1, Ordering::Relaxed)) {
            if let Err(why) = each(task, &mut out) {
                next.store(tasks.len(), Ordering::Relaxed);
                *failed.lock().unwrap_or_else(PoisonError::into_inner) = Some(why);
            }
        }
        out
    };
    let threads = std::thread::available_parallelism().map_or(1, |n| n.get().min(MAX_THREADS)).min(tasks.len() / 8 + 1);
    let outs = std::thread::scope(|scope| {
        // If no thread can be started, this one does all the work.
        let start = || std::thread::Builder::new().name("types".to_owned()).spawn_scoped(scope, work).ok();
        let others: Vec<_> = (1..threads).filter_map(|_| start()).collect();
        let mut outs = vec![work()];
        for other in others {
            match other.join() {
                Ok(out) => outs.push(out),
                Err(panic) => std::panic::resume_unwind(panic),
            }
        }
        outs
    });
    match failed.into_inner().unwrap_or_else(PoisonError::into_inner) {
        Some(why) => Err(why),
        None => Ok(outs),
    }
}

#[cfg(test)]
mod tests;
