//! Messages for whoever runs QEMU: lines on stderr, and the same in files of reports that programs
//! read.

use std::io::Write;
use std::sync::OnceLock;

/// How bad it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Level {
    /// Something failed.
    Error,
    /// A result is less than it could be.
    Warning,
}

impl Level {
    /// The word before a message.
    pub fn word(self) -> &'static str {
        match self {
            Level::Error => "error",
            Level::Warning => "warning",
        }
    }
}

/// Files that messages go to, besides stderr.
pub trait MessageFiles: Sync {
    /// Adds a message.
    fn add(&self, level: Level, text: &str);
}

/// Set once, when the files are open. Messages come from every thread and from panics, so nobody
/// hands them around.
static FILES: OnceLock<&'static dyn MessageFiles> = OnceLock::new();

/// Sends later messages to these files too. Errors in the options come before there is any file.
pub fn also_to(files: &'static dyn MessageFiles) {
    let _ = FILES.set(files);
}

/// Writes a line to stderr, whatever the log level is.
pub fn line(text: &str) {
    let _ = writeln!(std::io::stderr().lock(), "libleak: {text}");
}

/// Says what failed, on stderr and in the files.
pub fn error(text: &str) {
    message(Level::Error, text);
}

/// Says why a result is less than it could be, on stderr and in the files.
pub fn warning(text: &str) {
    message(Level::Warning, text);
}

fn message(level: Level, text: &str) {
    line(&format!("{}: {text}", level.word()));
    in_files(level, text);
}

/// Adds a message to the files alone: stderr has it already.
pub fn in_files(level: Level, text: &str) {
    if let Some(files) = FILES.get() {
        files.add(level, text);
    }
}
