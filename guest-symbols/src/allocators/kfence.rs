//! KFENCE, which serves a slab allocation from its own pool at intervals (mm/kfence/core.c and
//! kfence.h, 5.12 to 7.3).
//!
//! The pool is 2 guard pages, followed by a page and a guard page for each object. An object is at
//! the start or the end of its page. `kfence_metadata` has one record for each object: address,
//! size, cache, state.

use crate::Kernel;
use crate::memory::{GuestMemory, PAGE_SIZE, VirtAddr};
use std::ops::Range;

/// The most objects in a pool: the range of CONFIG_KFENCE_NUM_OBJECTS (lib/Kconfig.kfence).
const MAX_OBJECTS: u64 = 65_535;

/// Bytes from one object's page to the next one's: a page and its guard page.
pub(crate) const STEP: u64 = 2 * PAGE_SIZE;

/// An object of the pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Object {
    /// Virtual address, in the direct map.
    pub addr: u64,
    /// Bytes that the caller asked for. The cache's `object_size` may be larger.
    pub size: u64,
    /// Its `struct kmem_cache`. The address is 0 after the cache was destroyed.
    pub cache: VirtAddr,
}

/// The pool at one time.
#[derive(Debug, Default)]
pub struct Pool {
    /// Virtual range of the pool, in the direct map.
    pub range: Range<u64>,
    /// Allocated objects, by ascending address.
    pub objects: Vec<Object>,
    /// Objects that were still allocated when their cache was destroyed, by ascending address.
    /// KFENCE counts them as freed and never reuses their pages (kfence_shutdown_cache()). An
    /// object that is just being freed looks the same.
    pub zombies: Vec<Object>,
    /// Virtual ranges of `kfence_metadata` that hold no references to allocated objects.
    pub not_references: Vec<Range<u64>>,
}

/// Offsets in bytes in `struct kfence_metadata`, and values of `enum kfence_object_state`.
struct Layout {
    size: u64,
    list: u64,
    rcu_next: u64,
    rcu_func: u64,
    state: u64,
    addr: u64,
    object_size: u64,
    cache: u64,
    /// Per-object data of memory control groups: offset and bytes.
    objcg: Option<Range<u64>>,
    unused: u32,
    freed: u32,
}

impl Layout {
    fn of(kernel: &Kernel) -> Option<Layout> {
        let btf = kernel.btf.as_ref()?;
        let member = |path: &str| btf.member("kfence_metadata", path);
        let offset = |path: &str| btf.offset_of("kfence_metadata", path);
        // `rcu_head` is a macro for `callback_head`, and also renames the member
        // (include/linux/types.h).
        let rcu = |part: &str| offset(&format!("callback_head.{part}")).or_else(|| offset(&format!("rcu_head.{part}")));
        let state = |name: &str| btf.enumerator("kfence_object_state", name).map(|value| value as u32);
        // `obj_exts` from 6.10 on, `objcg` from 5.19 on.
        let objcg = member("obj_exts").or_else(|| member("objcg"));
        Some(Layout {
            size: btf.size_of("kfence_metadata").filter(|size| (1..=PAGE_SIZE).contains(size))?,
            list: offset("list")?,
            rcu_next: rcu("next")?,
            rcu_func: rcu("func")?,
            state: offset("state")?,
            addr: offset("addr")?,
            object_size: offset("size")?,
            cache: offset("cache")?,
            objcg: objcg.and_then(|m| Some(m.offset()..m.offset() + btf.type_size(m.type_id)?)),
            unused: state("KFENCE_OBJECT_UNUSED")?,
            freed: state("KFENCE_OBJECT_FREED")?,
        })
    }
}

impl Pool {
    /// Reads the pool. `None` if the kernel has none: KFENCE is not built in, is off
    /// (`kfence.sample_interval=0`), or is not set up yet.
    pub fn read(kernel: &Kernel, memory: &impl GuestMemory) -> Option<Pool> {
        let start = kernel.variable(memory, "__kfence_pool").filter(|&at| at != 0)?;
        let layout = Layout::of(kernel)?;
        let records = Records { kernel, memory, layout, start };
        // An array of the image up to 6.5, and a pointer to an array from 6.6 on.
        let metadata = kernel.symbol("kfence_metadata")?;
        let array = || kernel.read_u64(memory, metadata).ok().map(VirtAddr);
        let metadata = if records.is_valid(metadata, 0) { metadata } else { array()? };
        let mut pool = Pool { range: start..start.saturating_add(STEP), ..Pool::default() };
        for number in 0..MAX_OBJECTS {
            if !records.is_valid(metadata, number) {
                break;
            }
            pool.range.end = pool.range.end.saturating_add(STEP);
            records.add(metadata, number, &mut pool);
        }
        // A pool of guard pages alone is not set up.
        (pool.range.end - start > STEP).then_some(pool)
    }

