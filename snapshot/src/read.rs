//! Reads snapshots.
//!
//! A file may be truncated, corrupt or forged. No value in it is used unchecked or may cost more
//! memory than the file has bytes.

use crate::error::ReadError;
use crate::fields::{Flaw, Source};
use crate::format::{END, MAGIC, VERSION};
use crate::ram::TakeError;
use crate::{guest_tests, objects, ram};
use checker::guest_state::{Counters, GuestState};
use checker::names::Load;
use detector::frozen::Objects;
use detector::guest_tests::Tests;
use detector::objects::Counters as LiveMapCounters;
use detector::stacks::Stacks;
use guest_symbols::Kernel;
use guest_symbols::memory::{GuestMemory, MemoryError, OwnedMemory, PAGE_SIZE, PhysAddr, StoppedMemory, VirtAddr};
use guest_symbols::modules::Module;
use guest_symbols::symbol_file::SymbolFile;
use guest_symbols::symbols::Symbol;
use lz4_flex::frame::FrameDecoder;
use std::fs::File;
use std::io::{BufReader, Read};
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

/// Most bytes of a System.map or of BTF. Stock kernels have about 10 MiB.
const MAX_SYMBOL_BYTES: u32 = 1 << 28;
/// Most reasons not to trust the report.
const MAX_TROUBLES: u32 = 1 << 10;
/// Most register values. Each vCPU has 17.
const MAX_REGISTERS: u32 = 1 << 20;
/// Most modules. A guest may load and unload modules for days.
const MAX_MODULES: u32 = 1 << 20;
/// Most address ranges of a module.
const MAX_PARTS: u32 = 64;
/// Most symbols of a module, and most bytes of a name.
const MAX_MODULE_SYMBOLS: u32 = 1 << 20;
const MAX_NAME: u32 = 1 << 16;
/// Most stacks, and most frames of a stack.
const MAX_STACKS: u32 = 1 << 28;
const MAX_FRAMES: u32 = 1 << 10;
/// Bytes read at once.
const BUFFER: usize = 1 << 18;

/// A snapshot in memory.
pub struct Snapshot {
    pub(crate) contents: Contents,
    pub(crate) kernel: Kernel,
}

/// The contents of the file.
pub(crate) struct Contents {
    release: String,
    place: Place,
    symbol_count: u64,
    /// The symbols, if they came from a file.
    symbols: Option<Symbols>,
    millis: u64,
    min_age: Duration,
    unseen: bool,
    halted: bool,
    counters: Counters,
    troubles: Vec<String>,
    registers: Vec<u64>,
    modules: Vec<Load>,
    tests: Tests,
    stacks: Stacks,
    objects: Objects,
    memory: OwnedMemory,
}

/// Where the kernel image lies.
#[derive(Clone, Copy)]
struct Place {
    /// Virtual address of `_text`.
    text: VirtAddr,
    /// Physical address of `_text`.
    phys: PhysAddr,
    /// Length of the image in bytes.
    len: u64,
}

/// The symbols of a kernel, as a file had them.
struct Symbols {
    /// The text of a System.map at the addresses of the running kernel.
    map: Vec<u8>,
    btf: Option<Vec<u8>>,
}

impl Snapshot {
    /// Reads a snapshot and finds the kernel in it.
    ///
    /// # Errors
    /// [`ReadError`], which names `path`.
    pub fn open(path: &Path) -> Result<Snapshot, ReadError> {
        let file = File::open(path).map_err(|why| ReadError::Open { path: path.into(), why })?;
        Snapshot::read(BufReader::with_capacity(BUFFER, file), path)
    }

    /// As [`Snapshot::open`], from any source. `path` names it in errors.
    ///
    /// # Errors
    /// [`ReadError`], which names `path`.
    pub fn read(mut file: impl Read, path: &Path) -> Result<Snapshot, ReadError> {
        let mut head = [0; MAGIC.len() + 4];
        let (magic, version) = match file.read_exact(&mut head) {
            Ok(()) => head.split_at(MAGIC.len()),
            Err(_) => return Err(ReadError::NotSnapshot { path: path.into() }),
        };
        if magic != MAGIC {
            return Err(ReadError::NotSnapshot { path: path.into() });
        }
        match version.try_into().map(u32::from_le_bytes) {
            Ok(VERSION) => {}
            found => return Err(ReadError::Version { path: path.into(), found: found.unwrap_or(0) }),
        }
        let contents = BufReader::with_capacity(BUFFER, FrameDecoder::new(file));
        let contents = Contents::take(&mut Source::new(contents)).map_err(|e| match e {
            TakeError::Flaw(Flaw { part, at, why }) => ReadError::Damaged { path: path.into(), part, at, why },
            TakeError::NoRoom(bytes) => ReadError::NoRoom { path: path.into(), bytes },
        })?;
        let kernel = contents.find_kernel(path)?;
        Ok(Snapshot { contents, kernel })
    }

    /// The guest at the moment of the snapshot.
    pub fn moment(&self) -> GuestState<'_, OwnedMemory> {
        let c = &self.contents;
        GuestState {
            kernel: &self.kernel,
            memory: &c.memory,
            objects: &c.objects,
            stacks: &c.stacks,
            lines: None,
            registers: &c.registers,
            modules: &c.modules,
            tests: &c.tests,
            counters: c.counters,
            troubles: &c.troubles,
            millis: c.millis,
            min_age: c.min_age,
            unseen: c.unseen,
            halted: c.halted,
            traces: None,
        }
    }
}

