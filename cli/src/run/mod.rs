//! `leak run`: runs a command that starts QEMU, with its guests under the plugin.

mod arguments;
mod child;
mod folder;
mod outcome;
mod progress;
pub mod shim;

use crate::output;
use crate::qemu;
use crate::report::Form;
use child::Forwarding;
use folder::{FolderError, Setup, Started, VARIABLE};
use outcome::{FailOn, Outcome};
use progress::Progress;
use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::{fs, io};

/// Most bytes of the folder's path: that of a socket (`sockaddr_un`) minus the names in the folder.
const LONGEST: usize = 108 - 32;

/// Run a command that starts QEMU, with all its guests under libleak
///
/// The command is QEMU itself, or anything that finds qemu-system-x86_64 on PATH: vng, kunit.py, a
/// test harness. KVM is removed from QEMU's command line, since a guest under KVM cannot be
/// watched. Reports are made when QEMU ends. A QEMU that outlives the command is told to end.
#[derive(clap::Args)]
#[command(
    after_help = "Status: the command's own if that is not 0; else 24 if the detector did not work, 23 if there are leaks \
(see --fail-on), 0 if there are none.

Examples:
  leak run -- qemu-system-x86_64 -kernel bzImage -initrd initrd.gz -append console=ttyS0 -nographic
  leak run --report leaks.xml -- vng -r bzImage --user root --exec ./test.sh
  leak run --symbols .kunit/vmlinux -- ./tools/testing/kunit/kunit.py run --arch=x86_64
  leak run --report leaks.ktap --report leaks.jsonl --suppress known-leaks -- make check"
)]
pub struct RunCommand {
    /// Write the report to FILE. May be repeated. The suffix selects the format: .txt, .jsonl,
    /// .json, .xml (JUnit), .ktap or .tap, .folded. Without this option the report goes to stderr
    #[arg(long, value_name = "FILE")]
    report: Vec<PathBuf>,
    /// Leave out leaks that a line leak:PATTERN of this file matches. May be repeated
    #[arg(long, value_name = "FILE")]
    suppress: Vec<PathBuf>,
    /// vmlinux, System.map or saved /proc/kallsyms of the guests' kernel, if it lacks
    /// CONFIG_KALLSYMS_ALL
    #[arg(long, value_name = "FILE")]
    symbols: Option<PathBuf>,
    /// The plugin. The default is the variable LIBLEAK_PLUGIN, or the libleak.so beside this
    /// program
    #[arg(long, value_name = "FILE")]
    plugin: Option<PathBuf>,
    /// More options for the plugin in QEMU's syntax: k=v,k=v. Commas in values are doubled
    #[arg(long, value_name = "OPTIONS")]
    plugin_options: Option<String>,
    /// Scan at the end of each test too, and not only when QEMU ends. Tests are those of KTAP, and
    /// those that the guest names by echo leak:test NAME > /proc/self/comm
    #[arg(long)]
    per_test: bool,
    /// Which leaks make the status 23
    #[arg(long, value_name = "WHICH", default_value = "any")]
    fail_on: FailOn,
    /// Keep KVM on the command line, to see libleak's message
    #[arg(long)]
    keep_kvm: bool,
    /// Keep the folder of the run, and print its path
    #[arg(long)]
    keep: bool,
    /// The command and its arguments
    #[arg(last = true, required = true, value_name = "COMMAND")]
    command: Vec<OsString>,
}

/// The environment variable with the control socket of the first guest, for leak scan and similar
/// commands in the command.
const CONTROL: &str = "LIBLEAK_CONTROL";

