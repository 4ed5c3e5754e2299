//! Writes snapshots. The guest is stopped meanwhile, so this must be fast.

use crate::error::WriteError;
use crate::fields::Sink;
use crate::format::{END, MAGIC, VERSION};
use crate::{guest_tests, objects, ram};
use checker::guest_state::GuestState;
use guest_symbols::memory::StoppedMemory;
use guest_symbols::modules::Module;
use guest_symbols::symbol_file::to_map;
use lz4_flex::frame::{BlockMode, BlockSize, FrameEncoder, FrameInfo};
use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// The size of a written snapshot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Written {
    /// Bytes of guest RAM.
    pub ram: u64,
    /// Bytes of RAM in pages that are not zero.
    pub filled: u64,
    /// Bytes of the file.
    pub file: u64,
}

/// Writes a snapshot to `path`.
///
/// The file gets a temporary name in the same folder and is then renamed. A reader of `path` always
/// finds a whole snapshot, the old or the new one.
///
/// # Errors
/// [`WriteError`], which names `path`.
pub fn write(path: &Path, moment: &GuestState<'_, impl StoppedMemory>) -> Result<Written, WriteError> {
    let symbol =
        |name| moment.kernel.symbol(name).ok_or_else(|| WriteError::NoImage { path: path.into(), symbol: name });
    let (text, end) = (symbol("_text")?.0, symbol("_end")?.0);
    let (partial, file) = create(path)?;
    let written = put(file, moment, text, end.saturating_sub(text)).and_then(|written| {
        fs::rename(&partial, path)?;
        Ok(written)
    });
    written.map_err(|why| {
        let _ = fs::remove_file(&partial);
        WriteError::Write { path: path.into(), why }
    })
}

/// Checks that a snapshot can be created at `path`, without writing one.
///
/// # Errors
/// [`WriteError::Create`].
pub fn try_path(path: &Path) -> Result<(), WriteError> {
    let (partial, _) = create(path)?;
    let _ = fs::remove_file(partial);
    Ok(())
}

/// Creates the temporary file. Only the user may read it, since it contains all memory of the
/// guest.
fn create(path: &Path) -> Result<(PathBuf, File), WriteError> {
    let mut name = OsString::from(path);
    name.push(".partial");
    let partial = PathBuf::from(name);
    // A killed process may have left the file.
    let _ = fs::remove_file(&partial);
    match OpenOptions::new().write(true).create_new(true).mode(0o600).open(&partial) {
        Ok(file) => Ok((partial, file)),
        Err(why) => Err(WriteError::Create { path: partial, why }),
    }
}

fn put(mut file: File, moment: &GuestState<'_, impl StoppedMemory>, text: u64, image: u64) -> io::Result<Written> {
    file.write_all(&MAGIC)?;
    file.write_all(&VERSION.to_le_bytes())?;
    let info = FrameInfo::new().block_size(BlockSize::Max1MB).block_mode(BlockMode::Independent).block_checksums(true);
    let mut to = Sink(FrameEncoder::with_frame_info(info, file));
    let filled = contents(&mut to, moment, text, image)?;
    let file = to.0.finish()?;
    let ram = moment.memory.ranges().iter().map(|r| r.end - r.start).sum();
    Ok(Written { ram, filled, file: file.metadata()?.len() })
}

/// Writes everything inside the LZ4 frame. Returns the bytes of RAM outside of zero pages.
pub(crate) fn contents(
    to: &mut Sink<impl Write>,
    moment: &GuestState<'_, impl StoppedMemory>,
    text: u64,
    image: u64,
) -> io::Result<u64> {
    let kernel = moment.kernel;
    to.bytes(kernel.release.as_bytes())?;
    to.u64(text)?;
    to.u64(kernel.image_phys(guest_symbols::VirtAddr(text)).0)?;
    to.u64(image)?;
    to.u64(kernel.symbols.len() as u64)?;

    to.flag(kernel.from_file)?;
    if kernel.from_file {
        to.bytes(to_map(&kernel.symbols).as_bytes())?;
        to.flag(kernel.btf.is_some())?;
        if let Some(btf) = &kernel.btf {
            to.bytes(btf.blob())?;
        }
    }

    to.u64(moment.millis)?;
    to.u64(moment.min_age.as_millis() as u64)?;
    to.u8(u8::from(moment.unseen) | u8::from(moment.halted) << 1)?;

    for (_, counter) in moment.counters.figures() {
        to.u64(counter)?;
    }

    to.count(moment.troubles.len())?;
    for why in moment.troubles {
        to.bytes(why.as_bytes())?;
    }

    to.count(moment.registers.len())?;
    for word in moment.registers {
        to.u64(*word)?;
    }

    to.count(moment.modules.len())?;
    for load in moment.modules {
        to.u64(load.sequence)?;
        put_module(to, &load.module)?;
    }

    guest_tests::put(to, moment.tests)?;

    // The hooks may add stacks meanwhile. No object of this snapshot has them.
    let stacks = moment.stacks.all();
    to.count(stacks.len())?;
    for frames in &stacks {
        to.count(frames.len())?;
        for frame in &**frames {
            to.u64(*frame)?;
        }
    }

    objects::put(to, moment.objects)?;
    let filled = ram::put(to, moment.memory)?;
    to.0.write_all(&END)?;
    Ok(filled)
}

fn put_module(to: &mut Sink<impl Write>, module: &Module) -> io::Result<()> {
    to.bytes(module.name.as_bytes())?;
    to.count(module.ranges.len())?;
    for range in &module.ranges {
        to.u64(range.start)?;
        to.u64(range.end)?;
    }
    to.count(module.symbols().count())?;
    for symbol in module.symbols() {
        to.u64(symbol.addr)?;
        to.0.write_all(&[symbol.kind])?;
        to.bytes(symbol.name.as_bytes())?;
    }
    Ok(())
}
