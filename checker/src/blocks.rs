//! Live objects as blocks of guest memory: where their bytes are, and which bytes are not
//! references.

mod allocation_sites;
mod debug_options;
mod layout;
mod pages;
mod rules;
mod stacks;
mod stale_words;

use crate::allocations::Allocations;
use crate::audit::Audit;
pub use crate::block::Block;
use crate::skips::Skips;
use crate::troubles::{Trouble, Troubles};
use detector::guest_tests::shown;
use detector::index::{Index, Span};
use detector::objects::{Kind, Object};
use detector::scan::Rules;
use guest_symbols::Kernel;
use guest_symbols::allocators::kfence;
use guest_symbols::kasan;
use guest_symbols::memory::{PAGE_SIZE, PhysAddr, StoppedMemory, VirtAddr};
use guest_symbols::pages::{Pages, Use};
use guest_symbols::paging::PageTables;
use guest_symbols::percpu::PerCpu;
use guest_symbols::slab::Cache;
use guest_symbols::slab_walk;
use guest_symbols::vmap;
pub use layout::lay_out;
use std::collections::{HashMap, HashSet};
use std::ops::Range;

/// The flag bits that `percpu_ref` keeps in the low bits of a `__percpu` pointer
/// (include/linux/percpu-refcount.h).
///
/// Up to 6.14 a `__percpu` pointer is a small number, like sizes and flags. Interior pointers would
/// match many words that are not pointers. Some blocks are referenced part by part, such as arrays
/// of percpu_counter and xt counters. These blocks are also referenced by their start. A reference
/// must therefore be the start of the block, plus at most these flags.
const POINTER_FLAGS: u64 = 4;

/// The largest per-CPU block in bytes: PCPU_MIN_UNIT_SIZE (include/linux/percpu.h).
const MAX_PERCPU: u64 = 32 << 10;

/// Words of each CPU in [`Request::registers`](crate::Request::registers), and the index of the
/// stack pointer.
const REGISTERS: usize = 17;
const RSP: usize = 7;

/// Names of slab caches by the virtual address of their `struct kmem_cache`.
pub type Caches = HashMap<VirtAddr, Option<String>>;

/// The kernel's own objects that have rules.
struct Special {
    /// Virtual addresses of every `struct slab_sheaf`.
    sheaves: Vec<VirtAddr>,
    /// Caches that kmemleak does not scan. The value is whether the cache holds kmemleak's own
    /// objects.
    untraced: HashMap<VirtAddr, bool>,
    /// Busy vmap areas. `None` if they cannot be read.
    areas: Option<Vec<vmap::Area>>,
}

/// All blocks, with what the scan needs to know about them.
pub struct Blocks<'a, M> {
    pub(crate) memory: &'a M,
    /// Snapshot of the live map.
    pub(crate) allocations: Allocations<'a>,
    pub(crate) pages: &'a Pages,
    tables: PageTables,
    /// Per-CPU memory.
    pub percpu: PerCpu,
    /// Indexed by block number.
    pub blocks: Vec<Block>,
    /// Indexed by block number.
    pub rules: Rules,
    /// Finds blocks by virtual address. A per-CPU block has one address for each CPU's copy.
    pub addresses: Index,
    /// Finds per-CPU blocks by `__percpu` pointer.
    pub percpu_pointers: Index,
    /// Byte ranges within a block that are not references.
    pub(crate) skip: Skips,
    /// The CPUs' stack pointers, and the stack pointers that they had before they switched to an
    /// interrupt stack.
    pub(crate) stack_pointers: Vec<u64>,
    /// Virtual ranges outside all blocks whose words are stale.
    pub(crate) stale_ranges: Vec<Range<u64>>,
    /// Slab caches whose objects have special rules, as addresses of their `struct kmem_cache`.
    special_caches: HashSet<VirtAddr>,
    /// Blocks from these caches, each with its cache.
    special_objects: Vec<(u32, VirtAddr)>,
    /// Objects that were left out because their memory is now used otherwise.
    pub stale: u64,
    /// The comparison of the live map with the slabs. `None` if the slabs cannot be walked.
    pub audit: Option<Audit>,
    /// Reasons to doubt the result.
    pub troubles: Troubles,
}

