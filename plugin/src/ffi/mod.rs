//! All contact with QEMU's C side: the plugin API looked up at load ([`api`]), registers ([`regs`], [`direct`]), guest
//! RAM as it is mapped in this process ([`ram`], [`layout`]), and what only builds with loadable modules export
//! ([`host`]). Unsafe code stays in here.

pub mod api;
mod direct;
pub mod host;
mod job;
mod layout;
pub mod ram;
pub mod regs;
pub mod signals;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};

/// Set by the first panic: from then on every callback returns at once.
static DISABLED: AtomicBool = AtomicBool::new(false);

/// Runs `f` on behalf of QEMU. A panic in it must not unwind into C: it switches the plugin off, with one
/// line, and the guest goes on.
#[inline]
pub fn guard(f: impl FnOnce()) {
    if DISABLED.load(Ordering::Relaxed) {
        return;
    }
    if let Err(panic) = catch_unwind(AssertUnwindSafe(f)) {
        let what = panic
            .downcast_ref::<String>()
            .map(String::as_str)
            .or_else(|| panic.downcast_ref::<&str>().copied())
            .unwrap_or("unknown");
        disable(what);
    }
}

/// Switches the plugin off for good.
fn disable(what: &str) {
    if !DISABLED.swap(true, Ordering::Relaxed) {
        eprintln!(
            "libleak: error: internal error, leak detection is off: {what}; please report this with the command line of QEMU"
        );
    }
}

/// Whether a panic has switched the plugin off.
pub fn is_disabled() -> bool {
    DISABLED.load(Ordering::Relaxed)
}
