//! The running kernel, found in RAM from the first block of its code that was executed.
//!
//! A kernel image is contiguous in physical memory, and is mapped linearly at `__START_KERNEL_map`
//! (arch/x86/include/asm/page_64_types.h). One instruction with a known virtual and physical
//! address therefore locates the image. KASLR chooses the virtual slide and phys_base
//! independently. Neither has to be guessed.

use crate::btf::Btf;
use crate::config::{self, how_to_set};
use crate::kallsyms::{self, KallsymsError};
use crate::memory::{GuestMemory, MemoryError, PAGE_SIZE, PhysAddr, StoppedMemory, VirtAddr};
use crate::paging::{PageTables, Translation};
use crate::symbol_file::{SymbolFile, SymbolFileError};
use crate::symbols::{SymbolTable, find_release, readable};
use crate::unwind::orc::Orc;
use crate::view::View;
use memchr::memmem;
use std::ops::Range;

/// `__START_KERNEL_map`: where the image mapping starts.
pub const START_KERNEL_MAP: u64 = 0xffff_ffff_8000_0000;
/// KERNEL_IMAGE_SIZE with KASLR: the image is within this many bytes.
const KERNEL_IMAGE_SIZE: u64 = 1 << 30;
/// The windows around the first block that are searched, in bytes before and after it. The first is
/// small and contains every distribution's kernel. The second contains all possible locations.
const WINDOWS: [(u64, u64); 2] = [(32 << 20, 96 << 20), (KERNEL_IMAGE_SIZE, KERNEL_IMAGE_SIZE)];
/// A blob with fewer types is the BTF of a module or not BTF at all.
const MIN_TYPES: usize = 5_000;

/// Why the running kernel was not recognized.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    /// There is no Linux kernel around the block.
    #[error("no Linux kernel around {0:?}")]
    NotLinux(VirtAddr),
    /// Linux, but its symbols cannot be read.
    #[error(
        "Linux {release} has no usable kallsyms ({why}); {}; or pass symbols=PATH with its vmlinux or System.map",
        how_to_set(&config::SYMBOLS)
    )]
    NoSymbols {
        /// Its release, as in `uname -r`.
        release: String,
        /// Why its symbol table is not usable.
        why: KallsymsError,
    },
    /// Linux without CONFIG_KALLSYMS_ALL.
    #[error(
        "Linux {release} has no data symbols, such as {symbol} (CONFIG_KALLSYMS_ALL is off); {}; or pass symbols=PATH with its vmlinux or System.map",
        how_to_set(&config::SYMBOLS[1..])
    )]
    NoDataSymbols {
        /// Its release, as in `uname -r`.
        release: String,
        /// The first symbol that is missing.
        symbol: &'static str,
    },
    /// Linux without CONFIG_DEBUG_INFO_BTF, and no file that describes its structs.
    #[error(
        "Linux {release} has no types (CONFIG_DEBUG_INFO_BTF is off), and no vmlinux with debugging information is known; {}, and start it with -kernel from where it was built; or pass symbols=PATH with its vmlinux",
        how_to_set(&config::TYPES)
    )]
    NoTypes {
        /// Its release, as in `uname -r`.
        release: String,
    },
    /// The user's symbol file does not match.
    #[error(transparent)]
    File(#[from] SymbolFileError),
}

/// A Linux kernel in guest RAM.
pub struct Kernel {
    /// Names and addresses, with the slide included.
    pub symbols: SymbolTable,
    /// Types: the kernel's own, or those of a file. `None` if neither has any.
    pub btf: Option<Btf>,
    /// Its unwind table.
    pub orc: Option<Orc>,
    /// Its release, as in `uname -r`.
    pub release: String,
    /// Whether symbols or types are from a file and not the kernel's own.
    pub from_file: bool,
    /// The parts of the image that this was read from, as ranges of physical addresses. The same
    /// kernel is found again if only these are kept.
    pub parts: Vec<Range<u64>>,
    /// Physical minus virtual address of the image.
    image_offset: u64,
    /// Physical address of the kernel's own top-level page table (`init_top_pgt`).
    root: PhysAddr,
    /// Virtual address of the variable that holds the direct map's address. It also shows the depth
    /// of the tables.
    page_offset_base: Option<u64>,
}