impl<'a, M: StoppedMemory> Blocks<'a, M> {
    /// Makes the blocks and their index. [`lay_out`] applies the rules afterwards. `registers` are
    /// as in [`Request`](crate::Request).
    fn new(
        kernel: &Kernel,
        memory: &'a M,
        pages: &'a Pages,
        allocations: Allocations<'a>,
        registers: &[u64],
        special: &mut Special,
    ) -> Self {
        let objects = allocations.objects.list();
        let mut this = Blocks {
            memory,
            allocations,
            pages,
            tables: kernel.page_tables(memory),
            percpu: PerCpu::read(kernel, memory),
            blocks: Vec::with_capacity(objects.len()),
            rules: Rules::default(),
            addresses: Index::new(Vec::new()),
            percpu_pointers: Index::new(Vec::new()),
            skip: Skips::default(),
            stale_ranges: Vec::new(),
            stack_pointers: registers.as_chunks::<REGISTERS>().0.iter().map(|cpu| cpu[RSP]).collect(),
            special_caches: HashSet::new(),
            special_objects: Vec::new(),
            stale: 0,
            audit: None,
            troubles: Troubles::default(),
        };
        this.troubles.extend(pages.corruption.iter().chain(&this.percpu.corruption).cloned());
        this.special_caches = special.untraced.keys().copied().collect();
        this.special_caches.extend(kernel.variable(memory, "vmap_area_cachep").map(VirtAddr));
        let others = (0..).zip(objects).filter(|(_, (_, o))| o.kind() != Kind::Slab).map(|(i, _)| i);
        let others: Vec<u32> = others.collect();
        this.take_slab_objects(kernel, objects, &special.sheaves);
        special.areas = this.troubles.read("vmap areas", vmap::areas(kernel, memory));
        let areas = &special.areas;
        // Nearly all objects are slab objects. They are visited only once.
        let each = || others.iter().map(|&i| (i as usize, &objects[i as usize]));
        let shadow = kasan::shadow_of_kernel(kernel, memory);
        let is_block = |at: u64, o: &Object| o.kind() != Kind::Pages && !o.is_rcu_pending() && !shadow.contains(&at);
        let blocks = each().filter(|(_, (addr, object))| is_block(*addr, object));
        for (i, (addr, object)) in blocks {
            match allocations.objects.size(*addr, object) {
                // The event of this object was not complete.
                0 => {}
                _ if object.kind() == Kind::Large && !self::pages::may_be_large(pages, *addr) => {
                    let audit = this.audit.as_mut();
                    audit.into_iter().for_each(|audit| audit.freed(kernel, allocations, object));
                }
                size => this.blocks.push(Block::of(*addr, size, object.kind(), i)),
            }
        }
        this.drop_misplaced();
        let of_kind = |kind| each().filter(move |(_, (_, o))| o.kind() == kind).map(|(_, (addr, _))| *addr).collect();
        // Without CONFIG_KASAN_VMALLOC, vmalloc() allocates the KASAN shadow of modules, and
        // nothing refers to it.
        let areas_of_blocks = areas.iter().flatten().filter(|area| !shadow.contains(&area.start));
        let areas_of_blocks = areas_of_blocks.filter_map(|a| Some((a.block?, Some(a))));
        // While a tree is rebalanced, some areas are not in it, but they are still mapped.
        let tables = this.tables;
        let in_no_area = |addr: u64| !areas.iter().flatten().any(|area| (area.start..area.end).contains(&addr));
        let is_busy = |addr| in_no_area(addr) && tables.translate(memory, VirtAddr(addr)).is_ok();
        this.take_blocks(kernel, Kind::Vmalloc, of_kind(Kind::Vmalloc), areas_of_blocks.collect(), is_busy);
        let percpu = this.percpu.allocated.take();
        this.take_blocks(
            kernel,
            Kind::Percpu,
            of_kind(Kind::Percpu),
            percpu.into_iter().flatten().map(|b| (b, None)).collect(),
            |_| false,
        );
        let freed = this.audit.as_ref().map_or(0, |audit| audit.counts().1);
        this.troubles.count(freed, Trouble::Freed);
        this.blocks.extend(self::pages::blocks(kernel, memory, pages, allocations.objects, &others));
        this.rules = Rules::new(this.blocks.len());
        this.skip = Skips::new(this.blocks.len());
        this.index();
        this
    }

