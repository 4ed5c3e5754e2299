//! Writes reports.

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
    /// QEMU runs in the background, so no one sees stderr.
    background: bool,
    suppressions: Option<Mutex<Suppressions>>,
    /// Held while a report is written: several threads write.
    writing: Mutex<()>,
}

/// A file for reports.
struct Destination {
    file: Grown,
    format: Format,
    /// Writing failed, which was reported.
    failed: AtomicBool,
}

/// The file for suppressions of what was reported.
struct Suppressions {
    file: Grown,
    /// Its lines, without comments.
    lines: BTreeSet<String>,
}

impl Output {
    /// Creates or empties the files. A warning names files that cannot be written; their reports go
    /// to stderr until they can.
    pub fn open(options: &Options) -> Output {
        let files = options.reports.iter().map(|report| {
            let (file, made) = Grown::create(&report.path);
            if let Err(why) = &made {
                diagnostics::warning(&format!(
                    "cannot write report={}: {why}; {}; until then reports go to stderr",
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

    /// Writes a report. If a file fails, an error is printed once, and the report goes to stderr.
    pub fn write(&self, report: &Report) {
        let _one = self.writing.lock();
        let written = self.files.iter().filter(|destination| destination.write(report, self.each)).count();
        if written < self.files.len() || self.files.is_empty() {
            // A closed stderr must not end QEMU.
            let _ = std::io::stderr().lock().write_all(self.stderr.write(report, self.each).as_bytes());
        }
        if let Some(suppressions) = &self.suppressions {
            suppressions.lock().write(report);
        }
    }
}

impl MessageFiles for Output {
    /// Adds a message to the files of lines of JSON. If no one sees stderr, it is added to all
    /// files: their readers must learn why there is no report.
    fn add(&self, level: Level, text: &str) {
        let level = level.word();
        for destination in &self.files {
            // If this fails, the next report says so.
            let _ = match destination.format {
                Format::JsonLines => destination.file.append(&json::message(level, text)),
                _ if self.background => destination.file.append(&format!("libleak: {level}: {text}\n")),
                _ => Ok(()),
            };
        }
    }
}

impl Destination {
    /// Writes the report. Returns whether that succeeded.
    fn write(&self, report: &Report, each: bool) -> bool {
        let written = self.file.append(&self.format.write(report, each));
        let failed = self.failed.swap(written.is_err(), Ordering::Relaxed);
        match written {
            Ok(()) => true,
            Err(why) => {
                if !failed {
                    // On stderr alone: the other files are complete.
                    diagnostics::line(&format!(
                        "error: cannot write report={}: {why}; {}; until then reports go to stderr",
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
            // An earlier report may have had the same line.
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
