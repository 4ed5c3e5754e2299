//! Panics of ours. None may unwind into C, and none takes QEMU down: the first one ends the
//! tracking, with one line, and the guest goes on.
//!
//! parking_lot's and dashmap's locks are released when a panic unwinds and are not poisoned, so no
//! other thread waits for them for ever. What they guard may be half changed: an object without its
//! size, a call without its return. The report that QEMU's exit makes all the same goes by the
//! kernel's own books, and says so ([`crate::session::Session::exit`]).

use crate::diagnostics::{self, Level};
use parking_lot::Mutex;
use std::any::Any;
use std::panic::{AssertUnwindSafe, PanicHookInfo, catch_unwind};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

/// Set by the first panic: from then on every callback returns at once. Panics reach a hook of the
/// process, which has no data; so all of this module's state is static.
static HALTED: AtomicBool = AtomicBool::new(false);
/// When that was.
static SINCE: OnceLock<Instant> = OnceLock::new();
/// The first panic's line is still to come into the files for programs.
static UNTOLD: Mutex<Option<String>> = Mutex::new(None);
/// Where and what the last panic was.
static LAST: Mutex<String> = Mutex::new(String::new());

/// Where and what a panic was.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Panicked(String);

/// Runs `f` on behalf of QEMU. A panic in it must not unwind into C: it ends the tracking, and the
/// guest goes on.
#[inline]
pub fn guard(f: impl FnOnce()) {
    if !HALTED.load(Ordering::Relaxed) {
        let _ = caught(f);
    }
}

/// As [`guard`], but also after a panic: for what QEMU's exit is to do in any case, and for
/// clients, who are to be answered.
///
/// # Errors
/// [`Panicked`].
pub fn always(f: impl FnOnce()) -> Result<(), Panicked> {
    caught(f)
}

#[inline]
fn caught(f: impl FnOnce()) -> Result<(), Panicked> {
    catch_unwind(AssertUnwindSafe(f)).map_err(|panic| after(&*panic))
}

/// A panic was caught: what it held is free again.
#[cold]
fn after(panic: &(dyn Any + Send)) -> Panicked {
    // Unless the hook did so.
    halt(|| one_line(message(panic)));
    let untold = UNTOLD.lock().take();
    if let Some(line) = untold {
        diagnostics::in_files(Level::Error, &line);
    }
    Panicked(LAST.lock().clone())
}

/// Has a panic told in one line, ours, in place of Rust's own. Every library has a hook of its own,
/// so this one is called for this plugin's panics alone.
pub fn install_hook() {
    std::panic::set_hook(Box::new(|info: &PanicHookInfo<'_>| {
        let what = one_line(message(info.payload()));
        let what = match info.location() {
            Some(place) => format!("{what}, at {}:{}", place.file(), place.line()),
            None => what,
        };
        LAST.lock().clone_from(&what);
        halt(|| what);
    }));
}

/// Ends the tracking for good, and says so once.
fn halt(what: impl FnOnce() -> String) {
    if HALTED.swap(true, Ordering::Relaxed) {
        return;
    }
    let _ = SINCE.set(Instant::now());
    let line = format!(
        "internal error, so nothing is tracked from now on: {}; please report this with the command line of QEMU",
        what()
    );
    diagnostics::line(&format!("error: {line}"));
    // Files need locks, which may be held here.
    *UNTOLD.lock() = Some(line);
}

fn message(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("a panic without words")
}

fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// When a panic has ended the tracking; `None` if none has.
pub fn halted() -> Option<Instant> {
    if HALTED.load(Ordering::Relaxed) { SINCE.get().copied() } else { None }
}

/// Panics where the environment variable `LIBLEAK_PANIC` says so: words such as `return`, or
/// `return:500` for the 500th time that this place is come to, with commas between. Only in the
/// build that tests make for it (`tests/faulty-plugin`).
#[cfg(feature = "inject-panics")]
#[track_caller]
pub fn inject(place: &'static str) {
    use std::sync::atomic::AtomicU64;
    /// Read once, from the environment of the process.
    static WANTED: OnceLock<Vec<(String, AtomicU64)>> = OnceLock::new();
    let wanted = WANTED.get_or_init(|| {
        let words = std::env::var("LIBLEAK_PANIC").unwrap_or_default();
        let places = words.split(',').map(|word| {
            let (place, count) = word.split_once(':').unwrap_or((word, "1"));
            (place.to_owned(), AtomicU64::new(count.parse().unwrap_or(1)))
        });
        places.collect()
    });
    if wanted.iter().any(|(wanted, count)| wanted == place && count.fetch_sub(1, Ordering::Relaxed) == 1) {
        panic!("injected,\nin {place}");
    }
}

/// Does nothing but in the build that tests make.
#[cfg(not(feature = "inject-panics"))]
#[inline(always)]
pub fn inject(_place: &'static str) {}
