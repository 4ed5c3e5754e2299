//! Where reports and messages go.

use crate::file::{Grown, advice};
use crate::options::Options;
use crate::session;
use detector::report::{Format, Report, json};
use detector::suppress;
use parking_lot::Mutex;
use std::collections::BTreeSet;
use std::io::Write;
use std::sync::atomic::{AtomicBool, Ordering};

/// The destinations of reports: files, or stderr.
pub struct Output {
    files: Vec<Destination>,
    stderr: Format,
    each: bool,
    /// Whoever reads the files does not see stderr.
    background: bool,
    suppressions: Option<Mutex<Suppressions>>,
    /// Held by who writes: there are several threads that do.
    writing: Mutex<()>,
}

/// A file for reports.
struct Destination {
    file: Grown,
    format: Format,
    /// It could not be written, which was said.
    failed: AtomicBool,
}

/// The file for suppressions of what was reported.
struct Suppressions {
    file: Grown,
    /// Its lines, but for comments.
    lines: BTreeSet<String>,
}

impl Output {
    /// Creates or empties the files. What cannot be written is said: its reports go to stderr until it can.
    pub fn open(options: &Options) -> Output {
        let files = options.reports.iter().map(|report| {
            let (file, made) = Grown::create(&report.path);
            if let Err(why) = &made {
                warning(&format!(
                    "cannot write report={}: {why}; {}; until then its reports go to stderr",
                    file.path().display(),
                    advice(why)
                ));
            }
            Destination { file, format: report.format, failed: AtomicBool::new(made.is_err()) }
        });
        let suppressions = options.suppress_print.as_deref().map(|path| {
            let (file, made) = Grown::create(path);
            if let Err(why) = made {
                warning(&format!("cannot write suppress-print={}: {why}; {}", path.display(), advice(&why)));
            }
            Mutex::new(Suppressions { file, lines: BTreeSet::new() })
        });
        let files = files.collect();
        Output {
            files,
            stderr: options.stderr,
            each: options.each,
            background: options.background,
            suppressions,
            writing: Mutex::new(()),
        }
    }

    /// Writes a report. If a file fails, that is said once, and the report goes to stderr.
    pub fn write(&self, report: &Report) {
        let _one = self.writing.lock();
        let written = self.files.iter().filter(|destination| destination.write(report, self.each)).count();
        if written < self.files.len() || self.files.is_empty() {
            // A closed stderr is no reason to take QEMU down.
            let _ = std::io::stderr().lock().write_all(self.stderr.write(report, self.each).as_bytes());
        }
        if let Some(suppressions) = &self.suppressions {
            suppressions.lock().write(report);
        }
    }
}

impl Output {
    /// Adds a message to the files of lines of JSON, and to all where nobody sees stderr: whoever reads only those must learn
    /// why there is no report.
    fn message(&self, level: &str, text: &str) {
        for destination in &self.files {
            // Of a file that cannot be written that is said with the next report.
            let _ = match destination.format {
                Format::JsonLines => destination.file.append(&json::message(level, text)),
                _ if self.background => destination.file.append(&format!("libleak: {level}: {text}\n")),
                _ => Ok(()),
            };
        }
    }
}

impl Destination {
    /// Whether the report was written.
    fn write(&self, report: &Report, each: bool) -> bool {
        let written = self.file.append(&self.format.write(report, each));
        let failed = self.failed.swap(written.is_err(), Ordering::Relaxed);
        match written {
            Ok(()) => true,
            Err(why) => {
                if !failed {
                    // Not in the other files, where nothing is missing.
                    line(&format!(
                        "error: cannot write report={}: {why}; {}; until then its reports go to stderr",
                        self.file.path().display(),
                        advice(&why)
                    ));
                }
                false
            }
        }
    }
}

impl Suppressions {
    fn write(&mut self, report: &Report) {
        let mut text = String::new();
        for (line, comment) in suppress::for_groups(&report.groups) {
            // What a scan reports again, from the same function, is suppressed already.
            if !self.lines.contains(&line) {
                text += &format!("{comment}{line}\n");
                self.lines.insert(line);
            }
        }
        if let Err(why) = self.file.append(&text) {
            line(&format!(
                "error: cannot write suppress-print={}: {why}; {}",
                self.file.path().display(),
                advice(&why)
            ));
        }
    }
}

/// A line on stderr, whatever the log level.
pub fn line(text: &str) {
    let _ = writeln!(std::io::stderr().lock(), "libleak: {text}");
}

/// A line on stderr that says what failed, and one in files for programs.
pub fn error(text: &str) {
    message("error", text);
}

/// A line on stderr about a result that is less than it could be, and one in files for programs.
pub fn warning(text: &str) {
    message("warning", text);
}

fn message(level: &str, text: &str) {
    line(&format!("{level}: {text}"));
    in_files(level, text);
}

/// A message for programs alone: what was said on stderr already.
pub fn in_files(level: &str, text: &str) {
    // What is wrong with the options is said before there is any file.
    if let Some(session) = session::session() {
        session.output().message(level, text);
    }
}
