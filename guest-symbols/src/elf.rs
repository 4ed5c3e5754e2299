//! ELF files: a vmlinux or a module.
//!
//! The addresses of a vmlinux are those that it was linked for. A module is relocatable, and all
//! its sections start at 0. Each loaded section gets an address here, and debugging sections are
//! relocated to it.
//!
//! Files are read and not mapped. A build that rewrites a mapped file would end QEMU.

mod error;

pub use error::{ElfError, ElfFlaw, SectionError, SectionFlaw};

use crate::memory::{u32_at, u64_at};
use object::read::elf::{ElfFile64, FileHeader};
use object::read::{ReadCache, RelocationTarget, SectionIndex};
use object::{
    CompressionFormat, LittleEndian, Object, ObjectSection, ObjectSymbol, RelocationKind, SectionFlags, SymbolIndex,
    SymbolKind, elf,
};
use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Cursor, Read, Seek, SeekFrom};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

/// Most bytes of a decompressed section.
const MAX_SECTION: u64 = 4 << 30;
/// The address of a module's first section. Addresses near 0 mean discarded code in DWARF.
const FIRST_BASE: u64 = 1 << 32;
/// `sizeof(Elf64_Sym)`.
const SYMBOL: usize = 24;
/// The most bytes of `linux_banner` that are read. It has about 200.
const MAX_BANNER: u64 = 1024;

type Parsed<'a> = ElfFile64<'a, LittleEndian, &'a ReadCache<Source>>;

/// The bytes of an ELF file.
pub enum Source {
    /// They are read from a file.
    File(File),
    /// They are in memory.
    Memory(Cursor<Arc<[u8]>>),
}

impl Source {
    fn len(&self) -> io::Result<u64> {
        match self {
            Source::File(file) => Ok(file.metadata()?.len()),
            Source::Memory(bytes) => Ok(bytes.get_ref().len() as u64),
        }
    }

    fn again(&self) -> io::Result<Source> {
        Ok(match self {
            Source::File(file) => Source::File(file.try_clone()?),
            Source::Memory(bytes) => Source::Memory(bytes.clone()),
        })
    }

    /// Reads bytes at an offset.
    ///
    /// # Errors
    /// The error of the system. `UnexpectedEof` if the file is shorter.
    pub fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        match self {
            Source::File(file) => file.read_exact_at(buf, offset),
            Source::Memory(bytes) => {
                let start = usize::try_from(offset).unwrap_or(usize::MAX);
                let end = start.saturating_add(buf.len());
                let from = bytes.get_ref().get(start..end).ok_or(io::ErrorKind::UnexpectedEof)?;
                buf.copy_from_slice(from);
                Ok(())
            }
        }
    }
}

impl Read for Source {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        match self {
            Source::File(file) => file.read(buf),
            Source::Memory(bytes) => bytes.read(buf),
        }
    }
}

impl Seek for Source {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        match self {
            Source::File(file) => file.seek(to),
            Source::Memory(bytes) => bytes.seek(to),
        }
    }
}

/// A symbol: its address, the letter that nm shows, and its name.
pub type Symbol = (u64, u8, String);

/// An ELF file.
pub struct Elf {
    file: Source,
    cache: ReadCache<Source>,
    relocatable: bool,
}

/// The functions of a file, for lookup by symbol.
pub struct Functions {
    /// Address of the section `.text`.
    pub text: Option<u64>,
    /// All symbols of a module by name.
    by_name: HashMap<String, Vec<Function>>,
}

#[derive(Clone, Copy)]
struct Function {
    start: u64,
    /// Bytes to the next symbol or to the end of the section.
    room: u64,
    /// Whether the section ends behind it. Only the running kernel knows the next symbol then.
    is_last: bool,
}

impl Elf {
    /// Opens the file and checks its headers.
    ///
    /// # Errors
    /// [`ElfError`].
    pub fn open(path: &Path) -> Result<Elf, ElfError> {
        // Reading a pipe might never return.
        if !std::fs::metadata(path)?.is_file() {
            return Err(io::Error::other("it is no regular file").into());
        }
        Elf::of(Source::File(File::open(path)?))
    }

