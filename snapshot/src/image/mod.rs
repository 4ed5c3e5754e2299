//! Memory images of other programs: the RAM of a guest or of a machine that crashed.
//!
//! - ELF cores: QEMU's dump-guest-memory, virsh dump --memory-only, /proc/vmcore, makedumpfile -E
//! - kdump's compressed format, of QEMU and makedumpfile, also flattened
//!
//! Everything else that a check needs is found in the RAM: the kernel, its symbols and its types.
//! Nothing tracked the allocations, so the kernel's allocator metadata says what is live.

mod allocations;
mod elf;
mod error;
mod file;
mod find;
mod kdump;
mod memory;
mod notes;

pub use error::{Flaw, ImageError};
pub use memory::{ImageMemory, Missed};

use allocations::Recorded;
use checker::Outcome;
use checker::guest_state::{Counters, GuestState};
use checker::names::Load;
use detector::guest_tests::{Tests, shown};
use detector::stacks::StackId;
use file::{Bytes, FLATTENED, Flattened, Plain};
use guest_symbols::Kernel;
use guest_symbols::memory::{PhysAddr, VirtAddr};
use guest_symbols::modules::{self, Module};
use memory::{PageSource, RangeError};
use notes::Notes;
use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::fs::File;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

/// What a file has, before the kernel is found.
pub(crate) struct Parts {
    /// Physical addresses of RAM, in any order.
    ranges: Vec<Range<u64>>,
    source: Box<dyn PageSource>,
    /// Areas of notes.
    notes: Vec<Vec<u8>>,
    vmcoreinfo: Option<String>,
    /// A virtual and the physical address in the kernel's image, if a header has them.
    image: Option<(VirtAddr, PhysAddr)>,
    /// Whether the program that wrote the file had no room for all.
    incomplete: bool,
    /// Bytes of the file.
    size: u64,
}

/// An image whose kernel was found.
pub struct Image {
    kernel: Kernel,
    memory: ImageMemory,
    recorded: Recorded,
    registers: Vec<u64>,
    modules: Vec<Load>,
    tests: Tests,
    troubles: Vec<String>,
}

/// Whether the file is a snapshot of libleak and not an image of another program.
///
/// # Errors
/// [`ImageError::Open`].
pub fn is_snapshot(path: &Path) -> Result<bool, ImageError> {
    let open = |why| ImageError::Open { path: path.into(), why };
    let mut magic = Vec::new();
    std::io::Read::read_to_end(&mut std::io::Read::take(File::open(path).map_err(open)?, 8), &mut magic)
        .map_err(open)?;
    Ok(magic == crate::MAGIC)
}

impl Image {
    /// Opens an image and finds the kernel in it.
    ///
    /// # Errors
    /// [`ImageError`], which names `path`.
    pub fn open(path: &Path) -> Result<Image, ImageError> {
        let open = |why| ImageError::Open { path: path.into(), why };
        let file = Plain::new(File::open(path).map_err(open)?).map_err(open)?;
        Image::of(Box::new(file), path)
    }

    /// As [`Image::open`], from bytes. `path` names them in errors.
    ///
    /// # Errors
    /// [`ImageError`], which names `path`.
    pub fn of_bytes(bytes: Vec<u8>, path: &Path) -> Result<Image, ImageError> {
        Image::of(Box::new(bytes), path)
    }

