//! Shows the progress of guests on a terminal.

use super::folder;
use crate::control::connection::Connection;
use detector::control::{Request, Status};
use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;

/// Time between two requests.
const PERIOD: Duration = Duration::from_secs(1);
/// Returns to the start of the line and clears it.
const CLEAN: &str = "\r\x1b[K";

/// The thread that shows the progress. Its line is cleared when this is dropped.
pub struct Progress(Option<(Sender<()>, JoinHandle<()>)>);

impl Progress {
    /// Starts if standard error is a terminal and standard output is not. Otherwise the terminal
    /// shows the command's own output.
    pub fn start(run: &Path) -> Progress {
        if !std::io::stderr().is_terminal() || std::io::stdout().is_terminal() {
            return Progress(None);
        }
        let (stop, stopped) = channel();
        let run = run.to_owned();
        Progress(Some((stop, std::thread::spawn(move || show(&run, &stopped)))))
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some((stop, thread)) = self.0.take() {
            drop(stop);
            let _ = thread.join();
        }
    }
}

fn show(run: &Path, stopped: &Receiver<()>) {
    let mut connected: Option<(PathBuf, Connection)> = None;
    while stopped.recv_timeout(PERIOD) == Err(RecvTimeoutError::Timeout) {
        let folders = folder::all(run);
        // The last guest that was started.
        let Some(folder) = folders.last() else { continue };
        if connected.as_ref().is_none_or(|(of, _)| of != folder) {
            connected = Connection::open(&folder.join("control")).ok().map(|connection| (folder.clone(), connection));
        }
        let answer = connected.as_mut().and_then(|(_, connection)| connection.ask(&Request::Status {}).ok());
        match answer.and_then(|answer| serde_json::from_value(answer).ok()) {
            Some(status) => draw(&line(folders.len(), &status)),
            None => connected = None,
        }
    }
    draw("");
}

fn draw(text: &str) {
    let mut stderr = std::io::stderr().lock();
    let _ = write!(stderr, "{CLEAN}{text}");
    let _ = stderr.flush();
}

fn line(guest: usize, status: &Status) -> String {
    let figure = |name: &str| status.figures.get(name).copied().unwrap_or_default();
    let Some(release) = status.release.as_deref().filter(|_| status.tracking) else {
        return format!("leak: guest {guest}: no kernel yet");
    };
    format!(
        "leak: guest {guest}: Linux {release}, {} allocations, {} live objects, {} scans, {} leaked",
        figure("allocations"),
        figure("live_objects"),
        status.scans,
        status.reported.objects
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guest_in_a_line() {
        assert_eq!(line(2, &Status::default()), "leak: guest 2: no kernel yet");
        let figures = [("allocations", 9), ("live_objects", 5)].map(|(k, v)| (k.to_owned(), v));
        let status = Status {
            tracking: true,
            release: Some("6.12".into()),
            figures: figures.into(),
            scans: 1,
            ..Status::default()
        };
        let want = "leak: guest 1: Linux 6.12, 9 allocations, 5 live objects, 1 scans, 0 leaked";
        assert_eq!(line(1, &status), want);
    }
}
