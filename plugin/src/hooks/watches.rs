//! How returns are watched, and what each thread remembers of it: it is looked up at every allocation, and hardly ever
//! changes once a guest has booted.

use super::tracker::AddressMap;
use dashmap::DashMap;
use dashmap::mapref::entry::Entry;
use std::cell::RefCell;
use std::sync::atomic::{AtomicU64, Ordering};

/// How the first instruction after a call is watched.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Watch {
    /// An allocator was seen to return here, before it was translated.
    Wanted,
    Always,
    /// Only while the flag is up.
    WhileArmed,
    /// Translated without: what returns here was thought to be no allocator.
    Never,
}

/// Places that a thread remembers.
const PLACES: usize = 1 << 9;

#[derive(Clone, Copy)]
struct Place {
    ret: u64,
    generation: u64,
    watch: Option<Watch>,
}

thread_local! {
    static REMEMBERED: RefCell<[Place; PLACES]> =
        const { RefCell::new([Place { ret: 0, generation: 0, watch: None }; PLACES]) };
}

/// The places that calls return to, and how each is watched. Of what a thread remembers, nothing is believed after a change.
///
/// One vCPU may translate a place while another calls an allocator from there, so each decides by what the other has
/// entered, while the place's shard is locked: either the translation finds that the place is wanted, or the caller how it is watched.
pub(super) struct Watches {
    places: AddressMap<Watch>,
    generation: AtomicU64,
}

/// Generations of the next to be made: what threads remember of one is never taken for another's.
static NEXT: AtomicU64 = AtomicU64::new(1);

impl Default for Watches {
    fn default() -> Watches {
        Watches {
            places: DashMap::with_capacity_and_hasher(1 << 16, Default::default()),
            // No guest is translated so often that they meet.
            generation: AtomicU64::new(NEXT.fetch_add(1 << 44, Ordering::Relaxed)),
        }
    }
}

impl Watches {
    /// An allocator was called that will return to `ret`: how that is watched. What is not watched will be, once it is translated.
    #[inline]
    pub fn called(&self, ret: u64) -> Watch {
        let watch = self.remembered(ret);
        if watch.is_none_or(|w| w == Watch::Never) { self.want(ret) } else { watch.unwrap_or(Watch::Wanted) }
    }

    #[inline]
    fn remembered(&self, ret: u64) -> Option<Watch> {
        // Read before it is looked up: a change meanwhile makes what is remembered old.
        let generation = self.generation.load(Ordering::Acquire);
        REMEMBERED.with_borrow_mut(|places| {
            let place = &mut places[(ret.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40) as usize % PLACES];
            if (place.ret, place.generation) != (ret, generation) {
                *place = Place { ret, generation, watch: self.places.get(&ret).map(|w| *w) };
            }
            place.watch
        })
    }

    #[cold]
    fn want(&self, ret: u64) -> Watch {
        let found = match self.places.entry(ret) {
            Entry::Vacant(place) => {
                place.insert(Watch::Wanted);
                Watch::Wanted
            }
            Entry::Occupied(place) if *place.get() != Watch::Never => return *place.get(),
            Entry::Occupied(mut place) => place.insert(Watch::Wanted),
        };
        self.change();
        found
    }

    /// The place is being translated: how it is to be watched, if by its code alone it would be as `by_code` says.
    pub fn translated(&self, place: u64, by_code: Watch) -> Watch {
        let watch = match self.places.entry(place) {
            Entry::Vacant(place) => *place.insert(by_code),
            Entry::Occupied(mut place) => {
                // Translated again, it may have been learnt meanwhile.
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

    /// Something was changed.
    fn change(&self) {
        self.generation.fetch_add(1, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Barrier;

    #[test]
    fn remembered_until_something_changes() {
        let watches = Watches::default();
        assert_eq!(watches.called(0x1000), Watch::Wanted);
        assert_eq!(watches.translated(0x1000, Watch::WhileArmed), Watch::Always);
        assert_eq!((watches.called(0x1000), watches.called(0x1000)), (Watch::Always, Watch::Always));
        assert_eq!(watches.translated(0x2000, Watch::Never), Watch::Never);
        // The call that comes first is not watched; it is wanted from then on.
        assert_eq!((watches.called(0x2000), watches.called(0x2000)), (Watch::Never, Watch::Wanted));
        assert_eq!(watches.translated(0x2000, Watch::Never), Watch::Always);
        assert_eq!(watches.translated(0x3000, Watch::WhileArmed), Watch::WhileArmed);
        // More than there is room for.
        for ret in 0..10_000 {
            watches.translated(ret * 5, Watch::WhileArmed);
            assert_eq!(watches.called(ret * 5), Watch::WhileArmed);
        }
        assert_eq!((watches.called(5), watches.called(0x3000)), (Watch::WhileArmed, Watch::WhileArmed));
        // Of another guest nothing is taken for this one's.
        assert_eq!(Watches::default().called(0x1000), Watch::Wanted);
    }

    /// A call that is told that the place is not translated must be seen when it returns there.
    #[test]
    fn a_call_and_a_translation_at_once_agree() {
        const PLACES: u64 = 20_000;
        for by_code in [Watch::WhileArmed, Watch::Never] {
            let (watches, start) = (Watches::default(), Barrier::new(2));
            let all = |watch: &(dyn Fn(u64) -> Watch + Sync)| {
                start.wait();
                (0..PLACES).map(watch).collect::<Vec<_>>()
            };
            let (called, translated) = std::thread::scope(|scope| {
                let called = scope.spawn(|| all(&|place| watches.called(place)));
                let translated = all(&|place| watches.translated(place, by_code));
                (called.join().unwrap(), translated)
            });
            for (place, pair) in called.into_iter().zip(translated).enumerate() {
                assert!(pair == (Watch::Wanted, Watch::Always) || pair == (by_code, by_code), "{place}: {pair:?}");
            }
        }
    }
}
