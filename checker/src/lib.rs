//! One leak check. It lays out a stopped Linux guest as blocks, roots and rules. The detector then
//! marks what is referenced, and the rest is collected.
//!
//! A check needs no QEMU. A snapshot of memory and the live objects are enough.
//!
//! - [`audit`]: the live map compared with the slabs
//! - [`not_leaks`]: objects that the kernel declares not to be leaks
//! - [`blocks`]: live objects as blocks of guest memory
//! - [`roots`]: memory that the kernel owns besides objects
//! - [`loss`]: where leaks were lost
//! - [`why`]: the references that keep an object alive
//! - [`guest_state`]: everything that a report depends on, and the check of it
//! - [`counters`]: the numbers of events before the check
//! - [`names`]: names of addresses
//! - [`report`]: the result, ready to be written
//! - [`sites`]: live objects by allocation site, and the growth of sites
//! - [`text`]: the summary line and the lines after it
//! - [`threads`]: the threads that make the check
//! - [`troubles`]: reasons to doubt the result

#![forbid(unsafe_code)]

pub mod allocations;
pub mod audit;
mod block;
pub mod blocks;
pub mod counters;
mod guess;
pub mod guest_state;
pub mod loss;
mod mempools;
pub mod names;
pub mod not_leaks;
mod prologue;
pub mod report;
pub mod roots;
mod semaphores;
pub mod sites;
mod skips;
mod surroundings;
pub mod text;
pub mod threads;
pub mod troubles;
pub mod why;

use allocations::Allocations;
use audit::Audit;
use blocks::{Block, Blocks, Caches};
use detector::Count;
use detector::graph::{self, Leaked, Verdict};
use detector::guest_tests::Tests;
use detector::objects::{Kind, Object};
use detector::report::{Checksum, Leak};
use detector::scan::{self, Contents, Marker, Options};
use guest_symbols::Kernel;
use guest_symbols::memory::{StoppedMemory, VirtAddr};
use guest_symbols::pages::{Maps, Pages, PagesError, Use};
use loss::{Traced, Traces};
use std::collections::BTreeMap;
use std::ops::Range;
use std::time::{Duration, Instant};
use surroundings::StaleWords;
use troubles::Trouble;

/// Cache lines to prefetch of an object that is read soon. The CPU prefetches the lines after them
/// by itself.
const PREFETCH_LINES: usize = 4;
/// In bytes.
const CACHE_LINE: usize = 64;

/// Why a check could not be made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum CheckError {
    /// The page frames cannot be classified.
    #[error(transparent)]
    Pages(#[from] PagesError),
    /// There are no roots. Without them every object would be reported.
    #[error("no kernel memory was found to scan from; the page descriptors are not valid at this time")]
    NoRoots,
    /// A variable that holds the address of a mapping is wrong.
    #[error(
        "{0} is not the address of the kernel's mapping: it is too early in its boot, or the kernel has corrupted its memory"
    )]
    Map(&'static str),
    /// The host, or the user's limit, gives too little memory.
    #[error(
        "a check needs about {0} MiB of host memory, which are not available; give QEMU more memory, or raise max-memory="
    )]
    NoMemory(u64),
}

/// An unreferenced object.
pub struct Unreferenced {
    /// What the live map knows of it.
    pub object: Object,
    /// Whether no other leak refers to it.
    pub direct: bool,
    /// Its part of the report, without stack, type and age.
    pub leak: Leak,
    /// What the history of references tells of it.
    pub traced: Option<Traced>,
}

/// The result of a check.
#[derive(Default)]
pub struct Outcome {
    /// Every unreferenced object, in order of allocation.
    pub unreferenced: Vec<Unreferenced>,
    /// Live objects.
    pub live: Count,
    /// Objects in the live map that are in no slab any more. Their frees were missed.
    pub stale: u64,
    /// The reason for each unreferenced object that was left out because the kernel declares it not
    /// to be a leak.
    pub not_leaks: Vec<&'static str>,
    /// Unreferenced objects that were suppressed, by the number that [`Request::suppressed`]
    /// returned.
    pub suppressed: BTreeMap<usize, Count>,
    /// The comparison of the live map with the slabs. `None` if the slabs cannot be walked.
    pub audit: Option<Audit>,
    /// The path of references to each object that was asked for.
    pub paths: Vec<why::Path>,
    /// The tests that the guest has run before the check.
    pub tests: Tests,
    /// Why the result is unreliable. Each is a sentence without its full stop. Empty for a guest
    /// that is not corrupted.
    pub troubles: Vec<String>,
    /// Bytes of roots that were read.
    pub root_bytes: u64,
    /// Bytes of live objects that were read.
    pub heap_bytes: u64,
    /// Duration of the whole check.
    pub time: Duration,
}