    /// Adds the slab objects, after a comparison with the slabs. Objects that the kernel has freed
    /// are left out. Objects that the kernel holds, but whose allocation was not seen, are added.
    fn take_slab_objects(&mut self, kernel: &Kernel, objects: &[(u64, Object)], sheaves: &[VirtAddr]) {
        let allocated = slab_walk::allocated(kernel, self.memory, self.pages, &self.percpu, sheaves);
        let Some(mut allocated) = self.troubles.read("slabs", allocated) else {
            return self.trust_live_map(kernel, objects);
        };
        self.troubles.extend(allocated.corruption.iter().cloned());
        if let Some(pool) = &self.pages.kfence {
            allocated.add_kfence(kernel, self.memory, &kfence_objects(pool, objects));
        }
        let blocks = &mut self.blocks;
        let special: Vec<bool> = allocated.cache_addresses.iter().map(|at| self.special_caches.contains(at)).collect();
        let special_objects = &mut self.special_objects;
        let is_freed = allocated.is_freed(kernel, self.memory);
        self.audit =
            Some(Audit::compare(kernel, self.allocations, &allocated, is_freed, &mut |addr, cache, object| {
                let size = allocated.caches[cache as usize].object_size;
                if special[cache as usize] {
                    special_objects.push((blocks.len() as u32, allocated.cache_addresses[cache as usize]));
                }
                blocks.push(match object {
                    Some(object) => Block::of(addr, size, Kind::Slab, object),
                    None => Block::unseen(addr, size, Kind::Slab),
                });
            }));
    }

    /// Adds blocks of another kind, after a comparison with the kernel's allocator metadata.
    ///
    /// `metadata` holds the address and bytes of each block, and its vmap area if it has one.
    /// Nothing is compared if they are empty. A block that is not in them stays if `is_busy` is
    /// true for it. `seen` are the live map's addresses, including objects that were passed to
    /// kfree_rcu(). The areas of such objects stay busy until they are freed.
    fn take_blocks(
        &mut self,
        kernel: &Kernel,
        kind: Kind,
        seen: HashSet<u64>,
        metadata: Vec<((u64, u64), Option<&vmap::Area>)>,
        is_busy: impl Fn(u64) -> bool,
    ) {
        let Some(audit) = self.audit.as_mut().filter(|_| !metadata.is_empty()) else { return };
        match kind {
            Kind::Vmalloc => audit.vmalloc = metadata.len() as u64,
            _ => audit.percpu = metadata.len() as u64,
        }
        let allocated: HashSet<u64> = metadata.iter().map(|((addr, _), _)| *addr).collect();
        let objects = self.allocations.objects.list();
        self.blocks.retain(|b| {
            let busy = b.kind != kind || allocated.contains(&b.addr) || is_busy(b.addr);
            if let Some((_, object)) = objects.get(b.object as usize).filter(|_| !busy) {
                audit.freed(kernel, self.allocations, object);
            }
            busy
        });
        for ((addr, size), area) in metadata.into_iter().filter(|((addr, _), _)| !seen.contains(addr)) {
            audit.unknown(&match area {
                Some(area) => format!("vmalloc by {}", area.caller(kernel, self.memory).unwrap_or("?")),
                None => "percpu".to_owned(),
            });
            self.blocks.push(Block::unseen(addr, size, kind));
        }
    }

    /// Leaves out blocks that are where no such block can be. Such blocks are forged, or their page
    /// descriptors are corrupted. No block that is left is larger than RAM.
    fn drop_misplaced(&mut self) {
        let (pages, before) = (self.pages, self.blocks.len());
        let in_use = |at: u64| {
            let usage = pages.direct(VirtAddr(at)).map(|at| pages.usage(at.pfn()));
            matches!(usage, Some(Use::Kernel | Use::Reserved | Use::Cache | Use::Anonymous))
        };
        let ram = pages.end() * PAGE_SIZE;
        self.blocks.retain(|b| match b.kind {
            Kind::Slab | Kind::Pages => true,
            Kind::Large => b.size > 0 && b.size <= ram && in_use(b.addr) && in_use(b.addr.wrapping_add(b.size - 1)),
            Kind::Vmalloc => b.size > 0 && b.size <= ram && VirtAddr(b.addr.saturating_add(b.size)).is_kernel(),
            Kind::Percpu => b.size <= MAX_PERCPU,
        });
        let dropped = (before - self.blocks.len()) as u64;
        self.stale += dropped;
        self.troubles.count(dropped, Trouble::Misplaced);
    }

