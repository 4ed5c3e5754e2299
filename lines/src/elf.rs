//! ELF files: a vmlinux or a module.
//!
//! The addresses of a vmlinux are those that it was linked for. A module is relocatable, and all
//! its sections start at 0. Each loaded section gets an address here, and debugging sections are
//! relocated to it.

use crate::error::{ElfFlaw, LinesError, SectionError, SectionFlaw};
use object::read::elf::{ElfFile64, FileHeader};
use object::read::{ReadCache, RelocationTarget, SectionIndex};
use object::{
    CompressionFormat, LittleEndian, Object, ObjectSection, ObjectSymbol, RelocationKind, SectionFlags, SymbolIndex,
    SymbolKind, elf,
};
use std::collections::HashMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

/// Most bytes of a decompressed section.
const MAX_SECTION: u64 = 4 << 30;
/// The address of a module's first section. Addresses near 0 mean discarded code in DWARF.
const FIRST_BASE: u64 = 1 << 32;

type Parsed<'a> = ElfFile64<'a, LittleEndian, &'a ReadCache<File>>;

/// A file with debugging information.
pub struct Elf {
    file: File,
    cache: ReadCache<File>,
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
    /// `Missing`, `Unreadable`, `NoElf` or `NoDwarf`.
    pub fn open(path: &Path) -> Result<Elf, LinesError> {
        let io = |why: std::io::Error| match why.kind() {
            std::io::ErrorKind::NotFound => LinesError::Missing { path: path.to_owned() },
            _ => LinesError::Unreadable { path: path.to_owned(), why },
        };
        // Reading a pipe might never return.
        if !std::fs::metadata(path).map_err(io)?.is_file() {
            return Err(io(std::io::Error::other("it is no regular file")));
        }
        let file = File::open(path).map_err(io)?;
        let cache = ReadCache::new(file.try_clone().map_err(io)?);
        let mut elf = Elf { file, cache, relocatable: false };
        let no_elf = |why: ElfFlaw| LinesError::NoElf { path: path.to_owned(), why };
        let (machine, kind, has_dwarf) = {
            let parsed = elf.parse().map_err(|why| no_elf(why.into()))?;
            let header = parsed.elf_header();
            let has = |name| parsed.section_by_name(name).is_some_and(|s| s.size() > 0 && s.file_range().is_some());
            let machine = header.e_machine(LittleEndian);
            (machine, header.e_type(LittleEndian), has(".debug_info") && has(".debug_line"))
        };
        if machine != elf::EM_X86_64 {
            return Err(no_elf(ElfFlaw::Machine(machine)));
        }
        if !has_dwarf {
            return Err(LinesError::NoDwarf { path: path.to_owned() });
        }
        elf.relocatable = kind == elf::ET_REL;
        Ok(elf)
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

    /// A section, decompressed and relocated. Empty if there is no section of this name.
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
        let len = self.file.metadata()?.len();
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
            (is_code_or_data && bases.contains_key(&section)).then_some(Symbol { section, value: s.address(), name })
        });
        let mut symbols: Vec<Symbol<'_>> = named.collect();
        symbols.sort_unstable();
        for &Symbol { section, value, name } in &symbols {
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

    /// The build ID.
    pub fn build_id(&self) -> Option<Vec<u8>> {
        Some(self.parse().ok()?.build_id().ok()??.to_vec())
    }

    /// `linux_banner`, if the file contains it.
    pub fn banner(&self) -> Option<String> {
        let parsed = self.parse().ok()?;
        let symbol = parsed.symbols().find(|s| s.name() == Ok("linux_banner"))?;
        let section = parsed.section_by_index(symbol.section_index()?).ok()?;
        let at = symbol.address().checked_sub(section.address())?;
        let bytes = section.data().ok()?.get(usize::try_from(at).ok()?..)?;
        let bytes = bytes.split(|&b| b == 0 || b == b'\n').next()?;
        Some(String::from_utf8_lossy(bytes).into_owned())
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
struct Symbol<'a> {
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
