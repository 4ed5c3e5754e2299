//! The running kernel, found in RAM from the first block of it that was executed.
//!
//! A kernel image is one run of physical memory, mapped linearly at `__START_KERNEL_map`
//! (arch/x86/include/asm/page_64_types.h). One instruction whose virtual and physical address are both
//! known therefore places all of it: the KASLR slide (virtual) and phys_base (physical), which KASLR
//! chooses independently, need not be guessed.

use crate::btf::Btf;
use crate::config::{self, how_to_set};
use crate::kallsyms::{self, KallsymsError};
use crate::memory::{GuestMemory, MemoryError, PAGE_SIZE, PhysAddr, StoppedMemory, VirtAddr};
use crate::paging::{PageTables, Translation};
use crate::symbol_file::{SymbolFile, SymbolFileError};
use crate::symbols::{SymbolTable, readable};
use crate::unwind::orc::Orc;
use crate::view::View;
use memchr::memmem;
use std::ops::Range;

/// `__START_KERNEL_map`: where the image mapping starts.
pub const START_KERNEL_MAP: u64 = 0xffff_ffff_8000_0000;
/// KERNEL_IMAGE_SIZE with KASLR: the image lies within this many bytes.
const KERNEL_IMAGE_SIZE: u64 = 1 << 30;
/// Windows around the first block that are searched, in bytes before and after it: a small one that
/// holds every distribution's kernel, then all that it could be.
const WINDOWS: [(u64, u64); 2] = [(32 << 20, 96 << 20), (KERNEL_IMAGE_SIZE, KERNEL_IMAGE_SIZE)];
/// Fewer types than this is a module's BTF or an accident.
const MIN_TYPES: usize = 5_000;

/// Why the running kernel could not be understood.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    /// Nothing like Linux around the block.
    #[error("no Linux kernel around {0:?}")]
    NotLinux(VirtAddr),
    /// Linux, but without its symbols.
    #[error(
        "Linux {release} has no usable kallsyms ({why}); {}; or pass symbols=PATH with its vmlinux or System.map",
        how_to_set(&config::SYMBOLS)
    )]
    NoSymbols {
        /// What `uname -r` says there.
        release: String,
        /// What was found instead.
        why: KallsymsError,
    },
    /// Linux without CONFIG_KALLSYMS_ALL.
    #[error(
        "Linux {release} has no data symbols, such as {symbol} (CONFIG_KALLSYMS_ALL is off); {}; or pass symbols=PATH with its vmlinux or System.map",
        how_to_set(&config::SYMBOLS[1..])
    )]
    NoDataSymbols {
        /// What `uname -r` says there.
        release: String,
        /// The first one that is missing.
        symbol: &'static str,
    },
    /// Linux without CONFIG_DEBUG_INFO_BTF, and nothing else says what its structs are.
    #[error(
        "Linux {release} has no types (CONFIG_DEBUG_INFO_BTF is off), and no vmlinux with debugging information is known; {}, and start it with -kernel from where it was built; or pass symbols=PATH with its vmlinux",
        how_to_set(&config::TYPES)
    )]
    NoTypes {
        /// What `uname -r` says there.
        release: String,
    },
    /// The file given does not fit.
    #[error(transparent)]
    File(#[from] SymbolFileError),
}

/// A Linux kernel in guest RAM.
pub struct Kernel {
    /// Names and addresses, slide included.
    pub symbols: SymbolTable,
    /// Types: its own, or those of a file. Absent where neither has any.
    pub btf: Option<Btf>,
    /// Its unwind table.
    pub orc: Option<Orc>,
    /// What `uname -r` prints.
    pub release: String,
    /// Whether symbols or types are those of a file, and not the kernel's own.
    pub from_file: bool,
    /// What of the image all this was made of, as ranges of physical addresses: where there is nothing else, the
    /// same kernel is found again.
    pub parts: Vec<Range<u64>>,
    /// Physical minus virtual address of the image.
    image_offset: u64,
    /// Physical address of the kernel's own page table root (`init_top_pgt`, swapper).
    root: PhysAddr,
    /// Virtual address of the variable that tells the depth of the tables.
    page_offset_base: Option<u64>,
}