impl Contents {
    /// Reads everything inside the LZ4 frame.
    pub(crate) fn take(from: &mut Source<impl Read>) -> Result<Contents, TakeError> {
        from.part("kernel");
        let release = from.text(MAX_NAME)?;
        let place = Place { text: VirtAddr(from.u64()?), phys: PhysAddr(from.u64()?), len: from.u64()? };
        if !place.text.0.is_multiple_of(PAGE_SIZE) || !place.phys.0.is_multiple_of(PAGE_SIZE) {
            from.flaw::<()>(format!("no image of a kernel starts at {:?}, {:?}", place.text, place.phys))?;
        }
        let symbol_count = from.u64()?;

        from.part("symbols");
        let mut symbols = None;
        if from.flag()? {
            let map = from.bytes(MAX_SYMBOL_BYTES)?;
            let btf = if from.flag()? { Some(from.bytes(MAX_SYMBOL_BYTES)?) } else { None };
            symbols = Some(Symbols { map, btf });
        }

        from.part("time");
        let (millis, min_age, [flags]) = (from.u64()?, Duration::from_millis(from.u64()?), from.array()?);
        let (unseen, halted) = (flags & 1 != 0, flags & 2 != 0);
        if flags > 3 {
            from.flaw::<()>(format!("{flags} has unknown flags"))?;
        }

        from.part("counters");
        let counters = Counters {
            live_map: LiveMapCounters {
                allocations: from.u64()?,
                frees: from.u64()?,
                unknown_frees: from.u64()?,
                missed_frees: from.u64()?,
            },
            unmatched_returns: from.u64()?,
            unwatched_sites: from.u64()?,
            hooks_hit: from.u64()?,
            hooks: from.u64()?,
            rewinds: from.u64()?,
            boot: from.u64()?,
        };

        from.part("troubles");
        let troubles = (0..from.count(MAX_TROUBLES)?).map(|_| from.text(MAX_NAME)).collect::<Result<_, _>>()?;

        from.part("registers");
        let registers = (0..from.count(MAX_REGISTERS)?).map(|_| from.u64()).collect::<Result<_, _>>()?;

        from.part("modules");
        let modules = (0..from.count(MAX_MODULES)?)
            .map(|_| Ok(Load { sequence: from.u64()?, module: Arc::new(take_module(from)?) }))
            .collect::<Result<_, Flaw>>()?;

        from.part("tests");
        let tests = guest_tests::take(from)?;

        from.part("stacks");
        let stacks = Stacks::default();
        for number in 1..=from.count(MAX_STACKS)? {
            let frames = (0..from.count(MAX_FRAMES)?).map(|_| from.u64()).collect::<Result<Vec<_>, _>>()?;
            // Stacks are unique, so interning them again yields the numbers that objects have.
            if stacks.intern(&frames).0 as usize != number {
                from.flaw::<()>(format!("stack {number} is empty or a duplicate"))?;
            }
        }

        from.part("objects");
        let objects = objects::take(from)?;

        from.part("memory");
        let memory = ram::take(from)?;

        from.part("end");
        if from.array()? != END {
            from.flaw::<()>("there are bytes after the end")?;
        }
        Ok(Contents {
            release,
            place,
            symbol_count,
            symbols,
            millis,
            min_age,
            unseen,
            halted,
            counters,
            troubles,
            registers,
            modules,
            tests,
            stacks,
            objects,
            memory,
        })
    }

    /// Finds the kernel as the plugin does, and compares it with the recorded one.
    pub(crate) fn find_kernel(&self, path: &Path) -> Result<Kernel, ReadError> {
        let fail = |why| ReadError::Kernel { path: path.into(), why };
        let file = match &self.symbols {
            Some(Symbols { map, btf }) => {
                Some(SymbolFile::from_map(path, map, btf.clone()).map_err(|why| fail(why.into()))?)
            }
            None => None,
        };
        let Place { text, phys, len } = self.place;
        let image = phys.0..phys.0.saturating_add(len);
        // The plugin searched when the rest of RAM was empty. It may now contain other kernels.
        let image = Image { ranges: [image], memory: &self.memory };
        let kernel = Kernel::find(&image, text, phys, file.as_ref()).map_err(fail)?;
        let is = |release: &str, symbols: u64| format!("Linux {release} with {symbols} symbols");
        let (found, recorded) =
            (is(&kernel.release, kernel.symbols.len() as u64), is(&self.release, self.symbol_count));
        if found != recorded {
            return Err(ReadError::OtherKernel { path: path.into(), found, recorded });
        }
        Ok(kernel)
    }
}

fn take_module(from: &mut Source<impl Read>) -> Result<Module, Flaw> {
    let name = from.text(MAX_NAME)?;
    let ranges = (0..from.count(MAX_PARTS)?).map(|_| Ok(from.u64()?..from.u64()?)).collect::<Result<_, Flaw>>()?;
    let mut symbols = Vec::new();
    for _ in 0..from.count(MAX_MODULE_SYMBOLS)? {
        let (addr, [kind]) = (from.u64()?, from.array()?);
        symbols.push((addr, kind, from.text(MAX_NAME)?));
    }
    let symbols = symbols.iter().map(|(addr, kind, name)| Symbol { addr: *addr, kind: *kind, name });
    Ok(Module::from_parts(name, ranges, symbols))
}

/// Guest RAM reduced to the kernel image.
struct Image<'a> {
    ranges: [Range<u64>; 1],
    memory: &'a OwnedMemory,
}

impl GuestMemory for Image<'_> {
    fn read(&self, at: PhysAddr, buf: &mut [u8]) -> Result<(), MemoryError> {
        self.memory.read(at, buf)
    }

    fn ranges(&self) -> &[Range<u64>] {
        &self.ranges
    }
}

impl StoppedMemory for Image<'_> {
    fn slice(&self, at: PhysAddr, len: usize) -> Option<&[u8]> {
        self.memory.slice(at, len)
    }
}