/// Why the run failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The plugin was not found.
    #[error(transparent)]
    Plugin(#[from] qemu::PluginError),
    /// The folder of the run cannot be used.
    #[error(transparent)]
    Folder(#[from] FolderError),
    /// A file for the plugin does not exist.
    #[error("cannot use {path}: {why}; give a file that is there")]
    Missing {
        /// The path given.
        path: PathBuf,
        /// The error of the system.
        why: io::Error,
    },
    /// The format of a report is unknown.
    #[error("--report {0}: no form has this suffix; use .txt, .jsonl, .json, .xml, .ktap, .tap or .folded")]
    Suffix(PathBuf),
    /// The command cannot be started.
    #[error("cannot run {command}: {why}")]
    Start {
        /// Its name.
        command: String,
        /// The error of the system.
        why: io::Error,
    },
    /// Signals cannot be caught.
    #[error("cannot catch signals: {0}")]
    Signals(io::Error),
    /// A report cannot be written.
    #[error("cannot write --report {path}: {why}; make room there, or the folder")]
    Report {
        /// The file.
        path: PathBuf,
        /// The error of the system.
        why: io::Error,
    },
    /// The XML cannot be written.
    #[error("cannot write XML: {0}")]
    Xml(#[from] quick_junit::SerializeError),
}

impl RunCommand {
    /// Runs the command, writes the reports, and returns the status.
    pub fn run(&self) -> ExitCode {
        output::exit(self.try_run())
    }

    fn try_run(&self) -> Result<u8, Error> {
        let forms: Vec<(&PathBuf, Form)> = self
            .report
            .iter()
            .map(|p| Form::of(p).map(|f| (p, f)).ok_or(p))
            .collect::<Result<_, _>>()
            .map_err(|p| Error::Suffix(p.clone()))?;
        let plugin = qemu::plugin(self.plugin.as_deref())?;
        let setup = Setup { plugin: plugin.clone(), options: self.options()?, keep_kvm: self.keep_kvm };
        let mut run = new_folder()?;
        if self.keep {
            run.disable_cleanup(true);
            say(&format!("the files exchanged with QEMU are in {}", run.path().display()));
        }
        folder::save(&run.path().join("setup.json"), &setup)?;
        let signals = Forwarding::start().map_err(Error::Signals)?;
        let (mut command, started) = self.command(run.path())?;
        command.env(CONTROL, run.path().join("1/control"));
        let progress = Progress::start(run.path());
        let start = |why| Error::Start { command: self.command[0].display().to_string(), why };
        let ended = signals
            .run(&mut command, |pid| {
                started.into_iter().for_each(|(path, mut started)| {
                    started.pid = pid;
                    // The file exists, and only the process ID is new.
                    let _ = folder::save(&path, &started);
                })
            })
            .map_err(start)?;
        drop(progress);
        let outcome = Outcome::collect(run.path(), &plugin);
        self.tell(&outcome, &forms)?;
        Ok(outcome.status(ended.status, self.fail_on))
    }

    /// The plugin's options.
    fn options(&self) -> Result<Vec<String>, Error> {
        // Scripts may change the folder before they start QEMU.
        let file = |key: &str, path: &Path| {
            let path = fs::canonicalize(path).map_err(|why| Error::Missing { path: path.into(), why })?;
            Ok::<String, Error>(format!("{key}={}", path.display().to_string().replace(',', ",,")))
        };
        let mut options: Vec<String> = self.plugin_options.iter().cloned().collect();
        options.extend(self.per_test.then(|| "per-test=on".to_owned()));
        for path in &self.suppress {
            options.push(file("suppress", path)?);
        }
        if let Some(path) = &self.symbols {
            options.push(file("symbols", path)?);
        }
        Ok(options)
    }

    /// The command, with a PATH that leads QEMU's names to shims. If the command is QEMU itself, it
    /// is prepared as by a shim. The second value says where its record is.
    fn command(&self, run: &Path) -> Result<(Command, Option<(PathBuf, Started)>), Error> {
        let start = |why| Error::Start { command: self.command[0].display().to_string(), why };
        let (name, arguments) = (&self.command[0], &self.command[1..]);
        let path = std::env::var_os("PATH").unwrap_or_default();
        let leak = std::env::current_exe().and_then(fs::canonicalize).map_err(start)?;
        let file = Path::new(name).file_name().and_then(OsStr::to_str).unwrap_or_default();
        if file.starts_with("qemu-system-x86_64") || folder::NAMES.contains(&file) {
            let found = if name.as_encoded_bytes().contains(&b'/') {
                Some(name.into())
            } else {
                folder::find(name, &path, Some(&leak))
            };
            let program: PathBuf = found.ok_or_else(|| start(io::ErrorKind::NotFound.into()))?;
            let command = shim::prepare(run, &program, arguments)?;
            let note = folder::all(run).pop().map(|folder| folder.join("started.json"));
            let started = note.map(|path| folder::load(&path).map(|started| (path, started))).transpose()?;
            return Ok((command, started));
        }
        let mut command = Command::new(name);
        command.args(arguments).env("PATH", folder::make_shims(run, &leak, &path)?).env(VARIABLE, run);
        Ok((command, None))
    }

    /// Writes the reports and prints the result.
    fn tell(&self, outcome: &Outcome, forms: &[(&PathBuf, Form)]) -> Result<(), Error> {
        if !outcome.changed.is_empty() {
            say(&format!(
                "KVM was removed from QEMU's command line, since plugins see nothing under KVM: {}",
                outcome.changed.join("; ")
            ));
        }
        // Without a QEMU, the files contain the failure.
        let none = [crate::report::lines::Run { errors: outcome.failures.clone(), ..Default::default() }];
        let runs = if outcome.runs.is_empty() { &none } else { &outcome.runs[..] };
        for (path, form) in forms {
            fs::write(path, form.write(runs)?).map_err(|why| Error::Report { path: (*path).clone(), why })?;
        }
        if forms.is_empty() && outcome.runs.iter().any(|run| !run.reports.is_empty()) {
            eprint!("{}", Form::Text.write(&outcome.runs)?);
        }
        outcome.failures.iter().for_each(|why| say(&format!("error: {why}")));
        if outcome.failures.is_empty() || outcome.runs.iter().any(|run| run.groups().next().is_some()) {
            let files: Vec<String> = forms.iter().map(|(path, _)| path.display().to_string()).collect();
            let see = if files.is_empty() { String::new() } else { format!("; see {}", files.join(", ")) };
            say(&format!("{}{see}", outcome.summary()));
        }
        Ok(())
    }
}

fn say(what: &str) {
    eprintln!("leak: {what}");
}

/// Creates a folder whose sockets have short enough paths.
fn new_folder() -> Result<tempfile::TempDir, FolderError> {
    let usual = std::env::temp_dir();
    let place = if usual.as_os_str().len() < LONGEST { usual } else { "/tmp".into() };
    tempfile::Builder::new().prefix("leak-").tempdir_in(&place).map_err(|why| FolderError { path: place, why })
}
