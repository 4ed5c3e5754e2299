//! Free objects that a CPU holds while it is stopped inside of the allocator (mm/slub.c, 5.10 to
//! 7.3).
//!
//! The allocator takes a slab's whole freelist and then hands its objects out, or fills a sheaf
//! with them. Until it is done, only a register or the stack has the rest of the list. The slab
//! counts these objects as allocated.

use super::{Allocated, Layout, MAX_SHEAF, Walk};
use crate::Kernel;
use crate::memory::{PhysAddr, StoppedMemory, VirtAddr};
use crate::pages::Pages;
use std::collections::{HashMap, HashSet};

/// Prefixes of the functions that hold free objects.
const ALLOCATOR: [&str; 14] = [
    "refill_objects",
    "__refill_objects",
    "refill_sheaf",
    "__pcs_replace",
    "___slab_alloc",
    "__slab_alloc",
    "new_slab",
    "allocate_slab",
    "alloc_from_new_slab",
    "alloc_single_from",
    "get_from_partial",
    "get_partial",
    "get_freelist",
    "__kmem_cache_alloc_bulk",
];

impl Allocated {
    /// Adds the objects that a CPU holds to [`Allocated::unsure`]. `words` are those of its
    /// registers and of its stack from the stack pointer on. `sheaves` are as for
    /// [`allocated`](super::allocated).
    pub fn add_in_hand(
        &mut self,
        kernel: &Kernel,
        memory: &impl StoppedMemory,
        pages: &Pages,
        sheaves: &[VirtAddr],
        words: &[u64],
    ) {
        let Some(layout) = Layout::of(kernel) else { return };
        let text = kernel.symbol("_stext").map_or(0, |at| at.0)..kernel.symbol("_etext").map_or(0, |at| at.0);
        let name = |word: &u64| kernel.symbols.resolve(*word).filter(|_| text.contains(word)).map(|r| r.name);
        let is_inside = |word| name(word).is_some_and(|name| ALLOCATOR.iter().any(|start| name.starts_with(start)));
        if !words.iter().any(is_inside) {
            return;
        }
        let out = Allocated::default();
        let mut walk = Walk { kernel, memory, pages, layout, links: HashMap::new(), free: Vec::new(), out };
        let words: HashSet<u64> = words.iter().copied().collect();
        for &word in &words {
            self.unsure.extend(walk.rest_of_list(word).unwrap_or_default());
        }
        self.unsure.extend(sheaves.iter().flat_map(|sheaf| walk.being_filled(*sheaf, &words).unwrap_or_default()));
    }
}

impl<M: StoppedMemory> Walk<'_, M> {
    /// The objects of a list that starts at an object, or at the link in it. `None` if that is not
    /// the whole rest of a slab's list, or the slab has a list of its own.
    fn rest_of_list(&mut self, word: u64) -> Option<Vec<u64>> {
        let slab = self.pages.slab_of(VirtAddr(word))?;
        let descriptor = |at: u64| self.memory.read_u64(PhysAddr(slab.descriptor.0.wrapping_add(at))).ok();
        let (cache, freelist) = (descriptor(self.pages.slab_cache_offset())?, descriptor(self.layout.freelist)?);
        let (at, shift, mask) = self.layout.objects;
        let count = descriptor(at & !7)? >> (8 * (at & 7)) >> shift & mask;
        self.learn(cache);
        let (_, links) = self.links.get(&cache)?.as_ref()?;
        let slots = links.slots(&slab, count);
        let head = [word, word.wrapping_sub(links.offset)].into_iter().find(|at| slots.of(*at).is_some())?;
        if freelist != 0 || !slots.fit(&slab) {
            return None;
        }
        let mut free = vec![false; slots.count as usize];
        let free = self.chain(links, &slots, head, &mut free).then_some(free)?;
        Some(free.iter().zip(0..).filter(|(free, _)| **free).map(|(_, i)| slots.first + i * slots.stride).collect())
    }

    /// What is in a sheaf behind its objects, if one of the words is in the sheaf. The CPU may have
    /// put new objects there.
    fn being_filled(&self, sheaf: VirtAddr, words: &HashSet<u64>) -> Option<Vec<u64>> {
        let field = |name| self.kernel.offset_of("slab_sheaf", name);
        let (size, objects) = (field("size")?, field("objects")?);
        let cache = VirtAddr(self.word(sheaf.offset(field("cache")?))?);
        let capacity = cache.offset(self.kernel.offset_of("kmem_cache", "sheaf_capacity")?);
        let capacity = u64::from(self.kernel.read_u32(self.memory, capacity).ok()?).min(MAX_SHEAF);
        let size = u64::from(self.kernel.read_u32(self.memory, sheaf.offset(size)).ok()?);
        let place = |i| sheaf.offset(objects + 8 * i);
        if !words.contains(&sheaf.0) && !(0..=capacity).any(|i| words.contains(&place(i).0)) {
            return None;
        }
        Some((size..capacity).filter_map(|i| self.word(place(i))).collect())
    }
}