/// Bytes of `linux_banner` that are looked at, at most.
const MAX_BANNER: usize = 128;
/// What [`Orc::read`] reads: first symbol, and the one after the end.
const UNWIND_TABLES: [(&str, &str); 2] =
    [("__start_orc_unwind_ip", "__stop_orc_unwind_ip"), ("__start_orc_unwind", "__stop_orc_unwind")];

/// Symbols without which nothing works, and which CONFIG_KALLSYMS_ALL brings.
const DATA_SYMBOLS: [&str; 1] = ["init_top_pgt"];

impl Kernel {
    /// Reads the kernel that executes a block at virtual address `at`, physical address `phys`.
    ///
    /// # Errors
    /// [`KernelError`]; `NotLinux` may only mean that it is too early, or that it is another system.
    pub fn find(
        memory: &impl StoppedMemory,
        at: VirtAddr,
        phys: PhysAddr,
        file: Option<&SymbolFile>,
    ) -> Result<Kernel, KernelError> {
        if at.0 < START_KERNEL_MAP {
            return Err(KernelError::NotLinux(at));
        }
        let mut best = KernelError::NotLinux(at);
        for window in WINDOWS {
            let (image, base) = image_window(memory, at, phys, window);
            let Some(release) = find_release(image) else { continue };
            let release = release.to_owned();
            let own = kallsyms::decode(image, base, Some(at.0));
            // As offsets into the window.
            let mut parts = Vec::new();
            let symbols = match (file, own) {
                (Some(file), own) => {
                    file.for_kernel(image, base, at.0, &release, own.as_ref().ok().map(|k| &k.symbols))?
                }
                (None, Ok(own)) => {
                    parts.push(own.place);
                    own.symbols
                }
                (None, Err(why)) => {
                    best = KernelError::NoSymbols { release, why };
                    continue;
                }
            };
            if let Some(symbol) = DATA_SYMBOLS.into_iter().find(|s| symbols.lookup(s).is_none()) {
                return Err(KernelError::NoDataSymbols { release, symbol });
            }
            // Of the kernel before, which may lie about still, the banner may come first.
            let release = symbols
                .lookup("linux_banner")
                .and_then(|at| image.get(at.wrapping_sub(base) as usize..))
                .and_then(|bytes| find_release(&bytes[..bytes.len().min(MAX_BANNER)]))
                .map_or(release, str::to_owned);
            let own = find_btf(image, base, &symbols);
            parts.extend(own.as_ref().map(|(place, _)| place.clone()));
            let btf = match (own, file) {
                (Some((_, btf)), _) => Some(btf),
                (None, Some(file)) => file.types()?,
                (None, None) => None,
            };
            let at_symbol = |name: &str| symbols.lookup(name).map(|at| at.wrapping_sub(base) as usize);
            parts.extend(at_symbol("linux_banner").map(|at| at..at.saturating_add(MAX_BANNER)));
            parts.extend(UNWIND_TABLES.iter().filter_map(|(from, to)| Some(at_symbol(from)?..at_symbol(to)?)));
            parts.retain(|part| part.start < part.end && part.end <= image.len());
            let image_offset = phys.0.wrapping_sub(at.0);
            let pgt = symbols.lookup("init_top_pgt").unwrap_or_default();
            let image_phys = |at: VirtAddr| PhysAddr(at.0.wrapping_add(image_offset));
            let start = image_phys(VirtAddr(base)).0;
            return Ok(Kernel {
                orc: Orc::read(memory, &symbols, btf.as_ref(), image_phys),
                root: PhysAddr(pgt.wrapping_add(image_offset)),
                page_offset_base: symbols.lookup("page_offset_base"),
                symbols,
                btf,
                release,
                from_file: file.is_some(),
                parts: parts.iter().map(|part| start + part.start as u64..start + part.end as u64).collect(),
                image_offset,
            });
        }
        Err(best)
    }