    /// Like [`Elf::open`], for a file whose contents are in memory.
    ///
    /// # Errors
    /// [`ElfError::NoElf`].
    pub fn of_bytes(bytes: Arc<[u8]>) -> Result<Elf, ElfError> {
        Elf::of(Source::Memory(Cursor::new(bytes)))
    }

    fn of(file: Source) -> Result<Elf, ElfError> {
        let cache = ReadCache::new(file.again()?);
        let mut elf = Elf { file, cache, relocatable: false };
        let (machine, kind) = {
            let parsed = elf.parse().map_err(|why| ElfError::NoElf(why.into()))?;
            let header = parsed.elf_header();
            (header.e_machine(LittleEndian), header.e_type(LittleEndian))
        };
        if machine != elf::EM_X86_64 {
            return Err(ElfError::NoElf(ElfFlaw::Machine(machine)));
        }
        elf.relocatable = kind == elf::ET_REL;
        Ok(elf)
    }

    /// Whether the file has a section of that name, with contents.
    pub fn has_section(&self, name: &str) -> bool {
        let has =
            |parsed: Parsed<'_>| parsed.section_by_name(name).is_some_and(|s| s.size() > 0 && s.file_range().is_some());
        self.parse().is_ok_and(has)
    }

    /// Whether the file has debugging information with source lines.
    pub fn has_dwarf(&self) -> bool {
        self.has_section(".debug_info") && self.has_section(".debug_line")
    }

    /// Whether the file is relocatable, as modules are.
    pub fn is_relocatable(&self) -> bool {
        self.relocatable
    }

