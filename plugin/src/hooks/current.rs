//! The kernel that is tracked now. A QEMU process may run several in turn: after a reset, or by
//! kexec.
//!
//! Each kernel has its own [`Tracker`]. It is made while no other vCPU runs kernel code, and
//! dropped while no vCPU runs. Each thread caches the tracker that it used last, so that callbacks
//! take no lock. A thread that sees another tracker forgets what it has learnt about the earlier
//! kernel. Threads other than vCPUs hold a reference while they work.

use super::guest_events::GuestEvents;
use super::tracker::Tracker;
use super::{objects, unwinder};
use parking_lot::RwLock;
use std::cell::{Cell, RefCell};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// A tracked kernel, and the listener for its events.
#[derive(Clone)]
struct Current {
    tracker: Arc<Tracker>,
    events: Arc<dyn GuestEvents>,
}

/// How often the current tracker changed. Callbacks get one word from translated code, so they find
/// the tracker through statics.
static CHANGES: AtomicU64 = AtomicU64::new(0);
/// The tracker. Threads read it when the count of changes differs from theirs.
static CURRENT: RwLock<Option<Current>> = RwLock::new(None);

/// A thread's cached tracker.
struct LastSeen {
    changes: Cell<u64>,
    current: RefCell<Option<Current>>,
}

thread_local! {
    /// This thread's cached tracker. There are millions of callbacks, which must take no lock.
    static LAST_SEEN: LastSeen = const { LastSeen { changes: Cell::new(0), current: RefCell::new(None) } };
}

/// The current tracker, if there is one.
pub fn tracker() -> Option<Arc<Tracker>> {
    CURRENT.read().as_ref().map(|current| Arc::clone(&current.tracker))
}

/// Whether there is a current tracker.
#[inline]
pub fn is_tracking() -> bool {
    with(|_| ()).is_some()
}

/// Calls `f` with the current tracker, if there is one. For callbacks of vCPUs.
#[inline]
pub fn with<T>(f: impl FnOnce(&Tracker) -> T) -> Option<T> {
    LAST_SEEN.with(|seen| {
        if seen.changes.get() != CHANGES.load(Ordering::Acquire) {
            seen.look();
        }
        seen.current.borrow().as_ref().map(|current| f(&current.tracker))
    })
}

/// As [`with`], with the listener too.
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
    /// Updates this thread's cache.
    #[cold]
    fn look(&self) {
        // Read first, so that a change in between is noticed the next time.
        let changes = CHANGES.load(Ordering::Acquire);
        let current = CURRENT.read().clone();
        // A nested callback keeps the tracker of the outer one.
        if let Ok(mut seen) = self.current.try_borrow_mut() {
            *seen = current;
            self.changes.set(changes);
            objects::forget();
            unwinder::forget();
        }
    }
}

/// Replaces the current tracker and its listener. The earlier tracker is dropped with its last
/// reference.
pub fn set(tracker: Option<(Arc<Tracker>, Arc<dyn GuestEvents>)>) {
    let current = tracker.map(|(tracker, events)| Current { tracker, events });
    if let Some(current) = &current {
        current.tracker.guest.set_retired(false);
    }
    let before = std::mem::replace(&mut *CURRENT.write(), current);
    CHANGES.fetch_add(1, Ordering::Release);
    if let Some(before) = before {
        before.tracker.guest.set_retired(true);
    }
}
