//! libleak's panics. They must not unwind into C, nor end QEMU. The first one ends the tracking and
//! prints one line. The guest goes on.
//!
//! Locks of parking_lot and dashmap are released when a panic unwinds, and are not poisoned. So no
//! thread waits for them for ever. The data that they guard may be half changed: an object without
//! its size, a call without its return. The report at QEMU's exit then relies on the kernel's
//! allocator metadata, and says so.

use crate::diagnostics::{self, Level};
use parking_lot::Mutex;
use std::any::Any;
use std::panic::{AssertUnwindSafe, PanicHookInfo, catch_unwind};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

/// Set by the first panic. From then on every callback returns at once. Rust's panic hook has no
/// data, so this module's state is static.
static HALTED: AtomicBool = AtomicBool::new(false);
/// The time of the first panic.
static SINCE: OnceLock<Instant> = OnceLock::new();
/// The line of the first panic, until it is in the report files.
static UNTOLD: Mutex<Option<String>> = Mutex::new(None);
/// Place and message of the last panic.
static LAST: Mutex<String> = Mutex::new(String::new());

/// Place and message of a panic.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Panicked(String);

/// Runs `f` for QEMU, unless libleak has panicked before. A panic ends the tracking, and does not
/// unwind into C.
#[inline]
pub fn guard(f: impl FnOnce()) {
    if !HALTED.load(Ordering::Relaxed) {
        let _ = caught(f);
    }
}

/// As [`guard`], but also after a panic: for QEMU's exit, and for answers to clients.
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

/// A panic was caught. The locks that it held are released.
#[cold]
fn after(panic: &(dyn Any + Send)) -> Panicked {
    // The hook has usually done this.
    halt(|| one_line(message(panic)));
    let untold = UNTOLD.lock().take();
    if let Some(line) = untold {
        diagnostics::in_files(Level::Error, &line);
    }
    Panicked(LAST.lock().clone())
}

/// Replaces Rust's panic message by one line. Each library has its own hook, so this one is called
/// only for panics of this plugin.
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

/// Ends the tracking for good, and prints an error once.
fn halt(what: impl FnOnce() -> String) {
    if HALTED.swap(true, Ordering::Relaxed) {
        return;
    }
    let _ = SINCE.set(Instant::now());
    let line = format!(
        "internal error, nothing is tracked from now on: {}; please report this with the command line of QEMU",
        what()
    );
    diagnostics::line(&format!("error: {line}"));
    // Writing to files needs locks, which may be held here.
    *UNTOLD.lock() = Some(line);
}

fn message(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("a panic without words")
}

fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// The time of the panic that has ended the tracking, if there was one.
pub fn halted() -> Option<Instant> {
    if HALTED.load(Ordering::Relaxed) { SINCE.get().copied() } else { None }
}

/// Panics at the places in the environment variable `LIBLEAK_PANIC`, separated by commas. `return`
/// panics at the first call for this place, and `return:500` at the 500th. Only in the tests' build
/// (`tests/faulty-plugin`).
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

/// Does nothing, except in the tests' build.
#[cfg(not(feature = "inject-panics"))]
#[inline(always)]
pub fn inject(_place: &'static str) {}
