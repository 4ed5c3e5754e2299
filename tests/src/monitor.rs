//! QEMU's human monitor, and waiting for lines of a guest.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

/// Longest wait for an event.
const PATIENCE: Duration = Duration::from_secs(120);

/// Waits until a file contains a text.
///
/// # Panics
/// If it does not in time.
pub fn wait_for(file: &Path, text: &str) {
    let began = Instant::now();
    while !std::fs::read(file).is_ok_and(|b| String::from_utf8_lossy(&b).contains(text)) {
        assert!(began.elapsed() < PATIENCE, "no \"{text}\" in {}", file.display());
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// The monitor of a guest with [`Guest::monitor`](crate::Guest::monitor).
pub struct Monitor(UnixStream);

impl Monitor {
    /// Connects to the monitor.
    ///
    /// # Panics
    /// If nobody listens.
    pub fn connect(socket: &Path) -> Monitor {
        let stream = UnixStream::connect(socket).expect("the monitor is there");
        stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        let mut monitor = Monitor(stream);
        monitor.prompt();
        monitor
    }

    /// Sends a command. Returns the output up to the next prompt.
    ///
    /// # Panics
    /// If there is no prompt.
    pub fn command(&mut self, command: &str) -> String {
        self.0.write_all(format!("{command}\n").as_bytes()).expect("the monitor takes a command");
        self.prompt()
    }

    /// Ends QEMU.
    ///
    /// # Panics
    /// If nobody listens.
    pub fn quit(&mut self) {
        self.0.write_all(b"quit\n").expect("the monitor takes a command");
    }

    fn prompt(&mut self) -> String {
        let mut said = Vec::new();
        while !said.ends_with(b"(qemu) ") {
            let mut byte = [0];
            self.0.read_exact(&mut byte).expect("the monitor answers");
            said.push(byte[0]);
        }
        String::from_utf8_lossy(&said).into_owned()
    }
}
