//! ELF files: a vmlinux, whose addresses are those that it was linked to, and modules, which are relocatable: all of their
//! sections start at 0, so each one with code or data gets an address here, and the debugging sections are relocated with it.

use crate::LinesError;
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

/// Decompressed sections larger than this are not believed.
const MAX_SECTION: u64 = 4 << 30;
/// Where the first section of a module lies; nowhere near 0, which DWARF takes for what the linker threw away.
const FIRST_BASE: u64 = 1 << 32;

type Parsed<'a> = ElfFile64<'a, LittleEndian, &'a ReadCache<File>>;

/// A file with debugging information.
pub struct Elf {
    file: File,
    cache: ReadCache<File>,
    relocatable: bool,
}

/// Where the code is that a kernel names by symbols.
pub struct Functions {
    /// Address of the section `.text`.
    pub text: Option<u64>,
    /// Of a module, all symbols by name.
    by_name: HashMap<String, Vec<Function>>,
}

#[derive(Clone, Copy)]
struct Function {
    start: u64,
    /// Bytes to the next symbol, or to the section's end.
    room: u64,
    /// The end is the section's; what comes after it only the kernel knows.
    is_last: bool,
}

impl Elf {
    /// Opens the file and looks at its headers.
    ///
    /// # Errors
    /// `Missing`, `Unreadable`, `NoElf` or `NoDwarf`.
    pub fn open(path: &Path) -> Result<Elf, LinesError> {
        let io = |why: std::io::Error| match why.kind() {
            std::io::ErrorKind::NotFound => LinesError::Missing { path: path.to_owned() },
            _ => LinesError::Unreadable { path: path.to_owned(), why },
        };
        // A pipe has no end, or nobody at the other.
        if !std::fs::metadata(path).map_err(io)?.is_file() {
            return Err(io(std::io::Error::other("it is no regular file")));
        }
        let file = File::open(path).map_err(io)?;
        let cache = ReadCache::new(file.try_clone().map_err(io)?);
        let mut elf = Elf { file, cache, relocatable: false };
        let no_elf = |why: String| LinesError::NoElf { path: path.to_owned(), why };
        let (machine, kind, has_dwarf) = {
            let parsed = elf.parse().map_err(|why| no_elf(why.to_string()))?;
            let header = parsed.elf_header();
            let has = |name| parsed.section_by_name(name).is_some_and(|s| s.size() > 0 && s.file_range().is_some());
            let machine = header.e_machine(LittleEndian);
            (machine, header.e_type(LittleEndian), has(".debug_info") && has(".debug_line"))
        };
        if machine != elf::EM_X86_64 {
            return Err(no_elf(format!("it is for machine {machine:?} of ELF's list")));
        }
        if !has_dwarf {
            return Err(LinesError::NoDwarf { path: path.to_owned() });
        }
        elf.relocatable = kind == elf::ET_REL;
        Ok(elf)
    }

    /// Whether it is a module.
    pub fn is_relocatable(&self) -> bool {
        self.relocatable
    }