/// The most bytes of `linux_banner` that are read.
const MAX_BANNER: usize = 128;
/// The tables that [`Orc::read`] reads: first symbol, and the symbol at the end.
const UNWIND_TABLES: [(&str, &str); 2] =
    [("__start_orc_unwind_ip", "__stop_orc_unwind_ip"), ("__start_orc_unwind", "__stop_orc_unwind")];

/// Symbols that are always needed and that require CONFIG_KALLSYMS_ALL.
const DATA_SYMBOLS: [&str; 1] = ["init_top_pgt"];

impl Kernel {
    /// Reads the kernel that executes a block at virtual address `at`, physical address `phys`.
    ///
    /// # Errors
    /// [`KernelError`]. `NotLinux` may only mean that it is too early, or that the code belongs to
    /// another system.
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
            // These are offsets in the window.
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
            // The banner of an earlier kernel that is still in memory may come first.
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

    /// Sets types that a file of the same kernel has.
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

    /// A checksum of [`Kernel::parts`]. An intact kernel never changes them.
    pub fn checksum(&self, memory: &impl StoppedMemory) -> u32 {
        let mut sum = crc32fast::Hasher::new();
        self.parts
            .iter()
            .for_each(|part| sum.update(memory.run(PhysAddr(part.start), (part.end - part.start) as usize)));
        sum.finalize()
    }

    /// The value of a `u64` variable of the image. `None` if there is no such symbol or no RAM.
    pub fn variable(&self, memory: &impl GuestMemory, name: &str) -> Option<u64> {
        memory.read_u64(self.image_phys(self.symbol(name)?)).ok()
    }

    /// Kernel virtual memory with its current mappings.
    #[inline]
    pub fn view<'a, M: GuestMemory>(&self, memory: &'a M) -> View<'a, M> {
        let direct_map = self.page_offset_base.and_then(|at| memory.read_u64(self.image_phys(VirtAddr(at))).ok());
        View::new(memory, direct_map, self.root)
    }

    /// The kernel's own page tables. Their depth is read each time, because early boot sets it.
    #[inline]
    pub fn page_tables(&self, memory: &impl GuestMemory) -> PageTables {
        self.view(memory).tables()
    }

    /// See [`View::translate`].
    ///
    /// # Errors
    /// The same.
    #[inline]
    pub fn translate(&self, memory: &impl GuestMemory, at: VirtAddr) -> Result<Translation, MemoryError> {
        self.view(memory).translate(at)
    }

    /// See [`View::read`].
    ///
    /// # Errors
    /// The same.
    pub fn read(&self, memory: &impl GuestMemory, at: VirtAddr, buf: &mut [u8]) -> Result<(), MemoryError> {
        self.view(memory).read(at, buf)
    }

    /// See [`View::read_u64`].
    ///
    /// # Errors
    /// The same.
    pub fn read_u64(&self, memory: &impl GuestMemory, at: VirtAddr) -> Result<u64, MemoryError> {
        self.view(memory).read_u64(at)
    }

    /// See [`View::read_u32`].
    ///
    /// # Errors
    /// The same.
    pub fn read_u32(&self, memory: &impl GuestMemory, at: VirtAddr) -> Result<u32, MemoryError> {
        self.view(memory).read_u32(at)
    }

    /// A NUL-terminated string of at most `max` bytes in kernel virtual memory. Bytes that are not
    /// text are replaced as in [`readable`]. Empty if it cannot be read.
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

/// The physical memory around the block that the image mapping maps, and its virtual start address.
fn image_window(
    memory: &impl StoppedMemory,
    at: VirtAddr,
    phys: PhysAddr,
    (before, after): (u64, u64),
) -> (&[u8], u64) {
    let Some(ram) = memory.ranges().iter().find(|r| r.contains(&phys.0)) else { return (&[], at.0) };
    let before = before.min(phys.0 - ram.start).min(at.0 - START_KERNEL_MAP);
    // The tables are aligned, so the window starts at a page boundary.
    let before = before - (phys.0 - before).wrapping_neg() % PAGE_SIZE;
    let end = START_KERNEL_MAP.saturating_add(KERNEL_IMAGE_SIZE);
    let after = after.min(ram.end - phys.0).min(end.saturating_sub(at.0));
    let image = memory.slice(PhysAddr(phys.0 - before), (before + after) as usize);
    (image.unwrap_or(&[]), at.0 - before)
}

/// The kernel's types, and their location in the image.
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

    /// The errors show the options to set, in the syntax of the usual build tools.
    #[test]
    fn errors_show_the_options_to_set() {
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
