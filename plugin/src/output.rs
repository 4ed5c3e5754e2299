//! Where reports and messages go.

use parking_lot::Mutex;
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

/// The destination of reports: stderr, or a file.
pub struct Output {
    file: Option<(PathBuf, Mutex<Option<File>>)>,
}

impl Output {
    /// Creates or empties the file.
    ///
    /// # Errors
    /// The line to print, if the file cannot be written.
    pub fn open(path: Option<&Path>) -> Result<Output, String> {
        let Some(path) = path else { return Ok(Output { file: None }) };
        let file = File::create(path).map_err(|why| {
            format!(
                "cannot write report={}: {why}; give a path in a folder that exists and is writable",
                path.display()
            )
        })?;
        Ok(Output { file: Some((path.into(), Mutex::new(Some(file)))) })
    }

    /// Writes a report. If the file fails, it is said once, and the report goes to stderr.
    pub fn write(&self, text: &str) {
        if let Some((path, file)) = &self.file {
            let mut file = file.lock();
            if let Some(f) = file.as_mut() {
                match f.write_all(text.as_bytes()).and_then(|()| f.flush()) {
                    Ok(()) => return,
                    Err(why) => {
                        error(&format!(
                            "cannot write report={}: {why}; reports go to stderr from here on",
                            path.display()
                        ));
                        *file = None;
                    }
                }
            }
        }
        // A closed stderr is no reason to take QEMU down.
        let _ = std::io::stderr().lock().write_all(text.as_bytes());
    }
}

/// A line on stderr, whatever the log level.
pub fn line(text: &str) {
    let _ = writeln!(std::io::stderr().lock(), "libleak: {text}");
}

/// A line on stderr that says what failed.
pub fn error(text: &str) {
    line(&format!("error: {text}"));
}

/// A line on stderr about a result that is less than it could be.
pub fn warning(text: &str) {
    line(&format!("warning: {text}"));
}
