//! What can be demanded of the guest while it stands still, and what comes of it.

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

/// What is to be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum What {
    /// The scan that is due every so many seconds: nobody asked for it, so if there is nothing to
    /// scan yet, nothing is said.
    Tick,
    /// Report what is new and at least that old.
    Scan {
        /// The least age.
        min_age: Duration,
    },
    /// Take what is live as the state of things.
    Mark {
        /// The mark's name; it gets a number without one.
        name: Option<String>,
    },
    /// Never report what is unreferenced now.
    Clear,
    /// Count what is live by site.
    Sites,
    /// Tell who refers to the live object that an address lies in.
    Why {
        /// Virtual address, or `__percpu` pointer.
        address: u64,
    },
    /// Write a snapshot.
    Snapshot {
        /// The file.
        path: PathBuf,
    },
}

/// What came of it.
#[derive(Clone)]
pub enum Answer {
    /// Of a scan: the report, which has been written to all its destinations.
    Report(Arc<Report>),
    /// The mark.
    Mark(Arc<Mark>),
    /// What will not be reported.
    Cleared(Count),
    /// What is live.
    Sites(Arc<Sites>),
    /// Who refers to it.
    Paths(Arc<Vec<Path>>),
    /// It is written.
    Snapshot,
}

/// Why nothing came of it.
#[derive(Debug, Clone, thiserror::Error)]
pub enum DemandError {
    /// There is nothing to look at, or not any more, or not yet.
    #[error(transparent)]
    Nothing(#[from] NotTracked),
    /// QEMU is still starting.
    #[error("libleak has not started yet")]
    NotStarted,
    /// A bug.
    #[error("the answer was to another request; report this as a bug")]
    Confused,
    /// It was looked at in vain.
    #[error(transparent)]
    Check(#[from] CheckError),
    /// A snapshot was not written.
    #[error("{0}")]
    Snapshot(String),
    /// No way to stop the guest works.
    #[error(
        "the guest cannot be paused, as a line on QEMU's stderr says; it is tried again after a while, so send this again then"
    )]
    Running,
    /// QEMU exits, and makes the last scan itself.
    #[error("the guest has ended; what the last scan found is in the report")]
    Ended,
    /// The guest was reset before it could be stopped for this.
    #[error("the guest has just started again, and all of its last kernel is in a report; send the request again")]
    Again,
    /// Too much waits already.
    #[error("too many requests wait for the guest to be paused; send this one again when others are answered")]
    Busy,
}

impl DemandError {
    /// There is no thread that would do it: a panic has ended it, or the system gave none.
    pub fn nobody() -> DemandError {
        panics::halted().map_or(DemandError::Running, |_| NotTracked::Halted.into())
    }
}

/// Who is told: called once, on the thread of the triggers or of who demands, and never blocks.
pub type Reply = Box<dyn FnOnce(Result<(Answer, Duration), DemandError>) + Send>;

/// Something to do, and who is told what came of it and how long the guest stood still.
pub struct Demand {
    /// What.
    pub what: What,
    /// Who.
    pub reply: Reply,
}

/// What was done while the guest stood still.
pub enum Done {
    /// A scan, whose report is to be written.
    Scanned(Box<ScanResult>),
    /// All of it.
    Answer(Answer),
}

impl Session {
    /// Does what was demanded of a guest that is stopped.
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

/// Tells subscribers what came of a demand.
pub fn publish(answer: &Answer) {
    match answer {
        Answer::Mark(mark) => broadcast::publish(|| Event::Mark(mark.told())),
        Answer::Cleared(count) => broadcast::publish(|| Event::Clear(*count)),
        _ => {}
    }
}
