//! How return addresses are watched. Each allocation looks this up, and it hardly changes after
//! boot, so each thread caches it.

use super::AddressMap;
use dashmap::DashMap;
use dashmap::mapref::entry::Entry;
use std::cell::RefCell;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

/// How the first instruction after a call is watched.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Watch {
    /// An allocator will return here. The code is not translated yet.
    Wanted,
    Always,
    /// Watched only while the flag is up.
    WhileArmed,
    /// Translated without a watch: no allocator was expected to return here.
    Never,
}

/// Return addresses in a thread's cache.
const PLACES: usize = 1 << 9;
/// Most return addresses in all, 24 bytes each. The largest kernels have a million calls. Further
/// addresses are always watched.
const MAX_PLACES: usize = 1 << 22;
/// A thread checks the number of pending calls once in this many calls of allocators.
const CALLS: u32 = 1 << 12;

#[derive(Clone, Copy)]
struct Place {
    ret: u64,
    generation: u64,
    watch: Option<Watch>,
}

struct Remembered {
    calls: u32,
    places: [Place; PLACES],
}

thread_local! {
    /// This thread's cache. Each allocation looks up a return address without touching memory that
    /// other threads write.
    static REMEMBERED: RefCell<Remembered> =
        const { RefCell::new(Remembered { calls: 0, places: [Place { ret: 0, generation: 0, watch: None }; PLACES] }) };
}

/// The addresses that calls return to, and how each is watched. Any change invalidates the threads'
/// caches.
///
/// One vCPU may translate a return address while another calls an allocator that will return there.
/// Both decide while they hold the lock of the address's shard. So either the translation finds
/// that a watch is wanted, or the caller finds how the address is watched.
pub(super) struct ReturnWatches {
    places: AddressMap<Watch>,
    /// How many addresses there are.
    count: AtomicUsize,
    most: usize,
    generation: AtomicU64,
}

/// The generation at which the next [`ReturnWatches`] starts. The process shares it, so that a
/// thread never uses its cache of one kernel for another.
static NEXT: AtomicU64 = AtomicU64::new(1);

impl Default for ReturnWatches {
    fn default() -> ReturnWatches {
        ReturnWatches {
            places: DashMap::with_capacity_and_hasher(1 << 16, Default::default()),
            count: AtomicUsize::new(0),
            most: MAX_PLACES,
            // No guest changes watches so often that generations overlap.
            generation: AtomicU64::new(NEXT.fetch_add(1 << 44, Ordering::Relaxed)),
        }
    }
}

impl ReturnWatches {
    /// Returns how the return address `ret` of a call of an allocator is watched. If it is not
    /// watched, it will be once it is translated. Also returns whether it is time to check the
    /// number of pending calls.
    #[inline]
    pub fn called(&self, ret: u64) -> (Watch, bool) {
        let (watch, look) = self.remembered(ret);
        (if watch.is_none_or(|w| w == Watch::Never) { self.want(ret) } else { watch.unwrap_or(Watch::Wanted) }, look)
    }

    #[inline]
    fn remembered(&self, ret: u64) -> (Option<Watch>, bool) {
        // Read before the lookup: a change in between then invalidates the cached value.
        let generation = self.generation.load(Ordering::Acquire);
        REMEMBERED.with_borrow_mut(|remembered| {
            remembered.calls = remembered.calls.wrapping_add(1);
            let place = &mut remembered.places[(ret.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40) as usize % PLACES];
            if (place.ret, place.generation) != (ret, generation) {
                *place = Place { ret, generation, watch: self.places.get(&ret).map(|w| *w) };
            }
            (place.watch, remembered.calls.is_multiple_of(CALLS))
        })
    }

    #[cold]
    fn want(&self, ret: u64) -> Watch {
        let found = match self.places.entry(ret) {
            Entry::Vacant(_) if self.is_full() => return Watch::Wanted,
            Entry::Vacant(place) => {
                self.count.fetch_add(1, Ordering::Relaxed);
                place.insert(Watch::Wanted);
                Watch::Wanted
            }
            Entry::Occupied(place) if *place.get() != Watch::Never => return *place.get(),
            Entry::Occupied(mut place) => place.insert(Watch::Wanted),
        };
        self.change();
        found
    }

    fn is_full(&self) -> bool {
        self.count.load(Ordering::Relaxed) >= self.most
    }