    /// Headers once more, out of the cache: what borrows from it cannot stay beside it.
    fn parse(&self) -> object::Result<Parsed<'_>> {
        Parsed::parse(&self.cache)
    }

    /// A section, decompressed and relocated; empty if there is none of that name.
    pub fn section(&self, name: &str) -> Result<Arc<[u8]>, String> {
        let read = || -> Result<Arc<[u8]>, String> {
            let parsed = self.parse().map_err(|e| e.to_string())?;
            let Some(section) = parsed.section_by_name(name) else { return Ok(Arc::new([])) };
            let range = section.compressed_file_range().map_err(|e| e.to_string())?;
            let mut data = match range.format {
                CompressionFormat::None => self.bytes(range.offset, range.uncompressed_size)?,
                _ if range.uncompressed_size > MAX_SECTION => {
                    return Err(format!("{} bytes when decompressed", range.uncompressed_size));
                }
                _ => {
                    let data = section.compressed_data().and_then(|c| c.decompress()).map_err(|e| e.to_string())?;
                    Arc::from(&*data)
                }
            };
            if self.relocatable {
                let bytes = Arc::get_mut(&mut data).ok_or("it is in use")?;
                relocate(&parsed, &section, bytes)?;
            }
            Ok(data)
        };
        read().map_err(|why| format!("section {name}: {why}"))
    }

    fn bytes(&self, offset: u64, size: u64) -> Result<Arc<[u8]>, String> {
        let len = self.file.metadata().map_err(|e| e.to_string())?.len();
        if offset.checked_add(size).is_none_or(|end| end > len) {
            return Err("it ends after the file".to_owned());
        }
        // Sections of hundreds of MB: read to where they stay.
        let mut data: Arc<[u8]> = std::iter::repeat_n(0, size as usize).collect();
        let bytes = Arc::get_mut(&mut data).ok_or("it is in use")?;
        self.file.read_exact_at(bytes, offset).map_err(|e| e.to_string())?;
        Ok(data)
    }

    /// The functions, as far as they are asked for by name.
    pub fn functions(&self) -> Functions {
        let mut functions = Functions { text: None, by_name: HashMap::new() };
        let Ok(parsed) = self.parse() else { return functions };
        if !self.relocatable {
            functions.text = parsed.section_by_name(".text").map(|s| s.address());
            return functions;
        }
        let bases = bases(&parsed);
        let named = parsed.symbols().filter_map(|s| {
            // As find_kallsyms_symbol() leaves out (kernel/module/kallsyms.c).
            let name = s.name().ok().filter(|n| !n.is_empty() && !n.starts_with(".L"))?;
            let section = s.section_index()?.0;
            let is_code_or_data = !matches!(s.kind(), SymbolKind::Section | SymbolKind::File);
            (is_code_or_data && bases.contains_key(&section)).then_some((section, s.address(), name))
        });
        let mut symbols: Vec<(usize, u64, &str)> = named.collect();
        symbols.sort_unstable();
        for &(section, value, name) in &symbols {
            let after = symbols.partition_point(|s| (s.0, s.1) <= (section, value));
            let next = symbols.get(after).filter(|s| s.0 == section).map(|s| s.1);
            let (base, size) = bases[&section];
            let end = next.unwrap_or(size.max(value));
            let function = Function { start: base.wrapping_add(value), room: end - value, is_last: next.is_none() };
            functions.by_name.entry(name.to_owned()).or_default().push(function);
        }
        functions
    }

    /// The release of the kernel that a module is built for, where it says so.
    pub fn vermagic(&self) -> Option<String> {
        let parsed = self.parse().ok()?;
        let info = parsed.section_by_name(".modinfo")?.data().ok()?;
        let value = info.split(|&b| b == 0).find_map(|entry| entry.strip_prefix(b"vermagic="))?;
        Some(String::from_utf8_lossy(value.split(|&b| b == b' ').next()?).into_owned())
    }

    /// The build id.
    pub fn build_id(&self) -> Option<Vec<u8>> {
        Some(self.parse().ok()?.build_id().ok()??.to_vec())
    }

    /// `linux_banner`, where the file has its contents.
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
    /// Where the function of that name begins that takes `size` bytes up to the next symbol, as kallsyms counts, or any
    /// of that name if the size is 0; `None` also where several do.
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

/// Address and size of every section that is loaded.
fn bases(parsed: &Parsed<'_>) -> HashMap<usize, (u64, u64)> {
    let mut next = FIRST_BASE;
    let mut bases = HashMap::new();
    for section in parsed.sections() {
        let SectionFlags::Elf { sh_flags, .. } = section.flags() else { continue };
        if sh_flags.0 & elf::SHF_ALLOC.0 != 0 {
            bases.insert(section.index().0, (next, section.size()));
            // A gap after each, so that the end of one is not the start of another.
            next = next.saturating_add(section.size()).saturating_add(2 << 12) & !0xfff;
        }
    }
    bases
}

/// Applies the relocations that x86-64 compilers make in debugging sections (psABI, "Relocation Types").
fn relocate<'a>(parsed: &Parsed<'a>, section: &impl ObjectSection<'a>, data: &mut [u8]) -> Result<(), String> {
    let bases = bases(parsed);
    let base = |section: Option<SectionIndex>| section.and_then(|i| bases.get(&i.0)).map_or(0, |b| b.0);
    let address = |index: SymbolIndex| -> Result<u64, String> {
        let symbol = parsed.symbol_by_index(index).map_err(|e| e.to_string())?;
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
            _ => return Err(format!("a relocation of unknown type, {:?}", relocation.flags())),
        };
        let len = usize::from(relocation.size() / 8);
        let place = usize::try_from(offset).ok().and_then(|at| data.get_mut(at..at.checked_add(len)?));
        let place = place.filter(|_| len <= 8).ok_or("a relocation outside of it")?;
        place.copy_from_slice(&value.to_le_bytes()[..len]);
    }
    Ok(())
}