    /// Parses the headers again, from the cache. The result borrows from the cache, so it is not
    /// stored.
    fn parse(&self) -> object::Result<Parsed<'_>> {
        Parsed::parse(&self.cache)
    }

    /// The place of a section in the file: offset and size in bytes. `None` if the section has to
    /// be decompressed or relocated.
    pub fn plain_section(&self, name: &str) -> Option<(u64, u64)> {
        if self.relocatable {
            return None;
        }
        let parsed = self.parse().ok()?;
        let range = parsed.section_by_name(name)?.compressed_file_range().ok()?;
        let len = self.file.len().ok()?;
        let fits = range.offset.checked_add(range.uncompressed_size).is_some_and(|end| end <= len);
        (range.format == CompressionFormat::None && fits).then_some((range.offset, range.uncompressed_size))
    }

    /// The file itself.
    pub fn file(&self) -> &Source {
        &self.file
    }

    /// A section, decompressed and relocated. Empty if there is no section of this name.
    ///
    /// # Errors
    /// [`SectionError`].
    pub fn section(&self, name: &str) -> Result<Arc<[u8]>, SectionError> {
        let read = || -> Result<Arc<[u8]>, SectionFlaw> {
            let parsed = self.parse()?;
            let Some(section) = parsed.section_by_name(name) else { return Ok(Arc::new([])) };
            let range = section.compressed_file_range()?;
            let mut data = match range.format {
                CompressionFormat::None => self.bytes(range.offset, range.uncompressed_size)?,
                _ if range.uncompressed_size > MAX_SECTION => {
                    return Err(SectionFlaw::TooLarge(range.uncompressed_size));
                }
                _ => {
                    let data = section.compressed_data().and_then(|c| c.decompress())?;
                    Arc::from(&*data)
                }
            };
            if self.relocatable {
                relocate(&parsed, &section, Arc::make_mut(&mut data))?;
            }
            Ok(data)
        };
        read().map_err(|why| SectionError { name: name.to_owned(), why })
    }

    fn bytes(&self, offset: u64, size: u64) -> Result<Arc<[u8]>, SectionFlaw> {
        let len = self.file.len()?;
        if offset.checked_add(size).is_none_or(|end| end > len) {
            return Err(SectionFlaw::BeyondFile);
        }
        // Sections may have hundreds of MB, so they are read to their final place.
        let mut data: Arc<[u8]> = std::iter::repeat_n(0, size as usize).collect();
        self.file.read_exact_at(Arc::make_mut(&mut data), offset)?;
        Ok(data)
    }

    /// The functions of the file.
    pub fn functions(&self) -> Functions {
        let mut functions = Functions { text: None, by_name: HashMap::new() };
        let Ok(parsed) = self.parse() else { return functions };
        if !self.relocatable {
            functions.text = parsed.section_by_name(".text").map(|s| s.address());
            return functions;
        }
        let bases = bases(&parsed);
        let named = parsed.symbols().filter_map(|s| {
            // find_kallsyms_symbol() skips the same symbols (kernel/module/kallsyms.c).
            let name = s.name().ok().filter(|n| !n.is_empty() && !n.starts_with(".L"))?;
            let section = s.section_index()?.0;
            let is_code_or_data = !matches!(s.kind(), SymbolKind::Section | SymbolKind::File);
            (is_code_or_data && bases.contains_key(&section)).then_some(ModuleSymbol {
                section,
                value: s.address(),
                name,
            })
        });
        let mut symbols: Vec<ModuleSymbol<'_>> = named.collect();
        symbols.sort_unstable();
        for &ModuleSymbol { section, value, name } in &symbols {
            let after = symbols.partition_point(|s| (s.section, s.value) <= (section, value));
            let next = symbols.get(after).filter(|s| s.section == section).map(|s| s.value);
            let Loaded { address: base, size } = bases[&section];
            let end = next.unwrap_or(size.max(value));
            let function = Function { start: base.wrapping_add(value), room: end - value, is_last: next.is_none() };
            functions.by_name.entry(name.to_owned()).or_default().push(function);
        }
        functions
    }

    /// The kernel release that a module was built for, if the file names it.
    pub fn vermagic(&self) -> Option<String> {
        let parsed = self.parse().ok()?;
        let info = parsed.section_by_name(".modinfo")?.data().ok()?;
        let value = info.split(|&b| b == 0).find_map(|entry| entry.strip_prefix(b"vermagic="))?;
        Some(String::from_utf8_lossy(value.split(|&b| b == b' ').next()?).into_owned())
    }

    /// The build ID: the description of the note NT_GNU_BUILD_ID.
    pub fn build_id(&self) -> Option<Vec<u8>> {
        Some(self.parse().ok()?.build_id().ok()??.to_vec())
    }

    /// `linux_banner`, if the file contains it.
    pub fn banner(&self) -> Option<String> {
        self.banner_at(self.symbols().ok()?.iter().find(|(.., name)| name == "linux_banner")?.0)
    }

    /// `linux_banner` at an address, without its line feed.
    pub fn banner_at(&self, at: u64) -> Option<String> {
        let parsed = self.parse().ok()?;
        let section = parsed.sections().find(|s| at.checked_sub(s.address()).is_some_and(|at| at < s.size()))?;
        let len = MAX_BANNER.min(section.size() - (at - section.address()));
        // A section without content in the file has no data.
        let bytes = section.data_range(at, len).ok()??;
        Some(String::from_utf8_lossy(&bytes[..memchr::memchr2(b'\n', 0, bytes)?]).into_owned())
    }

    /// The defined symbols, without those of sections and files.
    ///
    /// # Errors
    /// [`SectionError`], if a table cannot be read.
    pub fn symbols(&self) -> Result<Vec<Symbol>, SectionError> {
        // Each table is read at once. Single symbols would need a read of the file each.
        let (table, names) = (self.section(".symtab")?, self.section(".strtab")?);
        let mut symbols = Vec::with_capacity(table.len() / SYMBOL);
        for entry in table.chunks_exact(SYMBOL) {
            let (name, info, section) = (u32_at(entry, 0), entry[4], u16::from_le_bytes([entry[6], entry[7]]));
            let name = name.and_then(|at| names.get(at as usize..)).and_then(|n| Some(&n[..memchr::memchr(0, n)?]));
            let Some(name) = name.and_then(|n| std::str::from_utf8(n).ok()).filter(|n| !n.is_empty()) else { continue };
            if section == elf::SHN_UNDEF.0 || [elf::STT_SECTION.0, elf::STT_FILE.0].contains(&(info & 0xf)) {
                continue;
            }
            let kind = if [elf::STT_FUNC.0, elf::STT_GNU_IFUNC.0].contains(&(info & 0xf)) { b't' } else { b'd' };
            let kind = if info >> 4 == elf::STB_LOCAL.0 { kind } else { kind.to_ascii_uppercase() };
            symbols.push((u64_at(entry, 8).unwrap_or(0), kind, name.to_owned()));
        }
        Ok(symbols)
    }
}

