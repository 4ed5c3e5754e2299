//! The rules that walks need most, so that a frame costs one look and no search of a table.

use super::walk::Method;

/// Entries: a power of two. A booted kernel allocates from some 5,000 different frames.
const ENTRIES: usize = 1 << 13;

/// A direct-mapped cache of how frames are left, by address. One for each thread.
pub struct Cache {
    entries: Box<[(u64, Method)]>,
    generation: u64,
    /// Looks that found something, and that did not.
    pub hits: u64,
    /// See `hits`.
    pub misses: u64,
}

impl Default for Cache {
    fn default() -> Cache {
        Cache { entries: vec![(0, Method::Unknown); ENTRIES].into(), generation: 0, hits: 0, misses: 0 }
    }
}

impl Cache {
    /// What is known of an address, or what `find` finds. `generation` is another number whenever code may have become
    /// other code, as when a module was loaded: everything is forgotten then.
    #[inline]
    pub fn get(&mut self, at: u64, generation: u64, find: impl FnOnce() -> Method) -> Method {
        if self.generation != generation {
            self.entries.fill((0, Method::Unknown));
            self.generation = generation;
        }
        // The middle of the product depends on all bits of the address.
        let place = (at.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40) as usize % ENTRIES;
        let entry = &mut self.entries[place];
        if entry.0 == at {
            self.hits += 1;
        } else {
            self.misses += 1;
            *entry = (at, find());
        }
        entry.1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn found_once_and_forgotten_with_the_generation() {
        let mut cache = Cache::default();
        assert_eq!(cache.get(0x1000, 0, || Method::FramePointer), Method::FramePointer);
        assert_eq!(cache.get(0x1000, 0, || unreachable!()), Method::FramePointer);
        assert_eq!(cache.get(0x1000, 1, || Method::Unknown), Method::Unknown);
        assert_eq!((cache.hits, cache.misses), (1, 2));
        // More than there is room for.
        for at in 1..50_000 {
            cache.get(at, 1, || Method::FramePointer);
        }
        assert_eq!(cache.entries.len(), ENTRIES);
    }
}
