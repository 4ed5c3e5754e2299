//! Which kernel is tracked now. A QEMU may run one after the other: after a reset, or by kexec.
//!
//! Each has a [`Tracker`] of its own, made while no other vCPU runs kernel code, and let go while
//! none runs at all. Every thread keeps the one that it saw last, so that a callback of a vCPU
//! takes no lock; what a thread has learnt of one kernel it forgets with it. Others, which wait for
//! something between two looks, hold on to what they were given.

use super::guest_events::GuestEvents;
use super::tracker::Tracker;
use super::{objects, unwinder};
use parking_lot::RwLock;
use std::cell::{Cell, RefCell};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// A kernel that is tracked, and who listens to it.
#[derive(Clone)]
struct Current {
    tracker: Arc<Tracker>,
    events: Arc<dyn GuestEvents>,
}

/// How often the current tracker changed. Translated code calls back with a word alone, so
/// callbacks find the tracker here.
static CHANGES: AtomicU64 = AtomicU64::new(0);
/// The tracker, for threads that have not seen the last change.
static CURRENT: RwLock<Option<Current>> = RwLock::new(None);

/// What a thread saw last.
struct LastSeen {
    changes: Cell<u64>,
    current: RefCell<Option<Current>>,
}

thread_local! {
    /// The tracker that this thread saw last: callbacks come by the million, and take no lock for
    /// it.
    static LAST_SEEN: LastSeen = const { LastSeen { changes: Cell::new(0), current: RefCell::new(None) } };
}

/// The tracker, once there is one.
pub fn tracker() -> Option<Arc<Tracker>> {
    CURRENT.read().as_ref().map(|current| Arc::clone(&current.tracker))
}

/// Whether there is one.
#[inline]
pub fn is_tracking() -> bool {
    with(|_| ()).is_some()
}

/// Gives the tracker, if there is one, to a callback of a vCPU.
#[inline]
pub fn with<T>(f: impl FnOnce(&Tracker) -> T) -> Option<T> {
    LAST_SEEN.with(|seen| {
        if seen.changes.get() != CHANGES.load(Ordering::Acquire) {
            seen.look();
        }
        seen.current.borrow().as_ref().map(|current| f(&current.tracker))
    })
}

/// As [`with`], and gives who listens too.
#[inline]
pub fn with_events<T>(f: impl FnOnce(&Tracker, &dyn GuestEvents) -> T) -> Option<T> {
    LAST_SEEN.with(|seen| {
        if seen.changes.get() != CHANGES.load(Ordering::Acquire) {
            seen.look();
        }
        seen.current.borrow().as_ref().map(|current| f(&current.tracker, &*current.events))
    })
}

impl LastSeen {
    /// Another tracker, or none, is the current one.
    #[cold]
    fn look(&self) {
        // First, so that a change meanwhile is seen the next time.
        let changes = CHANGES.load(Ordering::Acquire);
        let current = CURRENT.read().clone();
        // In a callback that is within another the tracker stays what it was.
        if let Ok(mut seen) = self.current.try_borrow_mut() {
            *seen = current;
            self.changes.set(changes);
            objects::forget();
            unwinder::forget();
        }
    }
}

/// Makes another tracker the current one, with who listens to its kernel. The last one goes when
/// nobody holds it any more.
pub fn set(tracker: Option<(Tracker, Arc<dyn GuestEvents>)>) {
    let current = tracker.map(|(tracker, events)| Current { tracker: Arc::new(tracker), events });
    let before = std::mem::replace(&mut *CURRENT.write(), current);
    CHANGES.fetch_add(1, Ordering::Release);
    if let Some(before) = before {
        before.tracker.guest.retire();
    }
}
