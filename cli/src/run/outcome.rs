//! The results of the QEMUs of a run, and the exit status.

use super::folder::{self, Started};
use crate::output::{LEAKS, NO_RESULT};
use crate::qemu;
use crate::report::lines::Run;
use detector::report::Group;
use rustix::process::{Pid, Signal, kill_process};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Longest wait for the report of a QEMU that was told to end.
const PATIENCE: Duration = Duration::from_secs(60);

/// Which leaks make a run fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum FailOn {
    /// Leaks that nothing refers to
    Direct,
    /// Also leaks that only other leaks refer to
    Any,
    /// None: leaks are only reported
    None,
}

/// The results of the QEMUs of a run.
#[derive(Debug, Default)]
pub struct Outcome {
    /// One per QEMU, in the order of their start.
    pub runs: Vec<Run>,
    /// Why the detector did not work. If there are several QEMUs, each message has a number.
    pub failures: Vec<String>,
    /// Changes concerning KVM on command lines, each once.
    pub changed: Vec<String>,
}

impl Outcome {
    /// Waits for QEMUs that outlive the command, and reads all results.
    pub fn collect(run: &Path, plugin: &Path) -> Outcome {
        let mut outcome = Outcome::default();
        let folders = folder::all(run);
        if folders.is_empty() {
            outcome.failures.push(format!(
                "the command started no QEMU for x86-64 through PATH; leak run sees only QEMU that is started by one of the names {}",
                folder::NAMES.join(", ")
            ));
        }
        let one = folders.len() == 1;
        for (i, folder) in folders.iter().enumerate() {
            let (run, failure) = read(folder, plugin, &mut outcome.changed);
            if let Some(why) = failure {
                outcome.failures.push(if one { why } else { format!("QEMU {}: {why}", i + 1) });
            }
            outcome.runs.push(run);
        }
        outcome
    }

    fn groups(&self) -> impl Iterator<Item = &Group> {
        self.runs.iter().flat_map(Run::groups)
    }

    /// The exit status. `command` is the status of the command. If it is not 0 it is returned,
    /// since its meaning is known to the caller.
    pub fn status(&self, command: u8, fail_on: FailOn) -> u8 {
        let leaks = match fail_on {
            FailOn::Direct => self.groups().filter(|group| group.direct).count(),
            FailOn::Any => self.groups().count(),
            FailOn::None => 0,
        };
        match command {
            0 if !self.failures.is_empty() => NO_RESULT,
            0 if leaks > 0 => LEAKS,
            status => status,
        }
    }

    /// The run in one line.
    pub fn summary(&self) -> String {
        let objects: usize = self.groups().map(|g| g.leaks.len()).sum();
        let bytes: u64 = self.groups().map(Group::bytes).sum();
        let guests = match self.runs.len() {
            1 => String::new(),
            n => format!(" in {n} guests"),
        };
        match objects {
            0 => format!("no leaks{guests}"),
            n => format!(
                "{} ({bytes} bytes) leaked in {} places{guests}",
                crate::report::words::objects(n),
                self.groups().count()
            ),
        }
    }
}

/// The results of one QEMU, and why they are not valid.
fn read(folder: &Path, plugin: &Path, changed: &mut Vec<String>) -> (Run, Option<String>) {
    let started: Started = match folder::load(&folder.join("started.json")) {
        Ok(started) => started,
        Err(why) => return (Run::default(), Some(format!("it was not started: {why}"))),
    };
    for change in &started.changed {
        if !changed.contains(change) {
            changed.push(change.clone());
        }
    }
    let late = end(&started);
    let lines = folder.join("report.jsonl");
    let run = match Run::open(&lines) {
        Ok(run) => run,
        Err(_) if !lines.exists() => Run::default(),
        Err(why) => return (Run::default(), Some(why.to_string())),
    };
    let failure = if started.watched {
        Some("its command line already loads libleak with its own reports; remove that -plugin".to_owned())
    } else if !run.errors.is_empty() || !run.reports.is_empty() {
        // Either the report was made at the end, or there is an error. A caller that looks only at
        // the status must not take an unreliable report for a result.
        let doubtful = || run.reports.iter().flat_map(|r| &r.troubles).next_back();
        run.errors.last().cloned().or_else(|| doubtful().map(|why| format!("the report is unreliable: {why}")))
    } else if started.daemonized {
        Some("it runs in the background (-daemonize) and made no report yet; remove -daemonize".to_owned())
    } else if !late {
        Some("it was still running and did not end when told to".to_owned())
    } else {
        Some(match qemu::probe(&started.program, plugin) {
            Ok(_) if !started.kept.is_empty() => format!(
                "it ended without a report, with KVM on its command line ({}); plugins see nothing under KVM; remove --keep-kvm",
                started.kept.join("; ")
            ),
            Ok(_) => "it ended without a report: it did not start, or was killed; see what it said above".to_owned(),
            Err(why) => format!("it cannot run the plugin: {why}"),
        })
    };
    let run = match (&failure, run.failure()) {
        (Some(why), None) => Run { errors: vec![why.clone()], ..run },
        (Some(why), Some(_)) if run.errors.is_empty() => Run { errors: vec![why.clone()], ..run },
        _ => run,
    };
    (run, failure)
}

/// Whether the QEMU has ended. If not, it is told to end, and then it makes its report.
fn end(started: &Started) -> bool {
    let process = PathBuf::from(format!("/proc/{}", started.pid));
    let own = fs::canonicalize(&started.program).ok();
    let runs = || own.is_some() && fs::read_link(process.join("exe")).ok() == own;
    if !runs() {
        return true;
    }
    // It may be about to end by itself.
    let deadline = Instant::now() + PATIENCE;
    std::thread::sleep(Duration::from_millis(500));
    let mut told = false;
    while runs() && Instant::now() < deadline {
        if let Some(pid) = i32::try_from(started.pid).ok().and_then(Pid::from_raw).filter(|_| !told) {
            let _ = kill_process(pid, Signal::TERM);
            told = true;
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    !runs()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::lines::tests::text;

    #[test]
    fn a_command_that_failed_is_told_first() {
        let leaks = || Outcome { runs: vec![Run::read(&text()).unwrap()], ..Outcome::default() };
        assert_eq!([0, 1, 23].map(|command| leaks().status(command, FailOn::Any)), [23, 1, 23]);
        assert_eq!((leaks().status(0, FailOn::Direct), leaks().status(0, FailOn::None)), (23, 0));
        let mut indirect = leaks();
        indirect.runs[0].reports.iter_mut().flat_map(|r| &mut r.groups).for_each(|g| g.direct = false);
        assert_eq!((indirect.status(0, FailOn::Direct), indirect.status(0, FailOn::Any)), (0, 23));
        let failed = Outcome { failures: vec!["moon".into()], ..leaks() };
        assert_eq!([0, 1].map(|command| failed.status(command, FailOn::None)), [24, 1]);
        assert_eq!(Outcome::default().status(0, FailOn::Any), 0);
        assert_eq!(leaks().summary(), "4 objects (120 bytes) leaked in 4 places");
    }

    #[test]
    fn no_qemu_is_no_result() {
        let run = tempfile::tempdir().unwrap();
        let outcome = Outcome::collect(run.path(), Path::new("p"));
        assert!(outcome.failures[0].contains("no QEMU") && outcome.status(0, FailOn::None) == 24);
    }
}