    fn of(file: Box<dyn Bytes>, path: &Path) -> Result<Image, ImageError> {
        let flaw = |why| ImageError::Flaw { path: path.into(), why };
        let parts = recognize(file).map_err(flaw)?.ok_or_else(|| ImageError::Unknown { path: path.into() })?;
        let Parts { ranges, source, notes, vmcoreinfo, image, incomplete, size } = parts;
        let mut notes = Notes::read(&notes);
        notes.vmcoreinfo = vmcoreinfo.or(notes.vmcoreinfo);
        let memory = ImageMemory::new(ranges, source, size).map_err(|why| match why {
            RangeError::Empty => flaw(Flaw::Empty),
            RangeError::TooMany(bytes) => ImageError::NoRoom { path: path.into(), bytes },
        })?;
        let kernel = find::kernel(&memory, image, &notes).ok_or_else(|| ImageError::NoKernel { path: path.into() })?;
        let kernel = kernel.map_err(|why| ImageError::Kernel { path: path.into(), why })?;
        let loaded = modules::list(&kernel, &memory).into_iter().filter_map(|at| Module::read(&kernel, &memory, at));
        let programs = modules::entries(&kernel, &memory, "bpf_kallsyms", kernel.offset_of("bpf_ksym", "lnode"));
        let programs = programs.into_iter().filter_map(|at| Module::read_bpf(&kernel, &memory, at));
        let modules = loaded.chain(programs).map(|module| Load { sequence: 0, module: Arc::new(module) }).collect();
        let mut troubles = Vec::new();
        if incomplete {
            troubles.push("the image is incomplete: there was no room for all of it when it was written".to_owned());
        }
        if notes.registers.is_empty() {
            troubles.push(
                "the image has no registers of CPUs, so objects that were just allocated may be reported".to_owned(),
            );
        }
        Ok(Image {
            recorded: allocations::read(&kernel, &memory),
            kernel,
            memory,
            registers: notes.registers,
            modules,
            tests: Tests::default(),
            troubles,
        })
    }

    /// The guest at the moment of the image. All its objects may be leaks.
    pub fn moment(&self) -> GuestState<'_, ImageMemory> {
        GuestState {
            kernel: &self.kernel,
            memory: &self.memory,
            objects: &self.recorded.objects,
            stacks: &self.recorded.stacks,
            lines: None,
            registers: &self.registers,
            modules: &self.modules,
            tests: &self.tests,
            counters: Counters::default(),
            troubles: &self.troubles,
            millis: self.recorded.millis,
            min_age: Duration::ZERO,
            unseen: true,
            halted: true,
            traces: None,
        }
    }

    /// The pages that were wanted until now and that the image lacks, as reasons not to trust a
    /// report.
    pub fn missed(&self) -> Vec<String> {
        let Missed { absent, damaged } = self.memory.missed();
        let mut told = Vec::new();
        if absent > 0 {
            told.push(format!(
                "{absent} pages that the check needs are not in the image; objects referenced from there may be \
                 reported wrongly. A makedumpfile that is older than the kernel leaves out too much: use a newer one"
            ));
        }
        if damaged > 0 {
            told.push(format!(
                "{damaged} pages that the check needs are damaged in the image; objects referenced from there may be \
                 reported wrongly"
            ));
        }
        told
    }
}

/// Most caches that the advice names.
const MAX_CACHES: usize = 8;

impl Image {
    /// What to put on the kernel's command line, so that the next image shows who allocates the
    /// leaks. `None` if all slab objects among them have a stack.
    pub fn advice(&self, outcome: &Outcome) -> Option<String> {
        let mut caches: BTreeMap<&str, u64> = BTreeMap::new();
        for leak in outcome.unreferenced.iter().filter(|u| u.object.stack() == StackId::NONE) {
            let Some(cache) = leak.leak.cache.as_deref() else { continue };
            *caches.entry(cache).or_default() += 1;
        }
        let recorded = allocations::caches(&self.kernel, &self.memory);
        caches.retain(|name, _| !recorded.contains(*name));
        let mut caches: Vec<(&str, u64)> = caches.into_iter().collect();
        caches.sort_by_key(|(_, count)| Reverse(*count));
        let names: Vec<_> = caches.iter().take(MAX_CACHES).map(|(name, _)| shown(name)).collect();
        if names.is_empty() {
            return None;
        }
        Some(format!(
            "libleak: note: put slub_debug=U,{} on the kernel's command line, and the next image shows who allocates \
             these leaks; slub_debug=U does so for all slab caches and is slow\n",
            names.join(",")
        ))
    }
}

/// Reads the headers of a known format.
fn recognize(file: Box<dyn Bytes>) -> Result<Option<Parts>, Flaw> {
    let starts = |file: &dyn Bytes, magic: &[u8]| {
        let mut start = vec![0; magic.len()];
        file.read_at(&mut start, 0).is_ok() && start == magic
    };
    let file = if starts(&*file, FLATTENED) { Box::new(Flattened::new(file)?) } else { file };
    Ok(match () {
        () if starts(&*file, elf::MAGIC) => Some(elf::open(file)?),
        () if starts(&*file, kdump::MAGIC) => Some(kdump::open(file)?),
        () => None,
    })
}
