//! How a kernel ends: resets of the machine, and loaded snapshots.

use super::optional::{self, Notifier};
use super::witness::GuestStopped;
use libc::c_void;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

/// Functions that are called before a kernel ends.
pub struct Ends {
    /// The machine is about to be reset.
    pub reset: fn(&GuestStopped),
    /// A snapshot is about to be loaded; also after `reset`.
    pub load: fn(&GuestStopped),
}

/// Set once, at install. QEMU's handlers carry no data that could hold it.
static ENDS: OnceLock<Ends> = OnceLock::new();
/// The guest has suspended itself to RAM. When it wakes, its CPUs are reset, but its kernel goes
/// on. QEMU's notifier carries no data that could hold this.
static SUSPENDED: AtomicBool = AtomicBool::new(false);

/// Whether the machine is being reset because a suspended guest wakes. In that case QEMU's run
/// state is running already (qemu_system_wakeup_request(), system/runstate.c). In other resets it
/// is not.
fn wakes() -> bool {
    SUSPENDED.load(Ordering::Relaxed) && is_running() == Some(true)
}

/// Registers a notifier for guests that suspend themselves.
fn watch_suspends() {
    extern "C" fn suspended(_: *mut Notifier, _: *mut c_void) {
        super::guard(|| SUSPENDED.store(true, Ordering::Relaxed));
    }
    let Some(register) = optional::qemu_register_suspend_notifier() else { return };
    let notifier = Box::leak(Box::new(Notifier { notify: suspended, node: [std::ptr::null_mut(); 2] }));
    // SAFETY: the list is the main thread's, which this is; the notifier and the function outlive
    // the process.
    unsafe { register(notifier) };
}

/// Makes QEMU call `ends` on its main thread before any device is reset. At that time the vCPUs are
/// stopped, and memory and registers are unchanged. QEMU also resets the machine before it loads a
/// snapshot (load_snapshot(), migration/savevm.c). Returns false if this QEMU does not export the
/// functions. To be called once.
pub fn on_ends(ends: Ends) -> bool {
    extern "C" fn reset(_: *mut c_void) {
        super::guard(|| tell(|ends| ends.reset));
    }
    extern "C" fn any(_: *mut c_void) {
        super::guard(|| {
            tell(|ends| ends.load);
            SUSPENDED.store(false, Ordering::Relaxed);
        });
    }
    fn tell(which: fn(&Ends) -> fn(&GuestStopped)) {
        if let Some(ends) = ENDS.get().filter(|_| !wakes()) {
            // SAFETY: QEMU pauses all vCPUs around a reset, and stops them before it loads a
            // snapshot.
            which(ends)(&unsafe { GuestStopped::new() });
        }
    }
    let Some(no_load) = optional::qemu_register_reset_nosnapshotload() else { return false };
    let Some(all) = optional::qemu_register_reset() else { return false };
    if ENDS.set(ends).is_err() {
        return false;
    }
    // SAFETY: plugins are loaded on the main thread before the machine has devices
    // (qemu_init_board(), system/vl.c). So these handlers come before those of devices, and are
    // called in this order. The functions are never unloaded.
    unsafe {
        no_load(reset, std::ptr::null_mut());
        all(any, std::ptr::null_mut());
    }
    watch_suspends();
    true
}

/// Whether this QEMU reports resets and loaded snapshots.
pub fn tells_ends() -> bool {
    ENDS.get().is_some()
}

/// Whether QEMU's run state is running; `None` if QEMU does not export the function.
fn is_running() -> Option<bool> {
    let is_running = optional::runstate_is_running()?;
    // SAFETY: it reads a variable.
    Some(unsafe { is_running() })
}
