//! Which kernel is tracked now. A QEMU may run one after the other: after a reset, or by kexec.
//!
//! Each has a [`Tracker`] of its own, made while no other vCPU runs kernel code, and let go while none runs at all. Every
//! thread keeps the one that it saw last, so that a callback of a vCPU takes no lock; what a thread has learnt of one kernel it
//! forgets with it. Others, which wait for something between two looks, hold on to what they were given.

use super::tracker::Tracker;
use super::{allocations, unwinder};
use parking_lot::RwLock;
use std::cell::{Cell, RefCell};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// How often the current tracker changed.
static CHANGES: AtomicU64 = AtomicU64::new(0);
static CURRENT: RwLock<Option<Arc<Tracker>>> = RwLock::new(None);

/// What a thread saw last.
struct Seen {
    changes: Cell<u64>,
    tracker: RefCell<Option<Arc<Tracker>>>,
}

thread_local! {
    static SEEN: Seen = const { Seen { changes: Cell::new(0), tracker: RefCell::new(None) } };
}

/// The tracker, once there is one.
pub fn tracker() -> Option<Arc<Tracker>> {
    CURRENT.read().clone()
}

/// Whether there is one.
#[inline]
pub fn is_tracking() -> bool {
    with(|_| ()).is_some()
}

/// Gives the tracker, if there is one, to a callback of a vCPU.
#[inline]
pub fn with<T>(f: impl FnOnce(&Tracker) -> T) -> Option<T> {
    SEEN.with(|seen| {
        if seen.changes.get() != CHANGES.load(Ordering::Acquire) {
            seen.look();
        }
        seen.tracker.borrow().as_deref().map(f)
    })
}

impl Seen {
    /// Another tracker, or none, is the current one.
    #[cold]
    fn look(&self) {
        // First, so that a change meanwhile is seen the next time.
        let changes = CHANGES.load(Ordering::Acquire);
        let current = tracker();
        // In a callback that is within another the tracker stays what it was.
        if let Ok(mut seen) = self.tracker.try_borrow_mut() {
            *seen = current;
            self.changes.set(changes);
            allocations::forget();
            unwinder::forget();
        }
    }
}

/// Makes another the current one; the last one goes when nobody holds it any more.
pub fn set(tracker: Option<Tracker>) {
    let before = std::mem::replace(&mut *CURRENT.write(), tracker.map(Arc::new));
    CHANGES.fetch_add(1, Ordering::Release);
    if let Some(before) = before {
        before.retire();
    }
}