    /// The object that contains an address, either allocated or a zombie.
    pub fn object_at(&self, at: VirtAddr) -> Option<&Object> {
        [&self.objects, &self.zombies].into_iter().find_map(|objects| {
            let object = objects[..objects.partition_point(|o| o.addr <= at.0)].last()?;
            (at.0 - object.addr < object.size.max(1)).then_some(object)
        })
    }
}

/// The records in `kfence_metadata`.
struct Records<'a, M> {
    kernel: &'a Kernel,
    memory: &'a M,
    layout: Layout,
    /// Virtual address of the pool.
    start: u64,
}

impl<M: GuestMemory> Records<'_, M> {
    fn word(&self, at: VirtAddr) -> Option<u64> {
        self.kernel.read_u64(self.memory, at).ok()
    }

    /// Virtual address of a record.
    fn record(&self, metadata: VirtAddr, number: u64) -> VirtAddr {
        VirtAddr(metadata.0.wrapping_add(number * self.layout.size))
    }

    /// Whether a record belongs to this pool. Its object must be in the page that belongs to its
    /// number. The kernel keeps this true for free objects too (metadata_to_pageaddr()).
    fn is_valid(&self, metadata: VirtAddr, number: u64) -> bool {
        let addr = self.word(self.record(metadata, number).offset(self.layout.addr));
        addr.is_some_and(|addr| addr & !(PAGE_SIZE - 1) == self.start.wrapping_add((number + 1) * STEP))
    }

    /// Adds the object of a valid record.
    fn add(&self, metadata: VirtAddr, number: u64, pool: &mut Pool) {
        let Layout { size, list, rcu_next, rcu_func, state, addr, object_size, cache, ref objcg, unused, freed } =
            self.layout;
        let record = self.record(metadata, number);
        let word = |offset| self.word(record.offset(offset)).unwrap_or(0);
        let state = self.kernel.read_u32(self.memory, record.offset(state)).unwrap_or(unused);
        let object = Object { addr: word(addr), size: word(object_size), cache: VirtAddr(word(cache)) };
        let fits = object.size <= PAGE_SIZE - object.addr % PAGE_SIZE;
        // Freed objects of SLAB_TYPESAFE_BY_RCU caches wait for a grace period (__kfence_free()).
        // rcu_do_batch() clears `func` before the wait ends.
        let is_queued = word(rcu_func) != 0;
        let is_allocated = state != unused && state != freed;
        let mut references = Vec::new();
        if is_queued {
            // The rcu_head links to the next callback that waits.
            references.push(rcu_next..rcu_next + 8);
        } else if is_allocated {
            references.extend(objcg.clone());
            pool.objects.extend(fits.then_some(object));
        } else if state == freed && word(list) == record.offset(list).0 {
            pool.zombies.extend(fits.then_some(object));
        }
        let mut at = 0;
        let end = size..size;
        for range in references.iter().chain(std::iter::once(&end)) {
            if at < range.start {
                pool.not_references.push(record.0.wrapping_add(at)..record.0.wrapping_add(range.start));
            }
            at = range.end;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_object_is_found_by_any_address_in_it() {
        let object = |addr, size| Object { addr, size, cache: VirtAddr(7) };
        let objects = vec![object(0x2000, 64), object(0x4fc0, 40)];
        let pool = Pool { range: 0..0x8000, objects, zombies: vec![object(0x6000, 0)], ..Pool::default() };
        let at = |at| pool.object_at(VirtAddr(at)).map(|o| o.addr);
        assert_eq!(
            [at(0x2000), at(0x203f), at(0x4fe7), at(0x6000)],
            [Some(0x2000), Some(0x2000), Some(0x4fc0), Some(0x6000)]
        );
        assert_eq!([at(0x1fff), at(0x2040), at(0x4000), at(0x4fe8), at(0x6001)], [None; 5]);
    }
}