    /// Has the types of a file, which is of the same kernel.
    pub fn take_types(&mut self, memory: &impl StoppedMemory, btf: Btf) {
        let image_offset = self.image_offset;
        let image_phys = |at: VirtAddr| PhysAddr(at.0.wrapping_add(image_offset));
        self.orc = Orc::read(memory, &self.symbols, Some(&btf), image_phys);
        self.btf = Some(btf);
        self.from_file = true;
    }

    /// Address of a symbol.
    pub fn symbol(&self, name: &str) -> Option<VirtAddr> {
        self.symbols.lookup(name).map(VirtAddr)
    }

    /// Physical address of a byte of the kernel image (text, data, bss).
    pub fn image_phys(&self, at: VirtAddr) -> PhysAddr {
        PhysAddr(at.0.wrapping_add(self.image_offset))
    }

    /// A checksum of [`Kernel::parts`], which no kernel ever changes.
    pub fn checksum(&self, memory: &impl StoppedMemory) -> u32 {
        let mut sum = crc32fast::Hasher::new();
        self.parts
            .iter()
            .for_each(|part| sum.update(memory.run(PhysAddr(part.start), (part.end - part.start) as usize)));
        sum.finalize()
    }

    /// The value of a `u64` variable of the image, or `None` where there is no such symbol or RAM.
    pub fn variable(&self, memory: &impl GuestMemory, name: &str) -> Option<u64> {
        memory.read_u64(self.image_phys(self.symbol(name)?)).ok()
    }

    /// Kernel virtual memory as it is mapped now.
    #[inline]
    pub fn view<'a, M: GuestMemory>(&self, memory: &'a M) -> View<'a, M> {
        let direct_map = self.page_offset_base.and_then(|at| memory.read_u64(self.image_phys(VirtAddr(at))).ok());
        View::new(memory, direct_map, self.root)
    }

    /// The kernel's own page tables. The depth is read anew each time: it is decided during early boot.
    #[inline]
    pub fn page_tables(&self, memory: &impl GuestMemory) -> PageTables {
        self.view(memory).tables()
    }

    /// As [`View::translate`].
    ///
    /// # Errors
    /// As there.
    #[inline]
    pub fn translate(&self, memory: &impl GuestMemory, at: VirtAddr) -> Result<Translation, MemoryError> {
        self.view(memory).translate(at)
    }

    /// As [`View::read`].
    ///
    /// # Errors
    /// As there.
    pub fn read(&self, memory: &impl GuestMemory, at: VirtAddr, buf: &mut [u8]) -> Result<(), MemoryError> {
        self.view(memory).read(at, buf)
    }

    /// As [`View::read_u64`].
    ///
    /// # Errors
    /// As there.
    pub fn read_u64(&self, memory: &impl GuestMemory, at: VirtAddr) -> Result<u64, MemoryError> {
        self.view(memory).read_u64(at)
    }

    /// As [`View::read_u32`].
    ///
    /// # Errors
    /// As there.
    pub fn read_u32(&self, memory: &impl GuestMemory, at: VirtAddr) -> Result<u32, MemoryError> {
        self.view(memory).read_u32(at)
    }

    /// A NUL-terminated string of at most `max` bytes in kernel virtual memory; what is no text
    /// is replaced, as [`readable`] says. Empty where it cannot be read.
    pub fn read_string(&self, memory: &impl GuestMemory, at: VirtAddr, max: usize) -> String {
        let mut bytes = Vec::new();
        while bytes.len() < max {
            let Ok(t) = self.translate(memory, at.offset(bytes.len() as u64)) else { break };
            let mut chunk = vec![0; t.len.min((max - bytes.len()) as u64) as usize];
            if memory.read(t.phys, &mut chunk).is_err() {
                break;
            }
            let end = memchr::memchr(0, &chunk);
            bytes.extend_from_slice(&chunk[..end.unwrap_or(chunk.len())]);
            if end.is_some() {
                break;
            }
        }
        readable(&bytes)
    }

    /// Byte offset of a struct member, from BTF.
    pub fn offset_of(&self, name: &str, path: &str) -> Option<u64> {
        self.btf.as_ref()?.offset_of(name, path)
    }
}

