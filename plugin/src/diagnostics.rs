//! Messages for the user: lines on stderr, which are also added to report files that programs read.

use std::io::Write;
use std::sync::OnceLock;

/// The level of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Level {
    /// Something failed.
    Error,
    /// A result is incomplete or not reliable.
    Warning,
}

impl Level {
    /// The word that starts a message.
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

/// Set once, when the files are open. Messages come from every thread and from the panic hook, so
/// the files are static.
static FILES: OnceLock<&'static dyn MessageFiles> = OnceLock::new();

/// Adds later messages to these files too. Errors in the options come before there are files.
pub fn also_to(files: &'static dyn MessageFiles) {
    let _ = FILES.set(files);
}

/// Writes a line to stderr, at any log level.
pub fn line(text: &str) {
    let _ = writeln!(std::io::stderr().lock(), "libleak: {text}");
}

/// Writes an error to stderr and to the files.
pub fn error(text: &str) {
    message(Level::Error, text);
}

/// Writes a warning to stderr and to the files.
pub fn warning(text: &str) {
    message(Level::Warning, text);
}

fn message(level: Level, text: &str) {
    line(&format!("{}: {text}", level.word()));
    in_files(level, text);
}

/// Adds a message to the files only.
pub fn in_files(level: Level, text: &str) {
    if let Some(files) = FILES.get() {
        files.add(level, text);
    }
}
