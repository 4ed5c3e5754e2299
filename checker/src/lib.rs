//! One leak check: lays a stopped Linux guest out as blocks, roots and rules, lets the detector mark what is
//! referenced, and collects the rest.
//!
//! It needs no QEMU: a snapshot of memory and the live objects are enough.
//!
//! - [`audit`]: the live map against the slabs
//! - [`known`]: what the kernel declares no leak
//! - [`blocks`]: live objects as blocks of guest memory
//! - [`roots`]: what the kernel owns besides them
//! - [`why`]: who keeps an object alive
//! - [`moment`]: all that a report depends on, and the check of it
//! - [`text`]: reports as they are printed

pub mod audit;
pub mod blocks;
mod dead;
pub mod known;
pub mod moment;
mod page_blocks;
pub mod roots;
mod stacks;
pub mod text;
pub mod why;

use audit::Audit;
use blocks::{Block, Blocks};
use detector::objects::Object;
use detector::report::{Checksum, Leak};
use detector::scan::{Contents, Marker};
use guest_symbols::Kernel;
use guest_symbols::memory::StoppedMemory;
use guest_symbols::pages::{Pages, PagesError};
use std::time::{Duration, Instant};

/// Why a check could not be made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum CheckError {
    /// Page frames cannot be told apart.
    #[error(transparent)]
    Pages(#[from] PagesError),
    /// Nothing to start from: the result would be that everything leaks.
    #[error("no memory of the kernel's own was found to scan from; the page descriptors at this moment make no sense")]
    NoRoots,
}

/// An unreferenced object.
pub struct Unreferenced {
    /// What the live map knows of it.
    pub object: Object,
    /// The report, whose frames are still to be filled in.
    pub leak: Leak,
}

/// The result of a check.
#[derive(Default)]
pub struct Outcome {
    /// Every unreferenced object, in the order of allocation.
    pub unreferenced: Vec<Unreferenced>,
    /// Live objects, and their bytes.
    pub live: (u64, u64),
    /// Objects in the live map that lie in no slab any more: their free was missed.
    pub stale: u64,
    /// Unreferenced objects left out because the kernel declares them no leak, each with the reason.
    pub known: Vec<&'static str>,
    /// The live map held against the slabs, where those can be walked.
    pub audit: Option<Audit>,
    /// Of every object that was asked for, who refers to it.
    pub paths: Vec<why::Path>,
    /// Bytes of roots read.
    pub root_bytes: u64,
    /// Bytes of live objects read.
    pub heap_bytes: u64,
    /// Time of the whole check.
    pub time: Duration,
}

/// What a check is to be made of.
#[derive(Clone, Copy)]
pub struct Request<'a> {
    /// The live map's snapshot, ascending by address.
    pub objects: &'a [(u64, Object)],
    /// The CPUs' registers, 17 words each: rax, rbx, rcx, rdx, rsi, rdi, rbp, rsp, r8 to r15, rip. Empty where they are not
    /// known.
    pub registers: &'a [u64],
    /// Whether objects that only the kernel's own books know may be leaks too.
    pub unseen: bool,
    /// Picks the objects whose [`why::Path`] is to be told.
    pub wanted: Option<&'a dyn Fn(&Object) -> bool>,
}

/// Makes one check of a stopped guest.
///
/// # Errors
/// [`CheckError`].
pub fn check(kernel: &Kernel, memory: &impl StoppedMemory, request: Request<'_>) -> Result<Outcome, CheckError> {
    let start = Instant::now();
    let pages = Pages::read(kernel, memory)?;
    let blocks = Blocks::new(kernel, memory, &pages, request.objects, request.registers);
    let mut marker = Marker::new(&blocks.addresses, &blocks.percpu_pointers, &blocks.rules);
    roots::scan(kernel, memory, &pages, &blocks, &mut marker);
    request.registers.iter().for_each(|&word| marker.root_word(word));
    marker.run(&blocks);
    let known = known::mark(kernel, &blocks, &mut marker);
    let marks = marker.finish(&blocks);
    if marks.root_bytes == 0 {
        return Err(CheckError::NoRoots);
    }
    let paths = request.wanted.map(|wanted| why::paths(kernel, memory, &pages, &blocks, &marks.marked, wanted));
    let mut unreferenced = Vec::new();
    for (i, block) in blocks.blocks.iter().enumerate() {
        if marks.marked[i].is_some() || blocks.rules[i].weak || !(block.seen || request.unseen) {
            continue;
        }
        unreferenced.push(describe(&blocks, i as u32, block));
    }
    unreferenced.sort_by_key(|u| u.object.sequence);
    Ok(Outcome {
        unreferenced,
        live: (blocks.blocks.len() as u64, blocks.blocks.iter().map(|b| b.size).sum()),
        stale: blocks.stale,
        audit: blocks.audit,
        known,
        paths: paths.unwrap_or_default(),
        root_bytes: marks.root_bytes,
        heap_bytes: marks.heap_bytes,
        time: start.elapsed(),
    })
}

fn describe<M: StoppedMemory>(blocks: &Blocks<'_, M>, number: u32, block: &Block) -> Unreferenced {
    let mut crc = Checksum::default();
    let mut head = Vec::new();
    blocks.bytes(number, &mut |bytes| {
        crc.add(bytes);
        if head.len() < 32 {
            head.extend_from_slice(&bytes[..bytes.len().min(32 - head.len())]);
        }
    });
    let object = block.object;
    let comm = object.comm.split(|&b| b == 0).next().unwrap_or_default();
    let leak = Leak {
        addr: block.addr,
        size: block.size,
        comm: String::from_utf8_lossy(comm).into_owned(),
        pid: object.pid,
        jiffies: object.jiffies,
        head,
        cpu: (object.kind == detector::objects::Kind::Percpu).then_some(0),
        crc: crc.value(),
        frames: Vec::new(),
    };
    Unreferenced { object, leak }
}

// The detector reads blocks through the rules; reports read them whole.
impl<M: StoppedMemory> Contents for Blocks<'_, M> {
    fn read(&self, block: u32, each: &mut dyn FnMut(&[u8])) {
        self.references(block, each);
    }
}