/// The physical memory around the block that is mapped as the image, and the virtual address it starts at.
fn image_window(
    memory: &impl StoppedMemory,
    at: VirtAddr,
    phys: PhysAddr,
    (before, after): (u64, u64),
) -> (&[u8], u64) {
    let Some(ram) = memory.ranges().iter().find(|r| r.contains(&phys.0)) else { return (&[], at.0) };
    let before = before.min(phys.0 - ram.start).min(at.0 - START_KERNEL_MAP);
    // What is searched for is aligned, so the window starts with a page.
    let before = before - (phys.0 - before).wrapping_neg() % PAGE_SIZE;
    let end = START_KERNEL_MAP.saturating_add(KERNEL_IMAGE_SIZE);
    let after = after.min(ram.end - phys.0).min(end.saturating_sub(at.0));
    let image = memory.slice(PhysAddr(phys.0 - before), (before + after) as usize);
    (image.unwrap_or(&[]), at.0 - before)
}

/// `linux_banner` (init/version-timestamp.c): "Linux version RELEASE (...".
pub(crate) fn find_release(image: &[u8]) -> Option<&str> {
    const START: &[u8] = b"Linux version ";
    memmem::find_iter(image, START).find_map(|at| {
        let rest = &image[at + START.len()..];
        let end = rest.iter().take(64).position(|&b| b == b' ')?;
        let release = std::str::from_utf8(&rest[..end]).ok().filter(|r| !r.contains(char::is_control))?;
        (release.starts_with(|c: char| c.is_ascii_digit()) && rest.get(end + 1) == Some(&b'(')).then_some(release)
    })
}

/// The kernel's types, and where in the image they are.
fn find_btf(image: &[u8], base: u64, symbols: &SymbolTable) -> Option<(Range<usize>, Btf)> {
    let parse = |at: usize| {
        let blob = image.get(at..)?;
        let len = Btf::blob_len(blob).ok()?;
        let btf = Btf::parse(&blob[..len]).ok().filter(|b| b.len() >= MIN_TYPES)?;
        Some((at..at + len, btf))
    };
    if let Some(start) = symbols.lookup("__start_BTF") {
        return parse(start.wrapping_sub(base) as usize);
    }
    // Header of version 1, no flags, 24 bytes long (include/uapi/linux/btf.h).
    memmem::find_iter(image, &[0x9f, 0xeb, 1, 0, 24, 0, 0, 0]).find_map(parse)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Who builds a kernel is told what to set, in the words of what he builds it with.
    #[test]
    fn what_a_kernel_lacks_is_said_in_words_to_type() {
        let release = || "6.12".to_owned();
        let why = KallsymsError::NoTokens;
        let all = "KALLSYMS=y CONFIG_DEBUG_KERNEL=y CONFIG_KALLSYMS_ALL=y in its .config";
        let data = "DEBUG_KERNEL=y CONFIG_KALLSYMS_ALL=y in its .config";
        let types = "DEBUG_KERNEL=y CONFIG_DEBUG_INFO_DWARF_TOOLCHAIN_DEFAULT=y in its .config";
        for (error, config, last) in [
            (KernelError::NoSymbols { release: release(), why }, all, "KALLSYMS_ALL"),
            (KernelError::NoDataSymbols { release: release(), symbol: "init_top_pgt" }, data, "KALLSYMS_ALL"),
            (KernelError::NoTypes { release: release() }, types, "DEBUG_INFO_DWARF_TOOLCHAIN_DEFAULT"),
        ] {
            let text = error.to_string();
            assert!(text.contains(&format!("build it with CONFIG_{config}")), "{text}");
            for before in ["--configitem", "--kconfig_add"] {
                assert!(text.contains(&format!("{before} CONFIG_{last}=y")), "{text}");
            }
            assert!(
                text.contains("vng --build") && text.contains("kunit.py run") && text.contains("symbols=PATH"),
                "{text}"
            );
        }
    }
}
