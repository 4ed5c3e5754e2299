//! Where reports go.

use crate::diagnostics::{self, Level, MessageFiles};
use crate::file::{Grown, advice};
use crate::options::Options;
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
    /// Creates or empties the files. What cannot be written is said: its reports go to stderr until
    /// it can.
    pub fn open(options: &Options) -> Output {
        let files = options.reports.iter().map(|report| {
            let (file, made) = Grown::create(&report.path);
            if let Err(why) = &made {
                diagnostics::warning(&format!(
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
                diagnostics::warning(&format!(
                    "cannot write suppress-print={}: {why}; {}",
                    path.display(),
                    advice(&why)
                ));
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

impl MessageFiles for Output {
    /// Adds a message to the files of lines of JSON, and to all files where nobody sees stderr.
    /// Whoever reads only those must learn why there is no report.
    fn add(&self, level: Level, text: &str) {
        let level = level.word();
        for destination in &self.files {
            // A file that cannot be written is reported with the next report.
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
                    diagnostics::line(&format!(
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
            diagnostics::line(&format!(
                "error: cannot write suppress-print={}: {why}; {}",
                self.file.path().display(),
                advice(&why)
            ));
        }
    }
}
