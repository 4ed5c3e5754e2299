//! `leak symbols`.

use crate::output;
use cli::image::{self, ImageError};
use guest_symbols::kallsyms::{self, KallsymsError};
use guest_symbols::symbol_file::{SymbolFile, SymbolFileError};
use guest_symbols::symbols::{Symbol, SymbolTable};
use snapshot::{ReadError, Snapshot};
use std::path::{Path, PathBuf};

/// Print the symbols of a kernel in the format of nm
///
/// Symbols of a snapshot have the addresses of its guest. Symbols of an image have the addresses
/// that it was linked for.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  leak symbols guest.snapshot | grep ' init_task$'
  leak symbols /boot/vmlinuz-6.12.95+deb12-amd64 > System.map
  leak symbols vmlinux")]
pub struct Symbols {
    /// A snapshot, a compressed kernel (bzImage, vmlinuz) with CONFIG_KALLSYMS, or a vmlinux,
    /// stripped or not
    file: PathBuf,
}

/// Why there are no symbols.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file cannot be read.
    #[error("cannot read {path}: {why}")]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// The error of the system.
        why: std::io::Error,
    },
    /// The snapshot cannot be read.
    #[error(transparent)]
    Snapshot(#[from] ReadError),
    /// The symbol table of the vmlinux cannot be read.
    #[error(transparent)]
    SymbolFile(#[from] SymbolFileError),
    /// The file is not a kernel image.
    #[error("{path} is not a readable kernel: {why}; give a snapshot, a bzImage, or the vmlinux that it was made of")]
    Image {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: ImageError,
    },
    /// The kernel has no usable kallsyms table.
    #[error("{path}: {why}; give the vmlinux that it was made of")]
    Kallsyms {
        /// The file.
        path: PathBuf,
        /// What is missing.
        why: KallsymsError,
    },
    /// Standard output cannot be written.
    #[error("cannot write symbols: {0}")]
    Output(#[from] std::io::Error),
}

impl Symbols {
    /// Prints them.
    ///
    /// # Errors
    /// [`Error`].
    pub fn run(&self) -> Result<(), Error> {
        let path = self.file.as_path();
        let data = std::fs::read(path).map_err(|why| Error::Unreadable { path: path.into(), why })?;
        if image::has_symbol_table(&data) {
            return Ok(print(SymbolFile::open(path)?.table().iter())?);
        }
        if !data.starts_with(b"\x7fELF") && !image::is_boot_image(&data) {
            let snapshot = Snapshot::open(path)?;
            return Ok(print(snapshot.moment().kernel.symbols.iter())?);
        }
        Ok(print(of_image(path, &data)?.iter())?)
    }
}

fn of_image(path: &Path, data: &[u8]) -> Result<SymbolTable, Error> {
    let fail = |why| Error::Image { path: path.into(), why };
    let unpacked;
    let elf = if data.starts_with(b"\x7fELF") {
        data
    } else {
        unpacked = image::unpack(data).map_err(fail)?;
        &unpacked
    };
    let loaded = image::load(elf).map_err(fail)?;
    let kallsyms = kallsyms::decode(&loaded.memory, loaded.start, None)
        .map_err(|why| Error::Kallsyms { path: path.into(), why })?;
    Ok(kallsyms.symbols)
}

fn print<'a>(symbols: impl Iterator<Item = Symbol<'a>>) -> std::io::Result<()> {
    let lines = symbols.map(|s| format!("{:016x} {} {}\n", s.addr, char::from(s.kind), s.name));
    output::print(&lines.collect::<String>())
}
