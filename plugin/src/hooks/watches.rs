//! How returns are watched, and what each thread remembers of it: it is looked up at every allocation, and hardly ever
//! changes once a guest has booted.

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

/// What this thread remembers is of a kernel that is gone.
pub(super) fn forget() {
    REMEMBERED.set([Place { ret: 0, generation: 0, watch: None }; PLACES]);
}

/// Counts changes, after which nothing that was remembered is believed.
pub(super) struct Watches(AtomicU64);

impl Default for Watches {
    fn default() -> Watches {
        Watches(AtomicU64::new(1))
    }
}

impl Watches {
    /// How the return to `ret` is watched, as it was found since the last change.
    #[inline]
    pub fn get(&self, ret: u64, find: impl FnOnce() -> Option<Watch>) -> Option<Watch> {
        // Read before it is looked up: a change meanwhile makes what is remembered old.
        let generation = self.0.load(Ordering::Acquire);
        REMEMBERED.with_borrow_mut(|places| {
            let place = &mut places[(ret.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40) as usize % PLACES];
            if (place.ret, place.generation) != (ret, generation) {
                *place = Place { ret, generation, watch: find() };
            }
            place.watch
        })
    }

    /// Something was changed.
    pub fn change(&self) {
        self.0.fetch_add(1, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn remembered_until_something_changes() {
        let watches = Watches::default();
        assert_eq!(watches.get(0x1000, || Some(Watch::Always)), Some(Watch::Always));
        assert_eq!(watches.get(0x1000, || unreachable!()), Some(Watch::Always));
        assert_eq!(watches.get(0x2000, || None), None);
        assert_eq!(watches.get(0x2000, || unreachable!()), None);
        watches.change();
        assert_eq!(watches.get(0x1000, || Some(Watch::Never)), Some(Watch::Never));
        // More than there is room for.
        for ret in 0..10_000 {
            watches.get(ret * 5, || Some(Watch::WhileArmed));
        }
        assert_eq!(watches.get(5, || Some(Watch::WhileArmed)), Some(Watch::WhileArmed));
    }
}
