//! `leak check`.

use checker::CheckError;
use checker::report::{Asked, report};
use detector::report::Format;
use detector::suppress::{SuppressError, Suppressions};
use lines::{Lines, LinesError};
use snapshot::{ReadError, Snapshot};
use std::num::NonZeroUsize;
use std::path::PathBuf;

/// Check a snapshot, and print the report that the plugin printed when it wrote it
///
/// The report is the plugin's own, but for the time that the guest was paused. The status is 0 if there is a report,
/// whatever is in it, and 1 if there is none.
#[derive(clap::Args)]
pub struct Check {
    /// File that the plugin's option snapshot= wrote
    snapshot: PathBuf,
    /// Say for every live object of functions, modules or tasks whose name contains PATTERN who refers to it, step by
    /// step to the root
    #[arg(long, value_name = "PATTERN")]
    why: Option<String>,
    /// Say by cache and function which objects only the kernel's slabs and vmap areas hold, or only libleak
    #[arg(long)]
    audit: bool,
    /// Leave out what the lines leak:PATTERN of this file fit, as the plugin's option suppress= does; once or more
    #[arg(long, value_name = "FILE")]
    suppress: Vec<PathBuf>,
    /// File or folder with debugging information of that kernel, for places in the source; once or more
    #[arg(long, value_name = "PATH")]
    debug: Vec<PathBuf>,
    /// Print every object, in kmemleak's very words, and not one of each group
    #[arg(long)]
    each: bool,
    /// Threads that make the check; as many as there are processors, and 8 at most, unless said
    #[arg(long, value_name = "N")]
    threads: Option<NonZeroUsize>,
    /// Form of the report: text, jsonl or console
    #[arg(long, value_name = "FORM", default_value = "text")]
    format: Format,
}

/// Why there is no report.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The snapshot.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// The suppressions.
    #[error(transparent)]
    Suppress(#[from] SuppressError),
    /// The debugging information.
    #[error(transparent)]
    Lines(#[from] LinesError),
    /// The guest in it.
    #[error("no result for snapshot {path}: {why}")]
    Check {
        /// The snapshot.
        path: PathBuf,
        /// Why not.
        why: CheckError,
    },
    /// Standard output.
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
        crate::print(&text).map_err(Error::Output)
    }
}
