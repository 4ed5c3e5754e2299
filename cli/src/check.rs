//! `leak check`.

use crate::output;
use checker::CheckError;
use checker::report::{Asked, report};
use detector::report::Format;
use detector::suppress::{SuppressError, Suppressions};
use lines::{Lines, LinesError};
use snapshot::{ReadError, Snapshot};
use std::num::NonZeroUsize;
use std::path::PathBuf;

/// Check a snapshot and print its report
///
/// The report is the one that the plugin printed when it wrote the snapshot. Only the length of the
/// pause differs. The status is 0 if there is a report, with or without leaks. It is 1 if there is
/// no report.
#[derive(clap::Args)]
pub struct Check {
    /// File that the plugin's option snapshot= wrote
    snapshot: PathBuf,
    /// Show the chain of references to every live object whose function, module or task contains
    /// PATTERN
    #[arg(long, value_name = "PATTERN")]
    why: Option<String>,
    /// Count by cache and function the objects that only the kernel's slabs and vmap areas hold, or
    /// only libleak
    #[arg(long)]
    audit: bool,
    /// Leave out leaks that a line leak:PATTERN of this file matches, as the plugin's option
    /// suppress= does. May be repeated
    #[arg(long, value_name = "FILE")]
    suppress: Vec<PathBuf>,
    /// File or folder with debugging information of the kernel, for source locations. May be
    /// repeated
    #[arg(long, value_name = "PATH")]
    debug: Vec<PathBuf>,
    /// Print every object in kmemleak's format, not one per group
    #[arg(long)]
    each: bool,
    /// Threads of the check. The default is the number of processors, at most 8
    #[arg(long, value_name = "N")]
    threads: Option<NonZeroUsize>,
    /// Format of the report: text, jsonl or console
    #[arg(long, value_name = "FORM", default_value = "text")]
    format: Format,
}

/// Why there is no report.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The snapshot cannot be read.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// The suppressions cannot be read.
    #[error(transparent)]
    Suppress(#[from] SuppressError),
    /// The debugging information cannot be used.
    #[error(transparent)]
    Lines(#[from] LinesError),
    /// The check has no result.
    #[error("no result for snapshot {path}: {why}")]
    Check {
        /// The snapshot.
        path: PathBuf,
        /// Why not.
        why: CheckError,
    },
    /// Standard output cannot be written.
    #[error("cannot write the report: {0}")]
    Output(std::io::Error),
}

impl Check {
    /// Prints the report.
    ///
    /// # Errors
    /// [`Error`].
    pub fn run(&self) -> Result<(), Error> {
        let suppressions = Suppressions::read(&self.suppress)?;
        let snapshot = Snapshot::open(&self.snapshot)?;
        let mut moment = snapshot.moment();
        let lines = if self.debug.is_empty() { None } else { Some(Lines::open(&self.debug)?) };
        if let Some(lines) = &lines {
            lines.check_kernel(moment.kernel, moment.memory)?;
        }
        moment.lines = lines.as_ref();
        let failed = |why| Error::Check { path: self.snapshot.clone(), why };
        let why = self.why.as_deref();
        let outcome = match checker::threads::pool(self.threads) {
            Some(pool) => pool.install(|| moment.check(why, &suppressions)),
            None => moment.check(why, &suppressions),
        };
        let outcome = outcome.map_err(failed)?;
        let asked = Asked { audit: self.audit, pause: None, suppressions: &suppressions, unused: true };
        let text = self.format.write(&report(moment.names(), &outcome, &moment.counters, asked), self.each);
        lines.iter().flat_map(Lines::take_problems).for_each(|why| log::warn!("{why}"));
        output::print(&text).map_err(Error::Output)
    }
}
