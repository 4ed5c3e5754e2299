//! Collects registers and counters for a check, and writes a snapshot.

use crate::ffi::vcpu;
use crate::ffi::witness::GuestStopped;
use crate::hooks::tracker::Tracker;
use checker::guest_state::{Counters, GuestState};
use guest_symbols::memory::StoppedMemory;
use snapshot::WriteError;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

/// The register contents of all vCPUs; empty if QEMU does not export the function.
pub fn registers(stopped: &GuestStopped) -> Vec<u64> {
    // Indexes of unplugged vCPUs are skipped.
    vcpu::with_cpus(|cpus| cpus.iter().filter_map(|&cpu| vcpu::registers(cpu, stopped)).flatten().collect())
}

/// The counters in the summary line.
pub fn counters(tracker: &Tracker) -> Counters {
    let get = |n: &AtomicU64| n.load(Ordering::Relaxed);
    let missed = &tracker.calls.missed;
    let hooks = || tracker.hooks.iter().filter(|(hook, _)| hook.action.is_of_memory());
    Counters {
        live_map: tracker.objects.counters(),
        unmatched_returns: get(&missed.unmatched_returns),
        unwatched_sites: get(&missed.unwatched_returns) + get(&missed.unreadable),
        hooks_hit: hooks().filter(|(_, seen)| seen.hit.load(Ordering::Relaxed)).count() as u64,
        hooks: hooks().count() as u64,
        rewinds: tracker.time.rewinds(),
        boot: tracker.guest.boot,
    }
}

/// Writes a snapshot.
///
/// # Errors
/// [`WriteError`].
pub fn save(path: &Path, moment: &GuestState<'_, impl StoppedMemory>) -> Result<(), WriteError> {
    let began = Instant::now();
    let written = snapshot::write(path, moment)?;
    log::info!(
        "snapshot {}: {:.1} MiB for {} MiB of RAM, {:.1} MiB of it in use, written in {:?}",
        path.display(),
        mib(written.file),
        written.ram >> 20,
        mib(written.filled),
        began.elapsed()
    );
    Ok(())
}

fn mib(bytes: u64) -> f64 {
    bytes as f64 / (1 << 20) as f64
}
