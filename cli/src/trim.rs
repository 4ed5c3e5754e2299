//! `leak trim`.

use checker::guest_state::GuestState;
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

/// Part of every name, so that all objects are explained.
const EVERYTHING: &str = "";

/// Reduce a snapshot to the memory that its report depends on
///
/// Memory of processes and files and free memory are left out. `leak check` prints the same report
/// for the new snapshot, also with --audit and --why. This is verified before the file gets its
/// name.
#[derive(clap::Args)]
pub struct Trim {
    /// File that the plugin's option snapshot= wrote
    snapshot: PathBuf,
    /// The smaller snapshot to write
    to: PathBuf,
}

/// Why there is no smaller snapshot.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The old or the new snapshot cannot be read.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// The check has no result.
    #[error("no result for snapshot {path}: {why}")]
    Check {
        /// The whole snapshot.
        path: PathBuf,
        /// Why not.
        why: CheckError,
    },
    /// The new snapshot cannot be written.
    #[error(transparent)]
    Write(#[from] WriteError),
    /// The new snapshot cannot get its name.
    #[error("cannot name snapshot {path}: {why}; give a path that is not a folder")]
    Name {
        /// The path given.
        path: PathBuf,
        /// The error of the system.
        why: io::Error,
    },
    /// The reports differ. This is a bug.
    #[error("the trimmed snapshot of {path} gives another report; use the whole snapshot, and report this as a bug")]
    Differs {
        /// The whole snapshot.
        path: PathBuf,
    },
}

impl Trim {
    /// Writes the smaller snapshot and prints its size.
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

/// Everything that a report can contain, except for durations.
fn report(moment: &GuestState<'_, OwnedMemory>, outcome: Outcome) -> String {
    let outcome = Outcome { time: Duration::ZERO, ..outcome };
    let asked = Asked { audit: true, pause: None, suppressions: &Suppressions::default(), unused: false };
    Format::default().write(&checker::report::report(moment.names(), &outcome, &moment.counters, asked), true)
}