    /// Adds the slab objects of the live map. The slabs are only asked for their sizes.
    fn trust_live_map(&mut self, kernel: &Kernel, objects: &[(u64, Object)]) {
        let mut sizes = HashMap::new();
        for (i, &(addr, _)) in
            objects.iter().enumerate().filter(|(_, (_, o))| o.kind() == Kind::Slab && !o.is_rcu_pending())
        {
            let cache = self.pages.slab_cache(self.memory, VirtAddr(addr));
            let mut size_of =
                |at| *sizes.entry(at).or_insert_with(|| Cache::read(kernel, self.memory, at).map(|c| c.object_size));
            let special = cache.filter(|cache| self.special_caches.contains(cache));
            self.special_objects.extend(special.map(|cache| (self.blocks.len() as u32, cache)));
            match cache.and_then(&mut size_of) {
                Some(size) => self.blocks.push(Block::of(addr, size, Kind::Slab, i)),
                None => self.stale += 1,
            }
        }
    }

    fn index(&mut self) {
        let span =
            |i: usize, start: u64| Span { start, end: start.saturating_add(self.blocks[i].size), block: i as u32 };
        let of_kind = |percpu: bool| {
            let blocks = self.blocks.iter().enumerate();
            blocks.filter(move |(_, b)| (b.kind == Kind::Percpu) == percpu).map(|(i, b)| (i, b.addr))
        };
        let copies =
            of_kind(true).flat_map(|(i, at)| self.percpu.offsets.iter().map(move |o| (i, at.wrapping_add(*o))));
        let places = of_kind(false).chain(copies).map(|(i, at)| span(i, at));
        let descriptors = self.blocks.iter().enumerate().filter_map(|(i, b)| {
            let (first, count) = self.frames(b)?;
            let Range { start, end } = self.pages.descriptor_range(first, count);
            Some(Span { start, end, block: i as u32 })
        });
        let pointers = of_kind(true).map(|(i, at)| {
            let whole = span(i, at);
            let end = if VirtAddr(at).is_kernel() { whole.end } else { whole.end.min(at + POINTER_FLAGS) };
            Span { end, ..whole }
        });
        let addresses = Index::new(places.chain(descriptors));
        self.percpu_pointers = Index::new(pointers);
        if addresses.is_cut() || self.percpu_pointers.is_cut() {
            self.troubles.enter(Trouble::Spread);
        }
        self.addresses = addresses;
    }

    /// One past the highest page frame number.
    pub(crate) fn frames_end(&self) -> u64 {
        self.pages.end()
    }

