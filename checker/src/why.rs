//! Why an object counts as referenced: the path of references from a root that the scan found
//! first.
//!
//! If a leak is not reported, some word looks like a reference to it. The path shows that word.

use crate::blocks::Blocks;
use detector::guest_tests::shown;
use detector::objects::{Kind, Object};
use detector::scan::Origin;
use guest_symbols::Kernel;
use guest_symbols::memory::{PAGE_SIZE, PhysAddr, StoppedMemory, VirtAddr};
use guest_symbols::pages::{Maps, Pages, Use};
use guest_symbols::percpu::PerCpu;
use guest_symbols::slab::Cache;

/// Most steps that are shown of one path.
const MAX_STEPS: usize = 16;
/// Number of words shown around a reference: in total for an object, on each side for a root.
const AROUND: u64 = 4;

/// One place on the path.
#[derive(Debug, Clone)]
pub enum Holder {
    /// Another live object. The reference is `offset` bytes into it.
    Object {
        /// Virtual address, or `__percpu` pointer.
        addr: u64,
        /// Bytes.
        size: u64,
        /// Its entry in the live map.
        object: Object,
        /// The name of its slab cache.
        cache: Option<String>,
        /// Offset of the reference in bytes. `None` if a rule and not a word is the reference.
        offset: Option<u64>,
        /// The aligned group of words that the reference is in.
        words: Vec<u64>,
    },
    /// Memory that the kernel owns and that is no object.
    Root {
        /// Guest physical address of the word.
        phys: PhysAddr,
        /// Use of its page.
        usage: Use,
        /// The static or per-CPU variable that it is in, with the offset in bytes.
        symbol: Option<(String, u64)>,
        /// The words around it. The first [`AROUND`] of them precede it.
        words: Vec<u64>,
    },
    /// A register of a CPU.
    Register,
    /// The table of objects that the kernel declares not to be leaks, or a suppression.
    Known,
}

/// An object, and why it counts as referenced.
#[derive(Debug, Clone)]
pub struct Path {
    /// Its virtual address, or `__percpu` pointer.
    pub addr: u64,
    /// Its size in bytes.
    pub size: u64,
    /// Its entry in the live map.
    pub object: Object,
    /// The holders, from the direct one up to the root. Empty if nothing refers to the object.
    pub holders: Vec<Holder>,
}

/// Finds the path of every object that `wanted` picks.
pub(crate) fn paths<M: StoppedMemory>(
    kernel: &Kernel,
    memory: &M,
    pages: &Pages,
    blocks: &Blocks<'_, M>,
    origins: &[Option<Origin>],
    wanted: &crate::Wanted,
) -> Vec<Path> {
    let mut paths = Vec::new();
    for (i, block) in blocks.blocks.iter().enumerate() {
        if !block.seen() || !wanted(block, blocks.object(block)) {
            continue;
        }
        let mut holders = Vec::new();
        let mut at = i as u32;
        while let Some(origin) = origins[at as usize].filter(|_| holders.len() < MAX_STEPS) {
            match origin {
                Origin::Block(holder) => {
                    holders.push(object(kernel, memory, pages, blocks, holder, Some(at)));
                    at = holder;
                    if blocks.rules.is_weak(at) {
                        break;
                    }
                }
                Origin::Rule(holder) => {
                    holders.push(object(kernel, memory, pages, blocks, holder, None));
                    at = holder;
                }
                Origin::Root(phys) => {
                    holders.push(root(kernel, memory, pages, &blocks.percpu, PhysAddr(phys)));
                    break;
                }
                Origin::Register => {
                    holders.push(Holder::Register);
                    break;
                }
                Origin::Given => {
                    holders.push(Holder::Known);
                    break;
                }
            }
        }
        paths.push(Path { addr: block.addr, size: block.size, object: *blocks.object(block), holders });
    }
    paths
}

/// Describes block `number`, with the offset of its first reference to block `to`.
fn object<M: StoppedMemory>(
    kernel: &Kernel,
    memory: &M,
    pages: &Pages,
    blocks: &Blocks<'_, M>,
    number: u32,
    to: Option<u32>,
) -> Holder {
    let b = &blocks.blocks[number as usize];
    let cache = Some(b.addr).filter(|_| b.kind == Kind::Slab);
    let cache = cache.and_then(|addr| Cache::read(kernel, memory, pages.slab_cache(memory, VirtAddr(addr))?));
    let mut words = Vec::new();
    blocks.bytes(number, &mut |bytes| words.extend(bytes.as_chunks::<8>().0.iter().map(|w| u64::from_le_bytes(*w))));
    let refers =
        |&word: &u64| to.is_some() && (blocks.addresses.find(word) == to || blocks.percpu_pointers.find(word) == to);
    let at = words.iter().position(refers);
    let first = at.unwrap_or(0) & !(AROUND as usize - 1);
    let words = words.into_iter().skip(first).take(AROUND as usize).collect();
    let cache = cache.map(|c| shown(&c.name).into_owned());
    Holder::Object {
        addr: b.addr,
        size: b.size,
        object: *blocks.object(b),
        cache,
        offset: at.map(|at| 8 * at as u64),
        words,
    }
}

fn root<M: StoppedMemory>(kernel: &Kernel, memory: &M, pages: &Pages, percpu: &PerCpu, phys: PhysAddr) -> Holder {
    let first = phys.0.saturating_sub(8 * AROUND).max(phys.0 & !(PAGE_SIZE - 1));
    let words = (0..=2 * AROUND).map_while(|i| memory.read_u64(PhysAddr(first + 8 * i)).ok()).collect();
    Holder::Root { phys, usage: pages.usage(phys.pfn()), symbol: variable(kernel, memory, percpu, phys), words }
}

/// The static or per-CPU variable at a physical address, and the offset in it in bytes.
pub(crate) fn variable<M: StoppedMemory>(
    kernel: &Kernel,
    memory: &M,
    percpu: &PerCpu,
    phys: PhysAddr,
) -> Option<(String, u64)> {
    let name = |at: VirtAddr, from: &str, to: &str| {
        let inside = kernel.symbol(from)? <= at && at < kernel.symbol(to)?;
        kernel.symbols.resolve(at.0).filter(|_| inside).map(|r| (r.name.to_owned(), r.offset))
    };
    let in_image = || {
        let text = kernel.symbol("_text")?;
        name(text.offset(phys.0.wrapping_sub(kernel.image_phys(text).0)), "_text", "_end")
    };
    // Static per-CPU variables, if each CPU's are contiguous memory.
    let in_percpu = || {
        let at = Maps::read(kernel, memory).direct_map.wrapping_add(phys.0);
        let mut variables = percpu.offsets.iter().map(|o| VirtAddr(at.wrapping_sub(*o)));
        variables.find_map(|at| name(at, "__per_cpu_start", "__per_cpu_end"))
    };
    in_image().or_else(in_percpu)
}
