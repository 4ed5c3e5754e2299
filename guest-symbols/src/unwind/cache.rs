//! A cache of the most used unwind rules. It saves the search of a table for each frame.

use super::walk::Method;

/// Number of entries, a power of two. A booted kernel allocates from about 5,000 different frames.
const ENTRIES: usize = 1 << 13;

/// A direct-mapped cache of unwind rules by address. Each thread has its own.
pub struct Cache {
    entries: Box<[(u64, Method)]>,
    generation: u64,
    /// Number of lookups that found an entry.
    pub hits: u64,
    /// Number of lookups that did not.
    pub misses: u64,
}

impl Default for Cache {
    fn default() -> Cache {
        Cache { entries: vec![(0, Method::Unknown); ENTRIES].into(), generation: 0, hits: 0, misses: 0 }
    }
}

impl Cache {
    /// The cached value of an address, or the result of `find`. `generation` changes whenever code
    /// may have changed, such as when a module is loaded. All entries are then dropped.
    #[inline]
    pub fn get(&mut self, at: u64, generation: u64, find: impl FnOnce() -> Method) -> Method {
        if self.generation != generation {
            self.entries.fill((0, Method::Unknown));
            self.generation = generation;
        }
        // The middle bits of the product depend on all bits of the address.
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
        // More addresses than entries.
        for at in 1..50_000 {
            cache.get(at, 1, || Method::FramePointer);
        }
        assert_eq!(cache.entries.len(), ENTRIES);
    }
}
