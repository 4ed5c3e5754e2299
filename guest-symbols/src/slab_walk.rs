//! Which slab objects the kernel itself counts as allocated: every slot of every slab (mm/slub.c, 5.10 to 7.3), less
//! what is on a freelist of the slab or of a CPU, or waits in a sheaf.

use crate::Kernel;
use crate::memory::{PhysAddr, StoppedMemory, VirtAddr};
use crate::pages::Pages;
use crate::percpu::PerCpu;
use crate::slab::{self, Cache};
use std::collections::HashMap;

/// A slab holds at most this many objects (MAX_OBJS_PER_PAGE, 15 bits).
const MAX_OBJECTS: u64 = 32_767;
/// A sheaf with more objects than this is not believed.
const MAX_SHEAF: u64 = 4096;

/// Where things are in this kernel's structures; offsets in bytes.
struct Layout {
    freelist: u64,
    /// Word that holds the count of objects, shift, and mask.
    objects: (u64, u64, u64),
    /// In `kmem_cache`: `offset` of the free pointer, `random`, `cpu_slab`.
    free_pointer: u64,
    random: Option<u64>,
    cpu_slab: Option<u64>,
    /// In `kmem_cache_cpu`.
    cpu_freelist: Option<u64>,
}

impl Layout {
    fn of(kernel: &Kernel) -> Option<Layout> {
        let btf = kernel.btf.as_ref()?;
        // Before 5.17 a slab was a struct page.
        let slab = if btf.size_of("slab").is_some() { "slab" } else { "page" };
        let objects = btf.member(slab, "objects")?;
        let bits = objects.bits?;
        Some(Layout {
            freelist: btf.offset_of(slab, "freelist")?,
            objects: (objects.bit_offset / 32 * 4, objects.bit_offset % 32, (1 << bits) - 1),
            free_pointer: btf.offset_of("kmem_cache", "offset")?,
            random: btf.offset_of("kmem_cache", "random"),
            cpu_slab: btf.offset_of("kmem_cache", "cpu_slab"),
            cpu_freelist: btf.offset_of("kmem_cache_cpu", "freelist"),
        })
    }
}

/// What of a cache is needed to follow its freelists.
struct Links {
    cache: Cache,
    offset: u64,
    /// `random` with CONFIG_SLAB_FREELIST_HARDENED.
    random: Option<u64>,
}

/// The kernel's own count.
#[derive(Default)]
pub struct Allocated {
    /// Virtual addresses of allocated objects, ascending, each with the index of its cache.
    pub objects: Vec<(u64, u32)>,
    /// Caches.
    pub caches: Vec<Cache>,
    /// Virtual addresses of their `struct kmem_cache`s, in the same order.
    pub cache_addresses: Vec<VirtAddr>,
    /// Freelists that lead out of their slab, or in a circle.
    pub broken: u64,
}

/// Walks every slab. `sheaves` are the addresses of all `struct slab_sheaf`s. `None` where a structure is not
/// described or cannot be read.
pub fn allocated(
    kernel: &Kernel,
    memory: &impl StoppedMemory,
    pages: &Pages,
    percpu: &PerCpu,
    sheaves: &[VirtAddr],
) -> Option<Allocated> {
    let layout = Layout::of(kernel)?;
    let mut walk =
        Walk { kernel, memory, pages, layout, links: HashMap::new(), free: Vec::new(), out: Allocated::default() };
    walk.read_sheaves(sheaves);
    walk.read_cpu_freelists(percpu)?;
    walk.free.sort_unstable();
    walk.read_slabs();
    Some(walk.out)
}

struct Walk<'a, M> {
    kernel: &'a Kernel,
    memory: &'a M,
    pages: &'a Pages,
    layout: Layout,
    /// By address of the kmem_cache: its index in `out.caches` with what belongs to it.
    links: HashMap<u64, Option<(u32, Links)>>,
    /// Objects that no slab's own freelist shows as free; ascending once all are known.
    free: Vec<u64>,
    out: Allocated,
}

impl<M: StoppedMemory> Walk<'_, M> {
    fn word(&self, at: VirtAddr) -> Option<u64> {
        // Slabs, and nearly all else here, lie in the direct map.
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

    /// `kmem_cache_cpu.freelist` of every cache and CPU; kernels with sheaves alone have none.
    fn read_cpu_freelists(&mut self, percpu: &PerCpu) -> Option<()> {
        let (Some(cpu_slab), Some(freelist)) = (self.layout.cpu_slab, self.layout.cpu_freelist) else {
            return Some(());
        };
        for cache in slab::caches(self.kernel, self.memory)? {
            self.learn(cache.0);
            let pointer = self.word(cache.offset(cpu_slab))?;
            for cpu in 0..percpu.offsets.len() {
                let at = percpu.address(cpu, pointer)?.offset(freelist);
                let first = self.kernel.read_u64(self.memory, at).unwrap_or(0);
                let found = self.chain(cache.0, first, |_| true);
                self.free.extend(found);
            }
        }
        Some(())
    }

    /// The objects of a freelist, which ends where it leaves what `inside` allows.
    fn chain(&mut self, cache: u64, first: u64, inside: impl Fn(u64) -> bool) -> Vec<u64> {
        let mut found = Vec::new();
        let mut object = first;
        let mut broken = false;
        if let Some(Some((_, links))) = self.links.get(&cache) {
            while object != 0 {
                if !inside(object) || found.len() as u64 > MAX_OBJECTS {
                    broken = true;
                    break;
                }
                found.push(object);
                let at = object.wrapping_add(links.offset);
                let Some(stored) = self.word(VirtAddr(at)) else {
                    broken = true;
                    break;
                };
                // freelist_ptr_decode(): the pointer's own address, its bytes swapped, and a number of the cache's.
                object = match links.random {
                    Some(random) => stored ^ random ^ at.swap_bytes(),
                    None => stored,
                };
            }
        }
        self.out.broken += u64::from(broken);
        found
    }

    fn read_slabs(&mut self) {
        let mut free = Vec::new();
        let mut elsewhere = 0;
        for slab in self.pages.slabs() {
            let descriptor = |at: u64| self.memory.read_u64(PhysAddr(slab.descriptor.0 + at)).ok();
            let (word, shift, mask) = self.layout.objects;
            let (Some(cache), Some(freelist), Some(counters)) = (
                descriptor(self.pages.slab_cache_offset()),
                descriptor(self.layout.freelist),
                // Read as the 8 bytes it lies in: counters share a word.
                descriptor(word & !7).map(|w| w >> (8 * (word & 7)) >> shift),
            ) else {
                continue;
            };
            self.learn(cache);
            let Some(Some((index, links))) = self.links.get(&cache) else { continue };
            let (index, stride, first) = (*index, links.cache.stride, slab.start.0 + links.cache.left_pad);
            let count = counters & mask;
            let end = first + count * stride;
            free.clear();
            free.resize(count as usize, false);
            for object in self.chain(cache, freelist, |o| (first..end).contains(&o)) {
                free[((object - first) / stride) as usize] = true;
            }
            // Slabs ascend, and so does what is free elsewhere.
            while self.free.get(elsewhere).is_some_and(|&o| o < end) {
                let object = self.free[elsewhere];
                elsewhere += 1;
                if object >= first {
                    free[((object - first) / stride) as usize] = true;
                }
            }
            let slots = free.iter().zip(0..).filter(|(free, _)| !**free);
            self.out.objects.extend(slots.map(|(_, i)| (first + i * stride, index)));
        }
    }
}
