//! Symbols from the user's file: a vmlinux ELF, a System.map, or a saved /proc/kallsyms.
//!
//! They are for kernels whose own table is missing or lacks data symbols. A file of another kernel
//! is rejected, because wrong symbols are worse than none.

use crate::btf::Btf;
use crate::elf::{Elf, ElfError, SectionError};
use crate::kallsyms::has_code;
use crate::memory::VirtAddr;
use crate::symbols::{SymbolTable, SymbolTableBuilder, find_release};
use crate::types::{self, dwarf::DwarfError};
use memchr::memmem;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::{fs, io};

/// The slide of text is a multiple of CONFIG_PHYSICAL_ALIGN, which is at least 2 MiB on x86-64.
const SLIDE_ALIGN: u64 = 2 << 20;

/// The largest text in bytes. A System.map has about 10 MiB. Of a vmlinux only parts are read.
const MAX_BYTES: u64 = 1 << 30;

/// Why a symbol file was rejected.
#[derive(Debug, thiserror::Error)]
pub enum SymbolFileError {
    /// The file cannot be read.
    #[error(
        "cannot read symbols={path}: {why}; give the vmlinux, System.map or saved /proc/kallsyms of the guest's kernel"
    )]
    Unreadable {
        /// The path from the user.
        path: PathBuf,
        /// The error of the system.
        why: std::io::Error,
    },
    /// It has none of the three formats.
    #[error(
        "symbols={path} is neither an x86-64 vmlinux with a symbol table, nor a System.map, nor a saved /proc/kallsyms: {why}"
    )]
    Format {
        /// The path from the user.
        path: PathBuf,
        /// What is wrong with it.
        why: FormatFlaw,
    },
    /// Its debugging information gives no types.
    #[error(
        "{path} gives no types: {why}; build the kernel with CONFIG_DEBUG_INFO_BTF=y, or without CONFIG_DEBUG_INFO_SPLIT"
    )]
    Types {
        /// The path of the file.
        path: PathBuf,
        /// What is wrong with it.
        why: DwarfError,
    },
    /// It has the symbols of another kernel.
    #[error(
        "{path} does not fit the running kernel: the file is of {theirs}, the guest runs {ours}; give the file of the guest's own kernel"
    )]
    OtherKernel {
        /// The path from the user.
        path: PathBuf,
        /// Version of the file, and build id if known.
        theirs: String,
        /// Version of the guest, and build id if known.
        ours: String,
    },
}

