//! Who keeps an object alive: the path of references from a root that a scan found first.
//!
//! A leak that is not reported has some word somewhere that looks like a reference to it. This tells which.

use crate::blocks::Blocks;
use detector::guest_tests::shown;
use detector::objects::{Kind, Object};
use detector::scan::Origin;
use guest_symbols::Kernel;
use guest_symbols::memory::{PAGE_SIZE, PhysAddr, StoppedMemory, VirtAddr};
use guest_symbols::pages::{Maps, Pages, Use};
use guest_symbols::percpu::PerCpu;
use guest_symbols::slab::Cache;

/// Steps told of one path.
const MAX_STEPS: usize = 16;
/// Words told around a reference: in an object as many, around a root's word as many on each side.
const AROUND: u64 = 4;

/// One place on the path.
#[derive(Debug, Clone)]
pub enum Holder {
    /// Another live object, `offset` bytes into which the reference stands.
    Object {
        /// Virtual address, or `__percpu` pointer.
        addr: u64,
        /// Bytes.
        size: u64,
        /// What the live map knows of it.
        object: Object,
        /// Its slab cache.
        cache: Option<String>,
        /// Where in it the reference stands; `None` if only a rule leads on from it.
        offset: Option<u64>,
        /// The aligned run of words that the reference stands in.
        words: Vec<u64>,
    },
    /// Memory that the kernel owns and that is no object.
    Root {
        /// Guest physical address of the word.
        phys: PhysAddr,
        /// What the page is used for.
        usage: Use,
        /// The variable, static or per-CPU, that it lies in, with the offset.
        symbol: Option<(String, u64)>,
        /// The words around it, the first [`AROUND`] of them before it.
        words: Vec<u64>,
    },
    /// A register of a CPU.
    Register,
    /// The table of what the kernel declares no leak, or a suppression.
    Known,
}

/// An object, and why it counts as referenced.
#[derive(Debug, Clone)]
pub struct Path {
    /// Its address, its size in bytes, and what the live map knows of it.
    pub of: (u64, u64, Object),
    /// Who refers to it, who refers to that, and so on to the root. Empty if nobody does.
    pub holders: Vec<Holder>,
}

/// Tells the path of every object that `wanted` picks.
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
        paths.push(Path { of: (block.addr, block.size, *blocks.object(block)), holders });
    }
    paths
}

/// Block `number`, and where in it the first reference to block `to` stands.
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
    let name = |at: VirtAddr, from: &str, to: &str| {
        let inside = kernel.symbol(from)? <= at && at < kernel.symbol(to)?;
        kernel.symbols.resolve(at.0).filter(|_| inside).map(|r| (r.name.to_owned(), r.offset))
    };
    let in_image = || {
        let text = kernel.symbol("_text")?;
        name(text.offset(phys.0.wrapping_sub(kernel.image_phys(text).0)), "_text", "_end")
    };
    // Static per-CPU variables, where they are one run of memory.
    let in_percpu = || {
        let at = Maps::read(kernel, memory).direct_map.wrapping_add(phys.0);
        let mut variables = percpu.offsets.iter().map(|o| VirtAddr(at.wrapping_sub(*o)));
        variables.find_map(|at| name(at, "__per_cpu_start", "__per_cpu_end"))
    };
    let symbol = in_image().or_else(in_percpu);
    Holder::Root { phys, usage: pages.usage(phys.pfn()), symbol, words }
}
