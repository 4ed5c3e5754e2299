//! Ways to stop the guest: one trait, and a list of ways. The first that works is used.
//!
//! There is no barrier in vCPU callbacks. A vCPU that waits in a callback counts as running, so
//! QEMU would wait for it for ever.

mod monitor;
pub mod pace;

use crate::ffi::vcpu::{self, VcpuError};
use crate::ffi::witness::Work;
use monitor::{Monitor, MonitorError};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Longest time that stopping may take.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Why the guest could not be stopped.
#[derive(Debug, thiserror::Error)]
pub enum PauseError {
    /// The monitor failed.
    #[error(
        "pausing through the monitor at {path} failed: {why}; start QEMU with -qmp unix:{path},server=on,wait=off and let no other program use that socket"
    )]
    Monitor {
        /// The socket.
        path: PathBuf,
        /// What went wrong.
        why: MonitorError,
    },
    /// The exclusive section failed.
    #[error(
        "pausing the vCPUs failed: {0}; give QEMU a monitor of its own for it (-qmp unix:PATH,server=on,wait=off) and pass qmp=PATH"
    )]
    Exclusive(VcpuError),
}

/// A way to stop every vCPU.
pub trait Pause: Send {
    /// Runs `work` while no vCPU executes, and then resumes the guest.
    ///
    /// # Errors
    /// [`PauseError`]; `work` has not run then, unless resuming the guest failed.
    fn during(&mut self, work: Work) -> Result<(), PauseError>;
}

/// How long a way is not tried after its first failure. The time doubles with each failure, because
/// each may have taken the whole timeout.
const FIRST_REST: Duration = Duration::from_secs(60);
/// Longest such time.
const LONGEST_REST: Duration = Duration::from_secs(3600);

/// A way, and its failures.
pub struct Way {
    pause: Box<dyn Pause>,
    failures: u32,
    /// When it may be tried again.
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
    /// [`PauseError`], and how long the way is not tried again.
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

/// QEMU's exclusive section, which QEMU itself uses to change translated code. All vCPUs are
/// outside of translated code.
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