/// Whether the path to a block is wanted. The second argument is the block's object in the live
/// map.
pub type Wanted<'a> = dyn Fn(&Block, &Object) -> bool + 'a;

/// The number of the suppression that matches an unreferenced object, if there is one.
pub type Suppressed<'a> = dyn Fn(&Object) -> Option<usize> + 'a;

/// The input of a check.
#[derive(Clone, Copy)]
pub struct Request<'a> {
    /// Snapshot of the live map.
    pub allocations: Allocations<'a>,
    /// The CPUs' registers, 17 words each: rax, rbx, rcx, rdx, rsi, rdi, rbp, rsp, r8 to r15, rip.
    /// Empty if they are not known.
    pub registers: &'a [u64],
    /// Whether objects whose allocation was not seen may be leaks.
    pub unseen: bool,
    /// Picks the objects whose [`why::Path`] is wanted.
    pub wanted: Option<&'a Wanted<'a>>,
    /// Picks the unreferenced objects to suppress. Objects that are reachable from them are
    /// suppressed too.
    pub suppressed: Option<&'a Suppressed<'a>>,
    /// The history of references, if there is one.
    pub traces: Option<&'a dyn Traces>,
}

/// Makes one check of a stopped guest.
///
/// # Errors
/// [`CheckError`].
#[inline(never)]
pub fn check(kernel: &Kernel, memory: &impl StoppedMemory, request: Request<'_>) -> Result<Outcome, CheckError> {
    let start = Instant::now();
    let mut steps = Steps(start);
    let pages = Pages::read(kernel, memory)?;
    is_mapped(kernel, memory, &pages)?;
    steps.done("page descriptors");
    let mut blocks = blocks::lay_out(kernel, memory, &pages, request.allocations, request.registers);
    steps.done("blocks");
    let stale_words = StaleWords::of(kernel, &blocks);
    let options = Options { origins: request.wanted.is_some(), ..Options::default() };
    let mut marker = Marker::new(&blocks.addresses, &blocks.percpu_pointers, &blocks.rules, &stale_words, options);
    let unmapped = roots::scan(kernel, memory, &pages, &blocks, &mut marker);
    request.registers.iter().for_each(|&word| marker.root_word(word));
    steps.done("roots");
    marker.run(&blocks);
    stale_words.mempools.without_a_pool().for_each(|array| marker.root_block(array));
    marker.run(&blocks);
    steps.done("marking");
    let not_leaks = not_leaks::mark(kernel, &blocks, &mut marker);
    marker.run(&blocks);
    let suppressed = suppress(&blocks, &mut marker, request);
    let marks = marker.finish(&blocks);
    if marks.root_bytes == 0 {
        return Err(CheckError::NoRoots);
    }
    steps.done("objects that are not leaks or suppressed");
    let paths = request.wanted.map(|wanted| why::paths(kernel, memory, &pages, &blocks, &marks.origins, wanted));
    let mut leaked: Vec<u32> = marks.marked.zeros().filter(|&i| may_leak(&blocks, i, request)).collect();
    leaked.sort_by_key(|&i| blocks.object(&blocks.blocks[i as usize]).sequence());
    let verdicts = judge(&blocks, &leaked);
    let mut caches = Caches::new();
    let trace = |i| loss::traced(kernel, memory, &pages, &blocks, request.traces?, i);
    let described = leaked.iter().zip(verdicts).map(|(&i, v)| describe(kernel, &blocks, &mut caches, i, v));
    let described = described.zip(&leaked).map(|(u, &i)| Unreferenced { traced: trace(i), ..u });
    let unreferenced = described.collect();
    let mut troubles = std::mem::take(&mut blocks.troubles);
    troubles.count(unmapped, Trouble::Unmapped);
    Ok(Outcome {
        unreferenced,
        live: Count { objects: blocks.blocks.len() as u64, bytes: blocks.blocks.iter().map(|b| b.size).sum() },
        stale: blocks.stale,
        audit: blocks.audit,
        not_leaks,
        suppressed,
        paths: paths.unwrap_or_default(),
        tests: Tests::default(),
        troubles: troubles.told(),
        root_bytes: marks.root_bytes,
        heap_bytes: marks.heap_bytes,
        time: start.elapsed(),
    })
}

/// Whether the direct map and the page descriptors are where the kernel's variables place them. The
/// frame of the kernel's page tables must be mapped in the direct map. Its page descriptor must be
/// reserved.
fn is_mapped(kernel: &Kernel, memory: &impl StoppedMemory, pages: &Pages) -> Result<(), CheckError> {
    let tables = kernel.page_tables(memory);
    let direct = VirtAddr(Maps::read(kernel, memory).direct_map.wrapping_add(tables.root.0));
    if !tables.translate(memory, direct).is_ok_and(|t| t.phys == tables.root) {
        return Err(CheckError::Map("page_offset_base"));
    }
    match pages.usage(tables.root.pfn()) {
        Use::Reserved => Ok(()),
        _ => Err(CheckError::Map("vmemmap_base")),
    }
}

