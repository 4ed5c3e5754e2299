//! `leak trim`.

use checker::guest_state::Moment;
use checker::report::Asked;
use checker::{CheckError, Outcome};
use detector::report::Format;
use detector::suppress::Suppressions;
use guest_symbols::memory::OwnedMemory;
use snapshot::{ReadError, Snapshot, WriteError};
use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;
use std::{fs, io};

/// A part of every name: all objects are explained.
const EVERYTHING: &str = "";

/// Leave out of a snapshot all that its report does not depend on
///
/// What processes and files have in memory is left out, as is what is free. `leak check` prints the same report of the new
/// snapshot, with --audit and --why too, which is made sure of before it gets its name.
#[derive(clap::Args)]
pub struct Trim {
    /// File that the plugin's option snapshot= wrote
    snapshot: PathBuf,
    /// The smaller one to write
    to: PathBuf,
}

/// Why there is no smaller snapshot.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A snapshot, the old or the new one.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// The guest in it.
    #[error("no result for snapshot {path}: {why}")]
    Check {
        /// The whole snapshot.
        path: PathBuf,
        /// Why not.
        why: CheckError,
    },
    /// The new snapshot.
    #[error(transparent)]
    Write(#[from] WriteError),
    /// It was written and could not get its name.
    #[error("cannot name snapshot {path}: {why}; give a path that is no folder's")]
    Name {
        /// The path given.
        path: PathBuf,
        /// The system's word.
        why: io::Error,
    },
    /// A flaw of ours.
    #[error(
        "without what the check of {path} did not read its report is another; use the whole snapshot, and report this as a bug"
    )]
    Differs {
        /// The whole snapshot.
        path: PathBuf,
    },
}

impl Trim {
    /// Writes the smaller snapshot, and says how small it is.
    ///
    /// # Errors
    /// [`Error`].
    pub fn run(&self) -> Result<(), Error> {
        let fail = |why| Error::Check { path: self.snapshot.clone(), why };
        let whole = Snapshot::open(&self.snapshot)?;
        let moment = whole.moment();
        let (memory, outcome) = snapshot::trim(&moment, Some(EVERYTHING)).map_err(fail)?;
        let report = report(&moment, outcome);
        let mut name = OsString::from(&self.to);
        name.push(".unproven");
        let unproven = PathBuf::from(name);
        let written = snapshot::write(&unproven, &moment.with_memory(&memory))?;
        drop(memory);
        let proven = || {
            let trimmed = Snapshot::open(&unproven)?;
            let moment = trimmed.moment();
            let outcome = moment.check(Some(EVERYTHING), &Suppressions::default()).map_err(fail)?;
            match report == self::report(&moment, outcome) {
                true => fs::rename(&unproven, &self.to).map_err(|why| Error::Name { path: self.to.clone(), why }),
                false => Err(Error::Differs { path: self.snapshot.clone() }),
            }
        };
        proven().inspect_err(|_| {
            let _ = fs::remove_file(&unproven);
        })?;
        let mib = |bytes: u64| bytes as f64 / (1 << 20) as f64;
        println!(
            "{}: {:.1} MiB, with {:.1} of {:.1} MiB of RAM; its report is the same",
            self.to.display(),
            mib(written.file),
            mib(written.filled),
            mib(written.ram)
        );
        Ok(())
    }
}

/// All that can be asked of a moment, but how long it took.
fn report(moment: &Moment<'_, OwnedMemory>, outcome: Outcome) -> String {
    let outcome = Outcome { time: Duration::ZERO, ..outcome };
    let asked = Asked { audit: true, pause: None, suppressions: &Suppressions::default(), unused: false };
    Format::default().write(&checker::report::report(moment.names(), &outcome, &moment.counters, asked), true)
}