    /// Whether an allocator is known to return to an address that no call instruction precedes.
    pub fn is_wanted(&self, place: u64) -> bool {
        self.places.get(&place).is_some_and(|w| matches!(*w, Watch::Wanted | Watch::Always))
    }

    /// Returns how an address that is being translated is to be watched. `by_code` is the watch
    /// that its code alone suggests.
    pub fn translated(&self, place: u64, by_code: Watch) -> Watch {
        let watch = match self.places.entry(place) {
            Entry::Vacant(_) if self.is_full() => return Watch::Always,
            Entry::Vacant(place) => {
                self.count.fetch_add(1, Ordering::Relaxed);
                *place.insert(by_code)
            }
            Entry::Occupied(mut place) => {
                // Since the last translation a call may have shown that an allocator returns here.
                let learnt = matches!(place.get(), Watch::Wanted | Watch::Always);
                let watch = if learnt { Watch::Always } else { by_code };
                if place.insert(watch) == watch {
                    return watch;
                }
                watch
            }
        };
        self.change();
        watch
    }

    /// Invalidates the threads' caches.
    fn change(&self) {
        self.generation.fetch_add(1, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Barrier;

    fn called(watches: &ReturnWatches, ret: u64) -> Watch {
        watches.called(ret).0
    }

    #[test]
    fn what_there_is_no_room_for_is_watched_always() {
        let watches = ReturnWatches { most: 100, ..ReturnWatches::default() };
        assert!((0..100).all(|place| watches.translated(place, Watch::Never) == Watch::Never));
        assert_eq!((watches.translated(1000, Watch::Never), called(&watches, 1001)), (Watch::Always, Watch::Wanted));
        assert_eq!(
            (watches.translated(1001, Watch::Never), watches.translated(5, Watch::Never)),
            (Watch::Always, Watch::Never)
        );
        assert_eq!(
            (called(&watches, 5), called(&watches, 5), watches.is_wanted(5)),
            (Watch::Never, Watch::Wanted, true)
        );
        assert!(watches.places.len() == 100 && !watches.is_wanted(1001));
        assert_eq!((0..CALLS).filter(|_| watches.called(5).1).count(), 1);
    }

    #[test]
    fn remembered_until_something_changes() {
        let watches = ReturnWatches::default();
        assert_eq!(called(&watches, 0x1000), Watch::Wanted);
        assert_eq!(watches.translated(0x1000, Watch::WhileArmed), Watch::Always);
        assert_eq!((called(&watches, 0x1000), called(&watches, 0x1000)), (Watch::Always, Watch::Always));
        assert_eq!(watches.translated(0x2000, Watch::Never), Watch::Never);
        // The first call is not watched. The address is wanted from then on.
        assert_eq!((called(&watches, 0x2000), called(&watches, 0x2000)), (Watch::Never, Watch::Wanted));
        assert_eq!(watches.translated(0x2000, Watch::Never), Watch::Always);
        assert_eq!(watches.translated(0x3000, Watch::WhileArmed), Watch::WhileArmed);
        // More addresses than a cache holds.
        for ret in 0..10_000 {
            watches.translated(ret * 5, Watch::WhileArmed);
            assert_eq!(called(&watches, ret * 5), Watch::WhileArmed);
        }
        assert_eq!((called(&watches, 5), called(&watches, 0x3000)), (Watch::WhileArmed, Watch::WhileArmed));
        // Nothing is taken from the cache of another guest.
        assert_eq!(called(&ReturnWatches::default(), 0x1000), Watch::Wanted);
    }

    /// If a call finds that the address is not translated, its return must be seen.
    #[test]
    fn a_call_and_a_translation_at_once_agree() {
        const PLACES: u64 = 20_000;
        for by_code in [Watch::WhileArmed, Watch::Never] {
            let (watches, start) = (ReturnWatches::default(), Barrier::new(2));
            let all = |watch: &(dyn Fn(u64) -> Watch + Sync)| {
                start.wait();
                (0..PLACES).map(watch).collect::<Vec<_>>()
            };
            let (called, translated) = std::thread::scope(|scope| {
                let called = scope.spawn(|| all(&|place| called(&watches, place)));
                let translated = all(&|place| watches.translated(place, by_code));
                (called.join().unwrap(), translated)
            });
            for (place, pair) in called.into_iter().zip(translated).enumerate() {
                assert!(pair == (Watch::Wanted, Watch::Always) || pair == (by_code, by_code), "{place}: {pair:?}");
            }
        }
    }
}