/// Logs how long each step took.
struct Steps(Instant);

impl Steps {
    fn done(&mut self, what: &str) {
        let now = Instant::now();
        log::debug!("{what}: {:?}", now - std::mem::replace(&mut self.0, now));
    }
}

/// Whether an unreferenced block is a leak.
fn may_leak<M: StoppedMemory>(blocks: &Blocks<'_, M>, number: u32, request: Request<'_>) -> bool {
    !blocks.rules.is_weak(number) && (blocks.blocks[number as usize].seen() || request.unseen)
}

/// Marks the unreferenced objects that suppressions match as reachable.
fn suppress<M: StoppedMemory>(
    blocks: &Blocks<'_, M>,
    marker: &mut Marker,
    request: Request<'_>,
) -> BTreeMap<usize, Count> {
    let mut counts = BTreeMap::<usize, Count>::new();
    let Some(suppressed) = request.suppressed else { return counts };
    let leaked: Vec<u32> = marker.unmarked().filter(|&i| may_leak(blocks, i, request)).collect();
    for i in leaked {
        let block = &blocks.blocks[i as usize];
        if let Some(reason) = suppressed(blocks.object(block)) {
            *counts.entry(reason).or_default() += Count { objects: 1, bytes: block.size };
            marker.root_block(i);
        }
    }
    counts
}

/// Distinguishes direct from indirect leaks.
fn judge<M: StoppedMemory>(blocks: &Blocks<'_, M>, leaked: &[u32]) -> Vec<Verdict> {
    let leak = |&block: &u32| Leaked { block, bytes: blocks.blocks[block as usize].size };
    let leaks: Vec<Leaked> = leaked.iter().map(leak).collect();
    graph::judge(&leaks, |block, each| {
        blocks.references(block, &mut |_, bytes| {
            for word in bytes.as_chunks::<8>().0.iter().map(|w| u64::from_le_bytes(*w)) {
                blocks.addresses.find(word).into_iter().for_each(&mut *each);
                blocks.percpu_pointers.find(word).into_iter().for_each(&mut *each);
            }
        });
        blocks.rules.next(block).into_iter().for_each(each);
    })
}

fn describe<M: StoppedMemory>(
    kernel: &Kernel,
    blocks: &Blocks<'_, M>,
    caches: &mut Caches,
    number: u32,
    verdict: Verdict,
) -> Unreferenced {
    let block = &blocks.blocks[number as usize];
    let mut crc = Checksum::default();
    let mut head = Vec::new();
    blocks.bytes(number, &mut |bytes| {
        crc.add(bytes);
        if head.len() < 32 {
            head.extend_from_slice(&bytes[..bytes.len().min(32 - head.len())]);
        }
    });
    let object = *blocks.object(block);
    let leak = Leak {
        addr: block.addr,
        size: block.size,
        kind: object.kind(),
        cache: blocks.cache(kernel, caches, block),
        guess: None,
        comm: text::comm(blocks.allocations.objects, &object),
        pid: object.pid(),
        tgid: object.tgid(),
        cpu: object.cpu(),
        jiffies: blocks.allocations.objects.jiffies(&object),
        age: 0,
        head,
        shown_cpu: (object.kind() == Kind::Percpu).then_some(0),
        crc: crc.value(),
        retains: verdict.retains,
        loss: None,
    };
    Unreferenced { object, direct: verdict.direct, leak, traced: None }
}

// The detector reads blocks with the rules applied. Reports read them whole.
impl<M: StoppedMemory> Contents for Blocks<'_, M> {
    fn read(&self, block: u32, each: &mut dyn FnMut(u64, &[u8])) {
        self.references(block, &mut |at, bytes| each(at.0, bytes));
    }

    fn place(&self, block: u32) -> Range<u64> {
        let block = &self.blocks[block as usize];
        // If blocks overlap, an address may belong to another block.
        let is_its_own = block.kind != Kind::Percpu && !self.addresses.overlaps();
        if is_its_own { block.addr..block.addr.saturating_add(block.size) } else { 0..0 }
    }

    fn prefetch(&self, block: u32) {
        let block = &self.blocks[block as usize];
        if block.kind != Kind::Slab {
            return;
        }
        self.virtual_bytes(Kind::Slab, VirtAddr(block.addr), block.size, &mut |_, bytes| {
            bytes.chunks(CACHE_LINE).take(PREFETCH_LINES).for_each(scan::prefetch);
        });
    }
}