impl Functions {
    /// The start of the function `name` whose distance to the next symbol is `size` bytes, as
    /// kallsyms counts. With a size of 0, any function of this name. `None` if several match.
    pub fn find(&self, name: &str, size: u64) -> Option<u64> {
        let fits = |f: &&Function| match (size, f.is_last) {
            (0, _) => true,
            (_, true) => size >= f.room,
            (_, false) => size == f.room,
        };
        let mut fitting = self.by_name.get(name)?.iter().filter(fits).map(|f| f.start);
        let first = fitting.next()?;
        fitting.all(|other| other == first).then_some(first)
    }
}

/// A section that is loaded.
#[derive(Clone, Copy)]
struct Loaded {
    /// The address that it gets here.
    address: u64,
    size: u64,
}

/// A symbol of a module.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct ModuleSymbol<'a> {
    section: usize,
    /// Offset in the section.
    value: u64,
    name: &'a str,
}

/// The loaded sections by index.
fn bases(parsed: &Parsed<'_>) -> HashMap<usize, Loaded> {
    let mut next = FIRST_BASE;
    let mut bases = HashMap::new();
    for section in parsed.sections() {
        let SectionFlags::Elf { sh_flags, .. } = section.flags() else { continue };
        if sh_flags.0 & elf::SHF_ALLOC.0 != 0 {
            bases.insert(section.index().0, Loaded { address: next, size: section.size() });
            // A gap separates sections, so that no end is also a start.
            next = next.saturating_add(section.size()).saturating_add(2 << 12) & !0xfff;
        }
    }
    bases
}

/// Applies the relocations that x86-64 compilers generate for debugging sections (psABI,
/// "Relocation Types").
fn relocate<'a>(parsed: &Parsed<'a>, section: &impl ObjectSection<'a>, data: &mut [u8]) -> Result<(), SectionFlaw> {
    let bases = bases(parsed);
    let base = |section: Option<SectionIndex>| section.and_then(|i| bases.get(&i.0)).map_or(0, |b| b.address);
    let address = |index: SymbolIndex| -> Result<u64, SectionFlaw> {
        let symbol = parsed.symbol_by_index(index)?;
        Ok(base(symbol.section_index()).wrapping_add(symbol.address()))
    };
    for (offset, relocation) in section.relocations() {
        let target = match relocation.target() {
            RelocationTarget::Symbol(index) => address(index)?,
            RelocationTarget::Section(index) => base(Some(index)),
            _ => 0,
        };
        let value = target.wrapping_add_signed(relocation.addend());
        let value = match relocation.kind() {
            RelocationKind::None => continue,
            RelocationKind::Absolute => value,
            RelocationKind::Relative => value.wrapping_sub(offset),
            _ => return Err(SectionFlaw::UnknownRelocation(relocation.flags())),
        };
        let len = usize::from(relocation.size() / 8);
        let place = usize::try_from(offset).ok().and_then(|at| data.get_mut(at..at.checked_add(len)?));
        let place = place.filter(|_| len <= 8).ok_or(SectionFlaw::RelocationOutside(offset))?;
        place.copy_from_slice(&value.to_le_bytes()[..len]);
    }
    Ok(())
}
