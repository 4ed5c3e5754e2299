//! Slab objects that the kernel itself counts as allocated (mm/slub.c, 5.10 to 7.3).
//!
//! These are all slots of all slabs, except free objects. Free objects are on a freelist of a slab
//! or of a CPU, in a sheaf, or in KASAN's quarantine.

mod in_hand;
mod quarantine;

use crate::Kernel;
use crate::allocators::kfence::{self, STEP};
use crate::corruption::{Corruption, Unreadable};
use crate::memory::{PAGE_SIZE, PhysAddr, StoppedMemory, VirtAddr};
use crate::pages::{Pages, Slab};
use crate::percpu::PerCpu;
use crate::slab::{self, Cache};
use std::collections::HashMap;

/// The most objects that are accepted. A check of more would need about 4 GiB.
const MAX_ALLOCATED: usize = 1 << 26;
/// Slabs that a CPU may be making when it is stopped, one of them in an interrupt. Their content
/// may be incomplete.
const IN_THE_MAKING: u64 = 2;
/// The most objects of a sheaf that are accepted.
const MAX_SHEAF: u64 = 4096;

/// Offsets in bytes in this kernel's structures.
struct Layout {
    freelist: u64,
    /// The word that holds the number of objects, with shift and mask.
    objects: (u64, u64, u64),
    /// The same for the number of objects that are not free, if it shares that word.
    inuse: Option<(u64, u64)>,
    /// Members of `kmem_cache`: `offset` of the free pointer, `random`, `cpu_slab`.
    free_pointer: u64,
    random: Option<u64>,
    cpu_slab: Option<u64>,
    /// Members of `kmem_cache_cpu`.
    cpu_freelist: Option<u64>,
}

impl Layout {
    fn of(kernel: &Kernel) -> Option<Layout> {
        let btf = kernel.btf.as_ref()?;
        // Before 5.17 a slab was a `struct page`.
        let slab = if btf.size_of("slab").is_some() { "slab" } else { "page" };
        let objects = btf.member(slab, "objects")?;
        let bits = objects.bits?;
        let inuse = btf.member(slab, "inuse").filter(|inuse| inuse.bit_offset / 32 == objects.bit_offset / 32);
        Some(Layout {
            freelist: btf.offset_of(slab, "freelist")?,
            objects: (objects.bit_offset / 32 * 4, objects.bit_offset % 32, (1 << bits) - 1),
            inuse: inuse.and_then(|inuse| Some((inuse.bit_offset % 32, (1 << inuse.bits?) - 1))),
            free_pointer: btf.offset_of("kmem_cache", "offset")?,
            random: btf.offset_of("kmem_cache", "random"),
            cpu_slab: btf.offset_of("kmem_cache", "cpu_slab"),
            cpu_freelist: btf.offset_of("kmem_cache_cpu", "freelist"),
        })
    }
}

/// The parts of a cache that are needed to follow its freelists.
struct Links {
    cache: Cache,
    offset: u64,
    /// `random`, with CONFIG_SLAB_FREELIST_HARDENED.
    random: Option<u64>,
}

impl Links {
    /// The slots of a slab. `count` is the slab's own number of objects.
    fn slots(&self, slab: &Slab, count: u64) -> Slots {
        Slots { first: slab.start.0.wrapping_add(self.cache.left_pad), stride: self.cache.stride, count }
    }
}

/// The places of the objects in a slab.
struct Slots {
    /// Virtual address of the first.
    first: u64,
    /// Bytes from one to the next, never 0.
    stride: u64,
    count: u64,
}

impl Slots {
    fn end(&self) -> u64 {
        self.first.wrapping_add(self.count * self.stride)
    }

    /// Whether all objects are in the slab's pages. The first object follows its left red zone,
    /// which is part of its slot.
    fn fit(&self, slab: &Slab) -> bool {
        let pad = self.first.wrapping_sub(slab.start.0);
        let bytes = self.count.checked_mul(self.stride);
        pad < self.stride && bytes.is_some_and(|bytes| bytes <= slab.pages * PAGE_SIZE)
    }

    /// The number of the object at exactly that address.
    fn of(&self, object: u64) -> Option<usize> {
        let offset = object.checked_sub(self.first)?;
        let slot = offset / self.stride;
        (offset.is_multiple_of(self.stride) && slot < self.count).then_some(slot as usize)
    }
}

/// The objects that the kernel counts as allocated.
#[derive(Default)]
pub struct Allocated {
    /// Virtual addresses of allocated objects, ascending, each with the index of its cache.
    pub objects: Vec<(u64, u32)>,
    /// Addresses of those that may be free: their slab counts fewer objects than it seems to have.
    /// A CPU was about to put them on a freelist.
    pub unsure: Vec<u64>,
    /// Their caches.
    pub caches: Vec<Cache>,
    /// Virtual addresses of their `struct kmem_cache`s, in the same order.
    pub cache_addresses: Vec<VirtAddr>,
    /// Slabs whose freelist leaves the slab or is circular, and slabs whose descriptor contradicts
    /// itself.
    pub broken: u64,
    /// Corrupted freelists of CPUs.
    broken_cpu: u64,
    /// Corruptions that were found.
    pub corruption: Vec<Corruption>,
}

