//! Demands that need a stopped guest, and their results.

use super::checks::{Mark, ScanResult};
use super::{NotTracked, Session};
use crate::broadcast;
use crate::ffi::witness::GuestStopped;
use crate::ffi::{inject, panics};
use crate::hooks::tracker::Tracker;
use checker::CheckError;
use checker::sites::Sites;
use checker::why::Path;
use detector::control::{Count, Event};
use detector::report::Report;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

/// A demand.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum What {
    /// A scan of `scan=SECONDS`. No one waits for its answer.
    Tick,
    /// Scan, and report new leaks.
    Scan {
        /// Minimum age of reported objects.
        min_age: Duration,
    },
    /// Set a mark.
    Mark {
        /// The mark's name; without one it gets a number.
        name: Option<String>,
    },
    /// Ignore what is unreferenced now.
    Clear,
    /// Count live objects by site.
    Sites,
    /// Find references to a live object.
    Why {
        /// A virtual address in the object, or a `__percpu` pointer.
        address: u64,
    },
    /// Write a snapshot.
    Snapshot {
        /// The file.
        path: PathBuf,
    },
}

/// The result of a demand.
#[derive(Clone)]
pub enum Answer {
    /// A scan's report, which has been written to all destinations.
    Report(Arc<Report>),
    /// The mark.
    Mark(Arc<Mark>),
    /// How much will be ignored.
    Cleared(Count),
    /// Live objects by site.
    Sites(Arc<Sites>),
    /// References to the object.
    Paths(Arc<Vec<Path>>),
    /// The snapshot is written.
    Snapshot,
}

/// Why a demand failed.
#[derive(Debug, Clone, thiserror::Error)]
pub enum DemandError {
    /// No kernel is tracked.
    #[error(transparent)]
    Nothing(#[from] NotTracked),
    /// QEMU is still starting.
    #[error("libleak has not started yet")]
    NotStarted,
    /// A bug.
    #[error("the answer was to another request; report this as a bug")]
    Confused,
    /// The check failed.
    #[error(transparent)]
    Check(#[from] CheckError),
    /// The snapshot was not written.
    #[error("{0}")]
    Snapshot(String),
    /// The guest cannot be stopped.
    #[error("the guest cannot be paused, see QEMU's stderr; libleak tries again later, so send this again then")]
    Running,
    /// QEMU is exiting, and makes the last scan itself.
    #[error("the guest has ended; the report has the result of the last scan")]
    Ended,
    /// The guest was reset before it was stopped.
    #[error("the guest has just restarted, and a report of its last kernel is written; send the request again")]
    Again,
    /// Too many demands wait.
    #[error("too many requests wait for a pause; send this one again when others are answered")]
    Busy,
}

impl DemandError {
    /// The error if no thread serves demands: it panicked, or could not be started.
    pub fn no_thread() -> DemandError {
        panics::halted().map_or(DemandError::Running, |_| NotTracked::Halted.into())
    }
}

/// Gets the result. It is called once, on the thread of the triggers or of the caller, and never
/// blocks.
pub type Reply = Box<dyn FnOnce(Result<(Answer, Duration), DemandError>) + Send>;

/// A demand, and where to send its result and the duration of the pause.
pub struct Demand {
    /// The demand.
    pub what: What,
    /// Gets the result.
    pub reply: Reply,
}

/// The result of a demand while the guest is still stopped.
pub enum Done {
    /// A scan; its report is to be written.
    Scanned(Box<ScanResult>),
    /// A complete answer.
    Answer(Answer),
}

impl Session {
    /// Serves a demand.
    ///
    /// # Errors
    /// [`DemandError`].
    pub fn obey(&self, stopped: &GuestStopped, tracker: &Tracker, what: &What) -> Result<Done, DemandError> {
        self.take_up_loaded();
        if tracker.guest.is_retired() {
            return Err(DemandError::Again);
        }
        inject("pause");
        let scan = |min_age| Ok(Done::Scanned(Box::new(self.scan(stopped, tracker, min_age)?)));
        Ok(Done::Answer(match what {
            What::Tick => return scan(self.interval_min_age()),
            What::Scan { min_age } => return scan(*min_age),
            What::Mark { name } => Answer::Mark(self.mark(stopped, tracker, name.as_deref())?),
            What::Clear => Answer::Cleared(self.clear(stopped, tracker)?),
            What::Sites => Answer::Sites(Arc::new(self.sites(stopped, tracker)?)),
            What::Why { address } => Answer::Paths(Arc::new(self.why(stopped, tracker, *address)?)),
            What::Snapshot { path } => {
                self.save(stopped, tracker, path).map_err(|why| DemandError::Snapshot(why.to_string()))?;
                Answer::Snapshot
            }
        }))
    }
}

/// Sends the result of a demand to subscribers.
pub fn publish(answer: &Answer) {
    match answer {
        Answer::Mark(mark) => broadcast::publish(|| Event::Mark(mark.told())),
        Answer::Cleared(count) => broadcast::publish(|| Event::Clear(*count)),
        _ => {}
    }
}
