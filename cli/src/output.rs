//! Standard output, and the exit statuses of the program.

use std::io::Write;
use std::process::ExitCode;

/// The status if there are leaks, as in LeakSanitizer.
pub const LEAKS: u8 = 23;
/// The status if there is no result.
pub const NO_RESULT: u8 = 24;

/// Turns the result of a command into its status. An error is printed.
pub fn exit(done: Result<u8, impl std::fmt::Display>) -> ExitCode {
    ExitCode::from(done.unwrap_or_else(|why| {
        eprintln!("leak: error: {why}");
        NO_RESULT
    }))
}

/// Writes to standard output. A reader that closed it, such as head, is no error.
pub fn print(text: &str) -> std::io::Result<()> {
    match std::io::stdout().lock().write_all(text.as_bytes()) {
        Err(why) if why.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        done => done,
    }
}
