//! `leak check`.

use crate::output;
use checker::guest_state::GuestState;
use checker::report::{Asked, report};
use checker::{CheckError, Outcome};
use detector::report::Format;
use detector::suppress::{SuppressError, Suppressions};
use guest_symbols::memory::StoppedMemory;
use lines::{Lines, LinesError};
use snapshot::image::{self, Image, ImageError};
use snapshot::{ReadError, Snapshot};
use std::num::NonZeroUsize;
use std::path::PathBuf;

/// Check a snapshot or another memory image, and print the report
///
/// The report of a snapshot is the one that the plugin printed when it wrote it, except for the
/// length of the pause. Other images are ELF cores and kdump files of QEMU, libvirt, kdump and
/// makedumpfile. Nothing tracked their allocations, so leaks have a backtrace only if the kernel
/// recorded it (slub_debug=U). The status is 0 if there is a report, whatever is in it, and 1 if
/// there is none.
#[derive(clap::Args)]
pub struct Check {
    /// File that the plugin's option snapshot= wrote, or another memory image
    snapshot: PathBuf,
    /// Show the chain of references to every live object whose function, module or task contains
    /// PATTERN. If it is an address such as 0xffff888103a4c1e0, to the object there
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
    /// The image cannot be read.
    #[error(transparent)]
    Image(#[from] ImageError),
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
        if !image::is_snapshot(&self.snapshot)? {
            let image = Image::open(&self.snapshot)?;
            return self.report(image.moment(), &suppressions, &|outcome| {
                outcome.troubles.extend(image.missed());
                image.advice(outcome).unwrap_or_default()
            });
        }
        let snapshot = Snapshot::open(&self.snapshot)?;
        self.report(snapshot.moment(), &suppressions, &|_| String::new())
    }

    /// Makes the check. `finish` adds what is known only after it, and returns lines for the end.
    fn report<M: StoppedMemory>(
        &self,
        moment: GuestState<'_, M>,
        suppressions: &Suppressions,
        finish: &dyn Fn(&mut Outcome) -> String,
    ) -> Result<(), Error> {
        let lines = if self.debug.is_empty() { None } else { Some(Lines::open(&self.debug)?) };
        if let Some(lines) = &lines {
            lines.check_kernel(moment.kernel, moment.memory)?;
        }
        let mut moment = moment.with_memory(moment.memory);
        moment.lines = lines.as_ref();
        let failed = |why| Error::Check { path: self.snapshot.clone(), why };
        let why = self.why.as_deref();
        let address = why.and_then(|why| u64::from_str_radix(why.strip_prefix("0x")?, 16).ok());
        let why = why.filter(|_| address.is_none());
        let outcome = match checker::threads::pool(self.threads) {
            Some(pool) => pool.install(|| moment.check(why, suppressions)),
            None => moment.check(why, suppressions),
        };
        let mut outcome = outcome.map_err(failed)?;
        if let Some(address) = address {
            outcome.paths = moment.why(address).map_err(failed)?;
        }
        let last = finish(&mut outcome);
        let asked = Asked { audit: self.audit, pause: None, suppressions, unused: true };
        let mut report = report(moment.names(), &outcome, &moment.counters, asked);
        report.closing += &last;
        let text = self.format.write(&report, self.each);
        lines.iter().flat_map(Lines::take_problems).for_each(|why| log::warn!("{why}"));
        output::print(&text).map_err(Error::Output)
    }
}
