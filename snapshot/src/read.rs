//! Reading. The file may be cut off, damaged or made up: nothing in it may cost more than its own length, or be
//! believed without a look.

use crate::error::ReadError;
use crate::fields::{Flaw, Source};
use crate::ram::TakeError;
use crate::{END, MAGIC, VERSION, guest_tests, objects, ram};
use checker::guest_state::{Counters, Moment};
use detector::frozen::Objects;
use detector::guest_tests::Tests;
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

/// Most bytes of a System.map or of BTF: those of stock kernels have some 10 MiB.
const MAX_SYMBOL_BYTES: u32 = 1 << 28;
/// Most reasons not to trust the report.
const MAX_TROUBLES: u32 = 1 << 10;
/// Most words of registers: 17 of each vCPU.
const MAX_REGISTERS: u32 = 1 << 20;
/// Most modules; a guest may load and unload them for days.
const MAX_MODULES: u32 = 1 << 20;
/// Most parts of a module.
const MAX_PARTS: u32 = 64;
/// Most symbols of a module, and most bytes of a name.
const MAX_MODULE_SYMBOLS: u32 = 1 << 20;
const MAX_NAME: u32 = 1 << 16;
/// Most different stacks, and most frames of one.
const MAX_STACKS: u32 = 1 << 28;
const MAX_FRAMES: u32 = 1 << 10;
/// Bytes read at once.
const BUFFER: usize = 1 << 18;

/// A snapshot, read back.
pub struct Snapshot {
    pub(crate) contents: Contents,
    pub(crate) kernel: Kernel,
}

/// What stands in the file.
pub(crate) struct Contents {
    release: String,
    /// Virtual and physical address of `_text`, and the bytes of the image.
    text: (VirtAddr, PhysAddr, u64),
    symbol_count: u64,
    /// A System.map, and BTF.
    symbols: Option<(Vec<u8>, Option<Vec<u8>>)>,
    millis: u64,
    min_age: Duration,
    unseen: bool,
    halted: bool,
    counters: Counters,
    troubles: Vec<String>,
    registers: Vec<u64>,
    modules: Vec<(u64, Arc<Module>)>,
    tests: Tests,
    stacks: Stacks,
    objects: Objects,
    memory: OwnedMemory,
}

impl Snapshot {
    /// Reads a snapshot and finds the kernel in it.
    ///
    /// # Errors
    /// [`ReadError`].
    pub fn open(path: &Path) -> Result<Snapshot, ReadError> {
        let file = File::open(path).map_err(|why| ReadError::Open { path: path.into(), why })?;
        Snapshot::read(BufReader::with_capacity(BUFFER, file), path)
    }

    /// As [`Snapshot::open`], from anything; `path` names it in errors.
    ///
    /// # Errors
    /// [`ReadError`].
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

    /// The moment it was taken at.
    pub fn moment(&self) -> Moment<'_, OwnedMemory> {
        let c = &self.contents;
        Moment {
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
        }
    }
}

impl Contents {
    /// Everything inside the frame.
    pub(crate) fn take(from: &mut Source<impl Read>) -> Result<Contents, TakeError> {
        from.part("kernel");
        let release = from.text(MAX_NAME)?;
        let text = (VirtAddr(from.u64()?), PhysAddr(from.u64()?), from.u64()?);
        if text.0.0 % PAGE_SIZE != 0 || text.1.0 % PAGE_SIZE != 0 {
            from.flaw::<()>(format!("no image of a kernel starts at {:?}, {:?}", text.0, text.1))?;
        }
        let symbol_count = from.u64()?;

        from.part("symbols");
        let mut symbols = None;
        if from.flag()? {
            let map = from.bytes(MAX_SYMBOL_BYTES)?;
            let btf = if from.flag()? { Some(from.bytes(MAX_SYMBOL_BYTES)?) } else { None };
            symbols = Some((map, btf));
        }

        from.part("time");
        let (millis, min_age, [flags]) = (from.u64()?, Duration::from_millis(from.u64()?), from.array()?);
        let (unseen, halted) = (flags & 1 != 0, flags & 2 != 0);
        if flags > 3 {
            from.flaw::<()>(format!("{flags} has flags that are none"))?;
        }

        from.part("counters");
        let counters = Counters {
            allocations: from.u64()?,
            frees: from.u64()?,
            unknown_frees: from.u64()?,
            missed_frees: from.u64()?,
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
            .map(|_| Ok((from.u64()?, Arc::new(take_module(from)?))))
            .collect::<Result<_, Flaw>>()?;

        from.part("tests");
        let tests = guest_tests::take(from)?;

        from.part("stacks");
        let stacks = Stacks::default();
        for number in 1..=from.count(MAX_STACKS)? {
            let frames = (0..from.count(MAX_FRAMES)?).map(|_| from.u64()).collect::<Result<Vec<_>, _>>()?;
            // Each once, so that numbers are those that objects have.
            if stacks.intern(&frames).0 as usize != number {
                from.flaw::<()>(format!("stack {number} is empty, or there twice"))?;
            }
        }

        from.part("objects");
        let objects = objects::take(from)?;

        from.part("memory");
        let memory = ram::take(from)?;

        from.part("end");
        if from.array()? != END {
            from.flaw::<()>("more contents than there should be")?;
        }
        Ok(Contents {
            release,
            text,
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

    /// Finds the kernel as the plugin found it, and makes sure that it is the same.
    pub(crate) fn find_kernel(&self, path: &Path) -> Result<Kernel, ReadError> {
        let fail = |why| ReadError::Kernel { path: path.into(), why };
        let file = match &self.symbols {
            Some((map, btf)) => Some(SymbolFile::from_map(path, map, btf.clone()).map_err(|why| fail(why.into()))?),
            None => None,
        };
        let (at, phys, len) = self.text;
        let image = phys.0..phys.0.saturating_add(len);
        // The rest of RAM was empty when the plugin searched, and may by now hold anything, other kernels too.
        let image = Image { ranges: [image], memory: &self.memory };
        let kernel = Kernel::find(&image, at, phys, file.as_ref()).map_err(fail)?;
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

/// Guest RAM that is said to be the kernel's image only.
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