impl Allocated {
    /// Adds KFENCE's objects, which callers use like slab objects. `objects` are in its pool, by
    /// ascending address. No slab is in the pool.
    pub fn add_kfence(&mut self, kernel: &Kernel, memory: &impl StoppedMemory, objects: &[kfence::Object]) {
        let mut numbers: HashMap<(VirtAddr, u64), u32> = HashMap::new();
        let mut added = Vec::with_capacity(objects.len());
        for object in objects {
            let number = *numbers.entry((object.cache, object.size)).or_insert_with(|| {
                let cache = Cache::read(kernel, memory, object.cache);
                // Their size is the requested size.
                let name = cache.map_or_else(|| "of a destroyed cache".to_owned(), |cache| cache.name);
                self.caches.push(Cache { name, object_size: object.size, stride: STEP, left_pad: 0 });
                self.cache_addresses.push(object.cache);
                self.caches.len() as u32 - 1
            });
            added.push((object.addr, number));
        }
        if let Some(&(first, _)) = added.first() {
            let at = self.objects.partition_point(|(addr, _)| *addr < first);
            self.objects.splice(at..at, added);
        }
    }
}

/// Walks every slab. `sheaves` are the addresses of all `struct slab_sheaf`.
///
/// # Errors
/// [`Unreadable`].
pub fn allocated(
    kernel: &Kernel,
    memory: &impl StoppedMemory,
    pages: &Pages,
    percpu: &PerCpu,
    sheaves: &[VirtAddr],
) -> Result<Allocated, Unreadable> {
    let layout = Layout::of(kernel).ok_or(Unreadable::NotDescribed)?;
    let mut walk =
        Walk { kernel, memory, pages, layout, links: HashMap::new(), free: Vec::new(), out: Allocated::default() };
    walk.read_sheaves(sheaves);
    walk.read_caches(percpu);
    walk.read_quarantine(percpu);
    walk.free.sort_unstable();
    walk.read_slabs()?;
    let mut out = walk.out;
    if out.broken_cpu > 0 {
        out.corruption.push(Corruption::CpuFreelists(out.broken_cpu));
    }
    if pages.whole && out.broken > IN_THE_MAKING * percpu.offsets.len() as u64 {
        out.corruption.push(Corruption::Slabs(out.broken));
    }
    Ok(out)
}

struct Walk<'a, M> {
    kernel: &'a Kernel,
    memory: &'a M,
    pages: &'a Pages,
    layout: Layout,
    /// The index in `out.caches` and the freelist data of each cache, by the address of its
    /// `kmem_cache`.
    links: HashMap<u64, Option<(u32, Links)>>,
    /// Free objects that are not on the freelist of their slab. Sorted once all are known.
    free: Vec<u64>,
    out: Allocated,
}

