//! Stopping the guest. One trait, and a ladder of ways; the first that works is used.
//!
//! There is deliberately no barrier of our own in vCPU callbacks: a vCPU that waits there still
//! counts as running for QEMU, which then waits for it for ever.

mod monitor;
pub mod pace;

use crate::ffi::vcpu::{self, VcpuError};
use crate::ffi::witness::Work;
use monitor::{Monitor, MonitorError};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How long anything may take to stop.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Why the guest could not be stopped.
#[derive(Debug, thiserror::Error)]
pub enum PauseError {
    /// The monitor.
    #[error(
        "pausing through the monitor at {path} failed: {why}; start QEMU with -qmp unix:{path},server=on,wait=off and leave that socket to libleak"
    )]
    Monitor {
        /// The socket.
        path: PathBuf,
        /// What went wrong.
        why: MonitorError,
    },
    /// The exclusive section.
    #[error(
        "pausing the vCPUs failed: {0}; give QEMU a monitor of its own for it (-qmp unix:PATH,server=on,wait=off) and pass qmp=PATH"
    )]
    Exclusive(VcpuError),
}

/// A way to stop every vCPU.
pub trait Pause: Send {
    /// Runs `work` while no vCPU executes, and lets them go on.
    ///
    /// # Errors
    /// [`PauseError`]; `work` has then not run, unless the guest could not be let go on.
    fn during(&mut self, work: Work) -> Result<(), PauseError>;
}

/// After a failure a way is left alone for so long, and twice as long after each further one: each
/// may have cost its timeout.
const FIRST_REST: Duration = Duration::from_secs(60);
/// But no longer than this.
const LONGEST_REST: Duration = Duration::from_secs(3600);

/// A way, and since when it has failed.
pub struct Way {
    pause: Box<dyn Pause>,
    failures: u32,
    /// When it may be tried.
    again: Instant,
}

impl Way {
    fn new(pause: impl Pause + 'static) -> Way {
        Way { pause: Box::new(pause), failures: 0, again: Instant::now() }
    }

    /// Whether it may be tried now.
    pub fn is_ready(&self) -> bool {
        self.again <= Instant::now()
    }

    /// As [`Pause::during`].
    ///
    /// # Errors
    /// [`PauseError`], and it is not tried again for so long.
    pub fn during(&mut self, work: Work) -> Result<(), (PauseError, Duration)> {
        match self.pause.during(work) {
            Ok(()) => {
                self.failures = 0;
                Ok(())
            }
            Err(why) => {
                let rest = FIRST_REST.saturating_mul(1 << self.failures.min(16)).min(LONGEST_REST);
                self.failures += 1;
                self.again = Instant::now() + rest;
                Err((why, rest))
            }
        }
    }
}

/// The ways to pause, best first.
pub fn ladder(qmp: Option<&Path>) -> Vec<Way> {
    qmp.map(|path| Way::new(Monitor::new(path))).into_iter().chain([Way::new(Exclusive)]).collect()
}

/// QEMU's own exclusive section, as it uses itself to change translated code: every vCPU is out of
/// it.
struct Exclusive;

impl Pause for Exclusive {
    fn during(&mut self, work: Work) -> Result<(), PauseError> {
        vcpu::exclusive(work, TIMEOUT).map_err(PauseError::Exclusive)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Broken;

    impl Pause for Broken {
        fn during(&mut self, _: Work) -> Result<(), PauseError> {
            Err(PauseError::Exclusive(VcpuError::Timeout))
        }
    }

    #[test]
    fn a_way_that_fails_is_left_alone_for_longer_and_longer() {
        let mut way = Way::new(Broken);
        assert!(way.is_ready());
        let rests = (0..8).map(|_| way.during(Box::new(|_| ())).unwrap_err().1.as_secs());
        assert_eq!(rests.collect::<Vec<_>>(), [60, 120, 240, 480, 960, 1920, 3600, 3600]);
        assert!(!way.is_ready());
    }
}
