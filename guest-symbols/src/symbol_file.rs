//! Symbols from the user's file: a vmlinux ELF, a System.map, or a saved /proc/kallsyms.
//!
//! They are for kernels whose own table is missing or lacks data symbols. A file of another kernel
//! is rejected, because wrong symbols are worse than none.

use crate::kallsyms::has_code;
use crate::memory::VirtAddr;
use crate::symbols::find_release;
use crate::symbols::{SymbolTable, SymbolTableBuilder};
use memchr::memmem;
use object::{Object, ObjectSection, ObjectSymbol};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::{fs, io};

/// The slide of text is a multiple of CONFIG_PHYSICAL_ALIGN, which is at least 2 MiB on x86-64.
const SLIDE_ALIGN: u64 = 2 << 20;

/// The largest file in bytes. A vmlinux with all debugging information has about 1 GiB.
const MAX_BYTES: u64 = 4 << 30;

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
        why: String,
    },
    /// It has the symbols of another kernel.
    #[error(
        "symbols={path} does not belong to the running kernel: the file is of {theirs}, the guest runs {ours}; give the file of the guest's own kernel"
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

/// Symbols read from a file, at the file's addresses.
pub struct SymbolFile {
    path: PathBuf,
    symbols: Vec<(u64, u8, String)>,
    /// The whole `linux_banner` of a vmlinux.
    banner: Option<String>,
    build_id: Option<Vec<u8>>,
    /// The `.BTF` section of a vmlinux.
    pub btf: Option<Vec<u8>>,
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
        let data = bytes(path).map_err(|why| SymbolFileError::Unreadable { path: path.into(), why })?;
        SymbolFile::parse(path, &data)
    }

    /// Parses the content of a file, as in [`SymbolFile::open`]. `path` is only for errors.
    ///
    /// # Errors
    /// [`SymbolFileError::Format`].
    pub fn parse(path: &Path, data: &[u8]) -> Result<SymbolFile, SymbolFileError> {
        let parsed = if data.starts_with(b"\x7fELF") { parse_elf(data) } else { parse_text(data) };
        parsed
            .map(|file| SymbolFile { path: path.into(), ..file })
            .map_err(|why| SymbolFileError::Format { path: path.into(), why })
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

fn parse_elf(data: &[u8]) -> Result<SymbolFile, String> {
    let elf = object::File::parse(data).map_err(|e| e.to_string())?;
    if elf.architecture() != object::Architecture::X86_64 {
        return Err(format!("an ELF file for {:?}", elf.architecture()));
    }
    let mut symbols = Vec::new();
    for s in elf.symbols() {
        let Ok(name) = s.name() else { continue };
        if name.is_empty()
            || s.is_undefined()
            || matches!(s.kind(), object::SymbolKind::File | object::SymbolKind::Section)
        {
            continue;
        }
        let kind = if s.kind() == object::SymbolKind::Text { b't' } else { b'd' };
        let kind = if s.is_global() { kind.to_ascii_uppercase() } else { kind };
        symbols.push((s.address(), kind, name.to_owned()));
    }
    if symbols.is_empty() {
        return Err("it has no symbol table (stripped)".to_owned());
    }
    let banner = symbols.iter().find(|(.., name)| name == "linux_banner").and_then(|(addr, ..)| {
        let section = elf.sections().find(|s| addr.checked_sub(s.address()).is_some_and(|at| at < s.size()))?;
        // A section without content in the file has no data.
        let bytes = section.data().ok()?.get((addr - section.address()) as usize..)?;
        let end = memchr::memchr2(b'\n', 0, bytes)?;
        Some(String::from_utf8_lossy(&bytes[..end]).into_owned())
    });
    Ok(SymbolFile {
        path: PathBuf::new(),
        symbols,
        banner,
        build_id: elf.build_id().ok().flatten().map(<[u8]>::to_vec),
        btf: elf.section_by_name(".BTF").and_then(|s| s.data().ok()).map(<[u8]>::to_vec),
    })
}

/// Parses a System.map or /proc/kallsyms: `ADDRESS LETTER NAME`. The latter has `[module]` after
/// module symbols.
fn parse_text(data: &[u8]) -> Result<SymbolFile, String> {
    let text = std::str::from_utf8(data).map_err(|_| "it is not text".to_owned())?;
    let mut symbols = Vec::new();
    for (i, line) in text.lines().enumerate() {
        let mut words = line.split_ascii_whitespace();
        let parsed = (|| {
            let addr = u64::from_str_radix(words.next()?, 16).ok()?;
            let [kind] = words.next()?.as_bytes() else { return None };
            Some((addr, *kind, words.next()?))
        })();
        let Some((addr, kind, name)) = parsed else {
            return Err(format!(
                "line {} is not ADDRESS LETTER NAME: {:?}",
                i + 1,
                line.chars().take(60).collect::<String>()
            ));
        };
        if words.next().is_none() {
            symbols.push((addr, kind, name.to_owned()));
        }
    }
    if symbols.iter().all(|(addr, ..)| *addr == 0) {
        return Err("all addresses are 0: read /proc/kallsyms as root, with kernel.kptr_restrict=0".to_owned());
    }
    Ok(SymbolFile { path: PathBuf::new(), symbols, banner: None, build_id: None, btf: None })
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
        assert!(parse_text(b"ffffffff81000000 T a\nnonsense\n").err().unwrap().contains("line 2"));
        assert!(parse_text(b"0000000000000000 T a\n").err().unwrap().contains("kptr_restrict"));
    }
}
