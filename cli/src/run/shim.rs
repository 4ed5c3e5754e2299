//! This program under QEMU's name. It adds the plugin to the command line and becomes QEMU.

use super::arguments::{Added, Invocation, read};
use super::folder::{self, FolderError, NAMES, Setup, Started, VARIABLE};
use std::ffi::{OsStr, OsString};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

/// The status of shells for a missing program.
const NOT_FOUND: u8 = 127;

/// Why QEMU was not started.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is no QEMU.
    #[error("there is no {0} on PATH besides leak's own; install QEMU")]
    NoQemu(String),
    /// The program was called by this name outside of `leak run`.
    #[error("leak was called as {0}, which only leak run does; call it as leak")]
    NotRun(String),
    /// QEMU cannot be executed.
    #[error("cannot start {path}: {why}")]
    Start {
        /// QEMU.
        path: PathBuf,
        /// The error of the system.
        why: std::io::Error,
    },
    /// The folder of the run cannot be used.
    #[error(transparent)]
    Folder(#[from] FolderError),
}

/// The name of QEMU by which this program was called, if it is one.
pub fn called_as() -> Option<String> {
    let program = std::env::args_os().next()?;
    let name = Path::new(&program).file_name()?.to_str()?;
    NAMES.contains(&name).then(|| name.to_owned())
}

/// Becomes QEMU. Returns only if that fails.
pub fn run(name: &str) -> ExitCode {
    let arguments: Vec<OsString> = std::env::args_os().skip(1).collect();
    let Err(why) = try_run(name, &arguments);
    eprintln!("leak: error: {why}");
    ExitCode::from(NOT_FOUND)
}

fn try_run(name: &str, arguments: &[OsString]) -> Result<std::convert::Infallible, Error> {
    let run = std::env::var_os(VARIABLE).map(PathBuf::from).ok_or_else(|| Error::NotRun(name.to_owned()))?;
    let own = std::env::current_exe().and_then(std::fs::canonicalize).ok();
    let path = std::env::var_os("PATH").unwrap_or_default();
    let program = folder::find(name.as_ref(), &path, own.as_deref()).ok_or_else(|| Error::NoQemu(name.to_owned()))?;
    let mut command = prepare(&run, &program, arguments)?;
    let why = command.exec();
    Err(Error::Start { path: program, why })
}

/// QEMU with rewritten arguments. Creates the folder of this QEMU, unless it only answers a
/// question.
///
/// # Errors
/// [`FolderError`].
pub fn prepare(run: &Path, program: &Path, arguments: &[OsString]) -> Result<Command, FolderError> {
    let setup: Setup = folder::load(&run.join("setup.json"))?;
    let mut command = Command::new(program);
    let name = program.file_name().and_then(OsStr::to_str).unwrap_or_default();
    // Questions are recognised first, so that they create no folder.
    let nothing = Added { plugin: OsStr::new(""), monitor: None, keep_kvm: true };
    let watched = match read(name, arguments, nothing) {
        Invocation::Question => {
            command.args(arguments);
            return Ok(command);
        }
        Invocation::Watched => true,
        Invocation::Guest(_) => false,
    };
    let folder = folder::next(run)?;
    let monitor = (!has(&setup, "qmp=")).then(|| folder.join("qmp"));
    let plugin = plugin(&setup, &folder, monitor.as_deref());
    let added = Added { plugin: &plugin, monitor: monitor.as_deref(), keep_kvm: setup.keep_kvm };
    let (mut changed, mut kept, mut daemonized) = (Vec::new(), Vec::new(), false);
    match read(name, arguments, added) {
        Invocation::Guest(guest) => {
            (changed, kept, daemonized) = (guest.changed, guest.kept, guest.daemonized);
            command.args(guest.arguments);
        }
        Invocation::Question | Invocation::Watched => {
            command.args(arguments);
        }
    }
    let started = Started { pid: std::process::id(), program: program.to_owned(), changed, kept, daemonized, watched };
    folder::save(&folder.join("started.json"), &started)?;
    Ok(command)
}

/// Whether the user set this option.
fn has(setup: &Setup, key: &str) -> bool {
    setup.options.iter().any(|options| options.split(',').any(|option| option.starts_with(key)))
}

/// The value of `-plugin`.
fn plugin(setup: &Setup, folder: &Path, monitor: Option<&Path>) -> OsString {
    let escaped = |path: &Path| path.display().to_string().replace(',', ",,");
    let mut value = escaped(&setup.plugin);
    let mut add = |word: &str| value += &format!(",{word}");
    setup.options.iter().for_each(|word| add(word));
    if let Some(path) = monitor {
        add(&format!("qmp={}", escaped(path)));
    }
    if !has(setup, "control=") {
        add(&format!("control={}", escaped(&folder.join("control"))));
    }
    // Last, so that the user's format= applies to the user's files or to stderr.
    add(&format!("report={}", escaped(&folder.join("report.jsonl"))));
    value.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(command: &Command) -> Vec<String> {
        command.get_args().map(|a| a.to_str().unwrap().to_owned()).collect()
    }

    #[test]
    fn questions_leave_no_trace_and_guests_one_each() {
        let run = tempfile::tempdir().unwrap();
        let run = run.path();
        let setup = Setup { plugin: "/a,b/libleak.so".into(), options: vec!["scan=9".into()], keep_kvm: false };
        folder::save(&run.join("setup.json"), &setup).unwrap();
        let prepare = |line: &str| {
            let line: Vec<OsString> = line.split(' ').map(OsString::from).collect();
            words(&prepare(run, Path::new("/bin/qemu-kvm"), &line).unwrap())
        };
        assert_eq!(prepare("-cpu help"), ["-cpu", "help"]);
        assert!(folder::all(run).is_empty());
        let at = run.display();
        assert_eq!(
            prepare("-enable-kvm"),
            [
                "-accel".to_owned(),
                "tcg".to_owned(),
                "-qmp".to_owned(),
                format!("unix:{at}/1/qmp,server=on,wait=off"),
                "-plugin".to_owned(),
                format!("/a,,b/libleak.so,scan=9,qmp={at}/1/qmp,control={at}/1/control,report={at}/1/report.jsonl"),
            ]
        );
        let started: Started = folder::load(&run.join("1/started.json")).unwrap();
        assert_eq!((started.pid, started.changed.len(), started.watched), (std::process::id(), 2, false));
        assert_eq!(prepare("-plugin libleak.so"), ["-plugin", "libleak.so"]);
        assert!(folder::load::<Started>(&run.join("2/started.json")).unwrap().watched);
    }
}