    /// What the live map knows of a block.
    pub fn object(&self, block: &Block) -> &'a Object {
        block.object(self.allocations.objects.list())
    }

    /// The stack pointer of the CPU that runs on this stack, if one does.
    pub(crate) fn stack_pointer_in(&self, stack: &Range<u64>) -> Option<u64> {
        self.stack_pointers.iter().filter(|sp| stack.contains(sp)).min().map(|sp| sp & !7)
    }

    /// Calls `each` with the physical runs of virtual range `[start, start + len)`. Pages that are
    /// not mapped are left out.
    pub fn runs(&self, start: VirtAddr, len: u64, each: &mut dyn FnMut(PhysAddr, u64)) {
        let mut done = 0;
        while done < len {
            let at = start.offset(done);
            match self.tables.translate(self.memory, at) {
                Ok(t) => {
                    let n = t.len.min(len - done);
                    each(t.phys, n);
                    done += n;
                }
                Err(_) => done += PAGE_SIZE - at.0 % PAGE_SIZE,
            }
        }
    }

    /// Calls `each` with the virtual start of a block, or of each CPU's copy of a per-CPU block.
    pub fn places(&self, block: &Block, each: &mut dyn FnMut(VirtAddr)) {
        if block.kind == Kind::Percpu {
            self.percpu.offsets.iter().for_each(|o| each(VirtAddr(block.addr.wrapping_add(*o))));
        } else {
            each(VirtAddr(block.addr));
        }
    }

    /// First frame and number of frames, for a block that consists of whole pages.
    pub fn frames(&self, block: &Block) -> Option<(u64, u64)> {
        let first = self.pages.direct(VirtAddr(block.addr)).filter(|_| block.kind == Kind::Pages)?;
        Some((first.pfn(), block.size / PAGE_SIZE))
    }

    pub(crate) fn virtual_bytes(&self, kind: Kind, start: VirtAddr, len: u64, each: &mut dyn FnMut(PhysAddr, &[u8])) {
        let mut each = |phys: PhysAddr, len: u64| {
            if let Some(bytes) = self.memory.slice(phys, len as usize) {
                each(phys, bytes);
            }
        };
        match kind {
            Kind::Slab | Kind::Large | Kind::Pages => {
                self.pages.direct(start).into_iter().for_each(|phys| each(phys, len));
            }
            Kind::Vmalloc | Kind::Percpu => self.runs(start, len, &mut each),
        }
    }

    /// The name of the slab cache that a block comes from. `caches` keeps the names that were read.
    pub fn cache(&self, kernel: &Kernel, caches: &mut Caches, block: &Block) -> Option<String> {
        let slab = Some(block.addr).filter(|_| block.kind == Kind::Slab)?;
        let at = self.pages.slab_cache(self.memory, VirtAddr(slab))?;
        caches
            .entry(at)
            .or_insert_with(|| Cache::read(kernel, self.memory, at).map(|c| shown(&c.name).into_owned()))
            .clone()
    }

    /// Calls `each` with all bytes of a block, one CPU's copy after the other.
    pub fn bytes(&self, number: u32, each: &mut dyn FnMut(&[u8])) {
        self.located_bytes(number, &mut |_, bytes| each(bytes));
    }

    fn located_bytes(&self, number: u32, each: &mut dyn FnMut(PhysAddr, &[u8])) {
        let b = &self.blocks[number as usize];
        self.places(b, &mut |at| self.virtual_bytes(b.kind, at, b.size, each));
    }

    /// Calls `each` with the bytes of a block that may hold references, and their physical
    /// addresses.
    pub fn references(&self, number: u32, each: &mut dyn FnMut(PhysAddr, &[u8])) {
        let b = &self.blocks[number as usize];
        // The words of its page descriptors count as part of the block.
        for pfn in self.frames(b).into_iter().flat_map(|(first, count)| first..first + count) {
            self.pages.descriptor_of(self.memory, pfn, &mut *each);
        }
        // Zspages hold compressed data.
        if self.frames(b).is_some_and(|(first, _)| self.pages.usage(first) == Use::Zspage) {
            return;
        }
        let Some(skip) = self.skip.get(number) else { return self.located_bytes(number, each) };
        let mut skip = skip.to_vec();
        skip.sort_by_key(|r| r.start);
        let mut at = 0;
        for hole in skip.iter().chain([&(b.size..b.size)]) {
            let end = hole.start.min(b.size);
            if end > at {
                self.virtual_bytes(b.kind, VirtAddr(b.addr + at), end - at, each);
            }
            at = at.max(hole.end);
        }
    }
}

/// KFENCE's objects, by ascending address. An object that is being freed has already left the live
/// map. An object that KFENCE has freed, but that is in the live map, is a zombie.
fn kfence_objects(pool: &kfence::Pool, objects: &[(u64, Object)]) -> Vec<kfence::Object> {
    let is_live = |o: &&kfence::Object| objects.binary_search_by_key(&o.addr, |(addr, _)| *addr).is_ok();
    let mut all: Vec<kfence::Object> =
        pool.objects.iter().chain(pool.zombies.iter().filter(is_live)).copied().collect();
    all.sort_unstable_by_key(|object| object.addr);
    all
}