/// What is wrong with a file that has none of the three formats.
#[derive(Debug, thiserror::Error)]
pub enum FormatFlaw {
    /// It is not an ELF file of an x86-64 kernel.
    #[error(transparent)]
    Elf(#[from] ElfError),
    /// Its symbol table cannot be read.
    #[error(transparent)]
    Section(#[from] SectionError),
    /// It has no symbols.
    #[error("it has no symbol table (stripped)")]
    Stripped,
    /// It is neither an ELF file nor text.
    #[error("it is not text")]
    NotText,
    /// A line of text has no symbol.
    #[error("line {line} is not ADDRESS LETTER NAME: {text:?}")]
    Line {
        /// The line, counted from 1.
        line: usize,
        /// The start of its text.
        text: String,
    },
    /// The kernel has hidden the addresses in /proc/kallsyms.
    #[error("all addresses are 0: read /proc/kallsyms as root, with kernel.kptr_restrict=0")]
    Hidden,
}

/// Symbols read from a file, at the file's addresses.
pub struct SymbolFile {
    path: PathBuf,
    symbols: Vec<(u64, u8, String)>,
    /// The whole `linux_banner` of a vmlinux.
    banner: Option<String>,
    build_id: Option<Vec<u8>>,
    /// Types that came with a map.
    btf: Option<Vec<u8>>,
    /// The vmlinux itself.
    elf: Option<Elf>,
}

/// The bytes of a file. Its size must be known, because a pipe or a device may have no end.
fn bytes(path: &Path) -> io::Result<Vec<u8>> {
    let about = fs::metadata(path)?;
    if !about.is_file() {
        return Err(io::Error::other("it is no regular file"));
    }
    if about.len() > MAX_BYTES {
        return Err(io::Error::other(format!("it has {} bytes, and {MAX_BYTES} are the most", about.len())));
    }
    let mut bytes = Vec::new();
    fs::File::open(path)?.take(MAX_BYTES).read_to_end(&mut bytes)?;
    Ok(bytes)
}

impl SymbolFile {
    /// Reads and parses a file.
    ///
    /// # Errors
    /// [`SymbolFileError::Unreadable`] or [`SymbolFileError::Format`].
    pub fn open(path: &Path) -> Result<SymbolFile, SymbolFileError> {
        let unreadable = |why| SymbolFileError::Unreadable { path: path.into(), why };
        let mut head = [0; 4];
        if fs::metadata(path).is_ok_and(|about| about.is_file())
            && fs::File::open(path).and_then(|mut file| file.read_exact(&mut head)).is_ok()
            && head == *b"\x7fELF"
        {
            return match Elf::open(path) {
                Ok(elf) => SymbolFile::of_elf(path, elf),
                Err(ElfError::Unreadable(why)) => Err(unreadable(why)),
                Err(why) => Err(SymbolFileError::Format { path: path.into(), why: why.into() }),
            };
        }
        SymbolFile::parse(path, &bytes(path).map_err(unreadable)?)
    }

    /// Parses the content of a file, as in [`SymbolFile::open`]. `path` is only for errors.
    ///
    /// # Errors
    /// [`SymbolFileError::Format`].
    pub fn parse(path: &Path, data: &[u8]) -> Result<SymbolFile, SymbolFileError> {
        let format = |why| SymbolFileError::Format { path: path.into(), why };
        if data.starts_with(b"\x7fELF") {
            let elf = Elf::of_bytes(data.into()).map_err(|why| format(why.into()))?;
            return SymbolFile::of_elf(path, elf);
        }
        parse_text(data).map(|file| SymbolFile { path: path.into(), ..file }).map_err(format)
    }

    /// Like [`SymbolFile::open`], for a vmlinux that is already open.
    ///
    /// # Errors
    /// [`SymbolFileError::Format`].
    pub fn of_elf(path: &Path, elf: Elf) -> Result<SymbolFile, SymbolFileError> {
        parse_elf(elf)
            .map(|file| SymbolFile { path: path.into(), ..file })
            .map_err(|why| SymbolFileError::Format { path: path.into(), why })
    }

    /// The types in the file, if it has any.
    ///
    /// # Errors
    /// [`SymbolFileError::Types`].
    pub fn types(&self) -> Result<Option<Btf>, SymbolFileError> {
        if let Some(elf) = &self.elf {
            return types::of_file(elf).map_err(|why| SymbolFileError::Types { path: self.path.clone(), why });
        }
        Ok(self.btf.as_deref().and_then(|blob| Btf::parse(blob).ok()))
    }

    /// Makes a file from the text of a System.map and from the matching types. `path` is only for
    /// errors.
    ///
    /// # Errors
    /// [`SymbolFileError::Format`].
    pub fn from_map(path: &Path, map: &[u8], btf: Option<Vec<u8>>) -> Result<SymbolFile, SymbolFileError> {
        parse_text(map)
            .map(|file| SymbolFile { path: path.into(), btf, ..file })
            .map_err(|why| SymbolFileError::Format { path: path.into(), why })
    }

    /// The file's symbols at the addresses of the running kernel. `image` is the kernel's memory
    /// from `base` on. The kernel runs code at `at`. `own` is the kernel's own table, for
    /// comparison.
    ///
    /// # Errors
    /// [`SymbolFileError::OtherKernel`] if the banner, the build id or a function differs. Only
    /// build ids and functions that both have are compared.
    pub fn for_kernel(
        &self,
        image: &[u8],
        base: u64,
        at: u64,
        release: &str,
        own: Option<&SymbolTable>,
    ) -> Result<SymbolTable, SymbolFileError> {
        let other =
            |theirs: String, ours: String| SymbolFileError::OtherKernel { path: self.path.clone(), theirs, ours };
        let mut table = self.table();
        if let Some(theirs) = &self.banner
            && memmem::find(image, theirs.as_bytes()).is_none()
        {
            return Err(other(self.name_of(theirs), format!("Linux {release}")));
        }
        // The address of the banner gives the slide.
        //
        // There may be a second banner, which init/version.c has without a symbol, and one of an
        // earlier kernel. Their slides are not valid, or leave no code at `at`.
        let unknown = || other("another kernel".to_owned() + &self.hint(), format!("Linux {release}"));
        let theirs = table.lookup("linux_banner").filter(|at| VirtAddr(*at).is_kernel()).ok_or_else(unknown)?;
        let slide = memmem::find_iter(image, b"Linux version ")
            .filter(|&found| find_release(&image[found..]).is_some())
            .map(|found| base.wrapping_add(found as u64).wrapping_sub(theirs))
            .filter(|slide| slide.is_multiple_of(SLIDE_ALIGN))
            .find(|slide| has_code(&table, at.wrapping_sub(*slide)))
            .ok_or_else(unknown)?;
        table.slide(slide);
        // Some symbols would be beyond the end of the address space.
        if !table.is_sorted() {
            return Err(unknown());
        }
        if let Some(id) = &self.build_id
            && let Some(at) = table.lookup("__start_notes")
            && let Some(ours) = image.get(at.wrapping_sub(base) as usize..).and_then(find_build_id)
            && ours != id.as_slice()
        {
            return Err(other(format!("build id {}", hex(id)), format!("Linux {release}, build id {}", hex(ours))));
        }
        if let Some(own) = own {
            let functions = own.iter().filter(|s| matches!(s.kind, b'T'));
            let wrong = functions.filter(|s| table.lookup(s.name).is_some_and(|at| at != s.addr)).count();
            // If several functions share a name, their order may differ. 'T' names are unique
            // except for a few weak ones.
            if wrong > own.len() / 1000 {
                return Err(unknown());
            }
        }
        Ok(table)
    }

    /// The file's symbols at the file's addresses.
    pub fn table(&self) -> SymbolTable {
        let mut table = SymbolTableBuilder::with_capacity(self.symbols.len());
        for (addr, kind, name) in &self.symbols {
            table.push(*addr, *kind, name);
        }
        table.build()
    }

    fn name_of(&self, banner: &str) -> String {
        let release = find_release(banner.as_bytes()).map_or("another kernel".to_owned(), |r| format!("Linux {r}"));
        match &self.build_id {
            Some(id) => format!("{release}, build id {}", hex(id)),
            None => release,
        }
    }

    /// Text for errors: the name of a System.map usually shows its kernel, and its content does
    /// not.
    fn hint(&self) -> String {
        let name = self.path.file_name().unwrap_or_default().to_string_lossy();
        match name.split_once("System.map-") {
            Some((_, release)) => format!(" (by its name Linux {release})"),
            None => String::new(),
        }
    }
}

/// Writes a table as a System.map that [`SymbolFile::from_map`] can read.
pub fn to_map(table: &SymbolTable) -> String {
    // A name with white space could not be read back. Compilers and assemblers make no such names.
    let words = table.iter().filter(|s| !s.name.contains(|c: char| c.is_ascii_whitespace()));
    words.map(|s| format!("{:016x} {} {}\n", s.addr, char::from(s.kind), s.name)).collect()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

/// The descriptor of the first NT_GNU_BUILD_ID note in `notes`.
fn find_build_id(notes: &[u8]) -> Option<&[u8]> {
    // namesz 4, descsz 20, type 3, "GNU\0".
    let head = [4, 0, 0, 0, 20, 0, 0, 0, 3, 0, 0, 0, b'G', b'N', b'U', 0];
    let at = memmem::find(&notes[..notes.len().min(4096)], &head)? + head.len();
    notes.get(at..at + 20)
}

fn parse_elf(elf: Elf) -> Result<SymbolFile, FormatFlaw> {
    let symbols = elf.symbols()?;
    if symbols.is_empty() {
        return Err(FormatFlaw::Stripped);
    }
    let banner = symbols.iter().find(|(.., name)| name == "linux_banner").and_then(|(at, ..)| elf.banner_at(*at));
    let build_id = elf.build_id();
    Ok(SymbolFile { path: PathBuf::new(), symbols, banner, build_id, btf: None, elf: Some(elf) })
}

/// Parses a System.map or /proc/kallsyms: `ADDRESS LETTER NAME`. The latter has `[module]` after
/// module symbols.
fn parse_text(data: &[u8]) -> Result<SymbolFile, FormatFlaw> {
    let text = std::str::from_utf8(data).map_err(|_| FormatFlaw::NotText)?;
    let mut symbols = Vec::new();
    for (i, line) in text.lines().enumerate() {
        let mut words = line.split_ascii_whitespace();
        let parsed = (|| {
            let addr = u64::from_str_radix(words.next()?, 16).ok()?;
            let [kind] = words.next()?.as_bytes() else { return None };
            Some((addr, *kind, words.next()?))
        })();
        let Some((addr, kind, name)) = parsed else {
            return Err(FormatFlaw::Line { line: i + 1, text: line.chars().take(60).collect() });
        };
        if words.next().is_none() {
            symbols.push((addr, kind, name.to_owned()));
        }
    }
    if symbols.iter().all(|(addr, ..)| *addr == 0) {
        return Err(FormatFlaw::Hidden);
    }
    Ok(SymbolFile { path: PathBuf::new(), symbols, banner: None, build_id: None, btf: None, elf: None })
}

#[cfg(test)]
mod tests {
    use super::*;

    const BANNER: &[u8] = b"Linux version 6.1.0-test (gcc) #1";
    const BASE: u64 = 0xffff_ffff_8120_0000;

    fn file(text: &str) -> SymbolFile {
        parse_text(text.as_bytes()).unwrap()
    }

    fn image() -> Vec<u8> {
        let mut image = vec![0; 8192];
        image[4096..4096 + BANNER.len()].copy_from_slice(BANNER);
        image
    }

    #[test]
    fn a_map_of_this_kernel_is_slid() {
        let map = file("ffffffff81000000 T _text\nffffffff81001000 R linux_banner\n0000000000001000 A percpu\n");
        let mut image = image();
        // An old banner precedes the real one.
        image[512..512 + BANNER.len()].copy_from_slice(BANNER);
        let table = map.for_kernel(&image, BASE, BASE, "6.1.0-test", None).unwrap();
        assert_eq!(table.lookup("_text"), Some(BASE));
        assert_eq!(table.lookup("percpu"), Some(0x1000));
    }

    #[test]
    fn a_map_of_another_kernel_is_refused() {
        let map = file("ffffffff81000000 T _text\nffffffff81001040 R linux_banner\n");
        let error = map.for_kernel(&image(), BASE, BASE, "6.1.0-test", None).err().unwrap();
        assert!(error.to_string().contains("6.1.0-test"), "{error}");
    }

    /// The banner's address gives the slide, so the slid symbol must be at that address. The slide
    /// must not wrap symbols around the end of the address space.
    #[test]
    fn a_map_whose_banner_is_no_address_of_a_kernel() {
        let refused = |map: &str| file(map).for_kernel(&image(), BASE, BASE, "6.1.0-test", None).is_err();
        assert!(refused("0000000000001000 R linux_banner\nffffffff81000000 T _text\n"));
        assert!(refused("ffff888000001000 R linux_banner\nffffffff81000000 T _text\n"));
        assert!(!refused("ffffffff81001000 R linux_banner\nffffffff81000000 T _text\n"));
    }

    #[test]
    fn a_table_is_written_as_a_map_of_the_same_kernel() {
        let map = file("ffffffff81000000 T _text\nffffffff81001000 R linux_banner\n0000000000001000 A percpu\n");
        let table = map.for_kernel(&image(), BASE, BASE, "6.1.0-test", None).unwrap();
        let again = SymbolFile::from_map(Path::new("a map"), to_map(&table).as_bytes(), None).unwrap();
        let again = again.for_kernel(&image(), BASE, BASE, "6.1.0-test", None).unwrap();
        assert!(table.iter().eq(again.iter()));
        assert_eq!(again.len(), 3);
    }

    #[test]
    fn bad_lines_are_named() {
        let flaw = parse_text(b"ffffffff81000000 T a\nnonsense\n").err().unwrap();
        assert!(matches!(&flaw, FormatFlaw::Line { line: 2, text } if text == "nonsense"), "{flaw}");
        let flaw = parse_text(b"0000000000000000 T a\n").err().unwrap();
        assert!(matches!(flaw, FormatFlaw::Hidden), "{flaw}");
    }
}
