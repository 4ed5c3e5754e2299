//! Which kernel is tracked now. A QEMU may run one after the other: after a reset, or by kexec.
//!
//! Each has a [`Tracker`] of its own, made while no other vCPU runs kernel code, and let go while none runs at all. Every
//! thread keeps the one that it saw last, so that a callback of a vCPU takes no lock; what a thread has learnt of one kernel it
//! forgets with it. Others, which wait for something between two looks, hold on to what they were given.

use super::tracker::Tracker;
use super::{events, stack, watches};
use parking_lot::RwLock;
use std::cell::{Cell, RefCell};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// How often the current tracker changed.
static CHANGES: AtomicU64 = AtomicU64::new(0);
static CURRENT: RwLock<Option<Arc<Tracker>>> = RwLock::new(None);

thread_local! {
    static SEEN_CHANGES: Cell<u64> = const { Cell::new(0) };
    static SEEN: RefCell<Option<Arc<Tracker>>> = const { RefCell::new(None) };
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
    if SEEN_CHANGES.get() != CHANGES.load(Ordering::Acquire) {
        look();
    }
    SEEN.with_borrow(|seen| seen.as_deref().map(f))
}

/// Another tracker, or none, is the current one.
#[cold]
fn look() {
    // First, so that a change meanwhile is seen the next time.
    let changes = CHANGES.load(Ordering::Acquire);
    let current = tracker();
    let before = SEEN.with(|seen| {
        // In a callback that is within another the tracker stays what it was.
        seen.try_borrow_mut().ok().map(|mut seen| std::mem::replace(&mut *seen, current))
    });
    if before.is_some() {
        SEEN_CHANGES.set(changes);
        events::forget();
        watches::forget();
        stack::forget();
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