impl<M: StoppedMemory> Walk<'_, M> {
    fn word(&self, at: VirtAddr) -> Option<u64> {
        // Slabs and most other structures here are in the direct map.
        match self.pages.direct(at) {
            Some(phys) => self.memory.read_u64(phys).ok(),
            None => self.kernel.read_u64(self.memory, at).ok(),
        }
    }

    fn learn(&mut self, at: u64) {
        if self.links.contains_key(&at) {
            return;
        }
        let read = || {
            let cache = Cache::read(self.kernel, self.memory, VirtAddr(at))?;
            let offset = self.kernel.read_u32(self.memory, VirtAddr(at).offset(self.layout.free_pointer)).ok()?;
            let random = match self.layout.random {
                Some(o) => Some(self.word(VirtAddr(at).offset(o))?),
                None => None,
            };
            Some(Links { cache, offset: offset.into(), random })
        };
        let links = read().map(|links| {
            self.out.caches.push(links.cache.clone());
            self.out.cache_addresses.push(VirtAddr(at));
            (self.out.caches.len() as u32 - 1, links)
        });
        self.links.insert(at, links);
    }

    fn read_sheaves(&mut self, sheaves: &[VirtAddr]) {
        let field = |name| self.kernel.offset_of("slab_sheaf", name);
        let (Some(size), Some(objects)) = (field("size"), field("objects")) else { return };
        for sheaf in sheaves {
            let count = self.kernel.read_u32(self.memory, sheaf.offset(size)).map_or(0, u64::from);
            for i in 0..count.min(MAX_SHEAF) {
                let object = self.word(sheaf.offset(objects + 8 * i));
                self.free.extend(object);
            }
        }
    }

    /// Reads every cache, and `kmem_cache_cpu.freelist` of each cache and CPU. Kernels that only
    /// use sheaves have no such freelist.
    fn read_caches(&mut self, percpu: &PerCpu) {
        let Some((caches, whole)) = slab::cache_list(self.kernel, self.memory) else { return };
        if !whole {
            self.out.corruption.push(Corruption::CacheList(caches.len()));
        }
        let mut invalid = 0;
        for cache in caches {
            self.learn(cache.0);
            // A cache in the list is fully set up.
            invalid += u64::from(self.links.get(&cache.0).is_none_or(Option::is_none));
            let (Some(cpu_slab), Some(freelist)) = (self.layout.cpu_slab, self.layout.cpu_freelist) else { continue };
            let Some(pointer) = self.word(cache.offset(cpu_slab)) else { continue };
            for at in (0..percpu.offsets.len()).filter_map(|cpu| percpu.address(cpu, pointer)) {
                match self.kernel.read_u64(self.memory, at.offset(freelist)) {
                    Ok(0) => {}
                    Ok(first) => self.read_cpu_freelist(cache.0, first),
                    Err(_) => self.out.broken_cpu += 1,
                }
            }
        }
        if invalid > 0 {
            self.out.corruption.push(Corruption::Caches(invalid));
        }
    }

    /// Reads a freelist of a CPU. All of its objects are in one slab.
    fn read_cpu_freelist(&mut self, cache: u64, first: u64) {
        let slab = self.pages.slab_of(VirtAddr(first));
        let of = slab
            .and_then(|slab| self.memory.read_u64(PhysAddr(slab.descriptor.0 + self.pages.slab_cache_offset())).ok());
        let Some((_, links)) = self.links.get(&cache).and_then(Option::as_ref) else { return };
        let Some(slab) = slab.filter(|_| of == Some(cache)) else {
            self.out.broken_cpu += 1;
            return;
        };
        let slots = links.slots(&slab, slab.pages * PAGE_SIZE / links.cache.stride);
        let mut free = vec![false; slots.count as usize];
        let whole = self.chain(links, &slots, first, &mut free);
        self.out.broken_cpu += u64::from(!whole);
        let free = free.iter().zip(0..).filter(|(free, _)| **free);
        self.free.extend(free.map(|(_, i)| slots.first + i * slots.stride));
    }

    /// Marks the slots of a freelist that starts at `object`. Returns whether it ends within these
    /// slots and is not circular.
    fn chain(&self, links: &Links, slots: &Slots, mut object: u64, free: &mut [bool]) -> bool {
        while object != 0 {
            let slot = slots.of(object).and_then(|slot| free.get_mut(slot));
            // In a circular list an object comes twice.
            if slot.is_none_or(|slot| std::mem::replace(slot, true)) {
                return false;
            }
            let at = object.wrapping_add(links.offset);
            let Some(stored) = self.word(VirtAddr(at)) else { return false };
            // freelist_ptr_decode() combines the stored value, the pointer's own byte-swapped
            // address, and the cache's random number.
            object = match links.random {
                Some(random) => stored ^ random ^ at.swap_bytes(),
                None => stored,
            };
        }
        true
    }

    fn read_slabs(&mut self) -> Result<(), Corruption> {
        let mut free = Vec::new();
        let mut elsewhere = 0;
        for slab in self.pages.slabs() {
            let descriptor = |at: u64| self.memory.read_u64(PhysAddr(slab.descriptor.0.wrapping_add(at))).ok();
            let (word, shift, mask) = self.layout.objects;
            let (Some(cache), Some(freelist), Some(counters)) = (
                descriptor(self.pages.slab_cache_offset()),
                descriptor(self.layout.freelist),
                // It is read as an aligned word, because counters share a word.
                descriptor(word & !7).map(|w| w >> (8 * (word & 7))),
            ) else {
                continue;
            };
            self.learn(cache);
            let found = self.links.get(&cache).and_then(Option::as_ref);
            let slots = found.map(|(_, links)| links.slots(&slab, counters >> shift & mask));
            let (Some((index, links)), Some(slots)) = (found, slots.filter(|slots| slots.fit(&slab))) else {
                self.out.broken += 1;
                continue;
            };
            free.clear();
            free.resize(slots.count as usize, false);
            let whole = self.chain(links, &slots, freelist, &mut free);
            // Slabs ascend, and so do the other free objects.
            while let Some(&object) = self.free.get(elsewhere).filter(|&&o| o < slots.end()) {
                elsewhere += 1;
                if let Some(slot) = slots.of(object).and_then(|slot| free.get_mut(slot)) {
                    *slot = true;
                }
            }
            self.out.broken += u64::from(!whole);
            let used = free.iter().zip(0..).filter(|(free, _)| !**free).map(|(_, i)| slots.first + i * slots.stride);
            let inuse = self.layout.inuse.map(|(shift, mask)| counters >> shift & mask);
            let count = free.iter().filter(|free| !**free).count() as u64;
            if inuse.is_some_and(|inuse| count > inuse) {
                self.out.unsure.extend(used.clone());
            }
            self.out.objects.extend(used.map(|object| (object, *index)));
            if self.out.objects.len() > MAX_ALLOCATED {
                return Err(Corruption::TooManyObjects(MAX_ALLOCATED as u64));
            }
        }
        Ok(())
    }
}
