//! Stops the guest through a QMP monitor with `stop` and `cont`. This also stops the guest's clock.
//!
//! The monitor may be dead, die between the two commands, be slow, or be no monitor. Every wait has
//! a timeout, and a guest that may have been stopped is resumed.

use super::{Pause, PauseError, TIMEOUT};
use crate::ffi::vcpu;
use crate::ffi::witness::{GuestStopped, Work};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use serde_json::Value;
use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Instant;

/// Most bytes of a line. QEMU's lines have some hundred.
const MAX_LINE: usize = 1 << 20;

/// What went wrong with a monitor.
#[derive(Debug, thiserror::Error)]
pub enum MonitorError {
    /// An error of the system.
    #[error(transparent)]
    System(#[from] std::io::Error),
    /// Something else listens there.
    #[error("it is no QMP monitor")]
    NotQmp,
    /// A line is not JSON.
    #[error("a line of the monitor is not JSON: {0}")]
    NoJson(serde_json::Error),
    /// A line is too long.
    #[error("a line of the monitor has more than {MAX_LINE} bytes")]
    LongLine,
    /// It did not answer.
    #[error("the monitor did not answer within {} s", TIMEOUT.as_secs())]
    Timeout,
    /// It closed the connection.
    #[error("the monitor closed the connection")]
    Closed,
    /// It refused a command.
    #[error("{name}: {error}")]
    Refused {
        /// The command.
        name: &'static str,
        /// The monitor's error.
        error: Value,
    },
    /// The answer to a command failed.
    #[error("{name}: {why}")]
    Answer {
        /// The command.
        name: &'static str,
        /// What went wrong.
        why: Box<MonitorError>,
    },
    /// The guest may be stopped. `cont` was sent.
    #[error("{0} (if the guest stands still, type cont in another monitor)")]
    MayStandStill(Box<MonitorError>),
    /// The guest may be stopped, and `cont` could not be sent.
    #[error("{0}, and the guest may stand still: type cont in another monitor")]
    StandsStill(Box<MonitorError>),
}

/// A QMP monitor.
pub(super) struct Monitor {
    path: PathBuf,
    connection: Option<Connection>,
    /// A connection whose `stop` was not answered, with a `cont` after it. It stays open: QEMU
    /// drops pending commands of a closed connection.
    late: Option<Connection>,
}

impl Monitor {
    pub(super) fn new(path: &Path) -> Monitor {
        Monitor { path: path.into(), connection: None, late: None }
    }

    fn stop_and_work(&mut self, work: Work) -> Result<(), MonitorError> {
        let mut connection = match self.connection.take() {
            Some(connection) => connection,
            None => Connection::new(&self.path)?,
        };
        let status = connection.command("query-status")?;
        // If someone else has stopped the guest, it is not resumed.
        let running = status.get("running").and_then(Value::as_bool).unwrap_or(true);
        if running && let Err(why) = connection.command("stop") {
            return Err(self.let_go(connection, why));
        }
        // SAFETY: the monitor has stopped the guest, or said that it was stopped. It stays stopped
        // unless the user resumes it by another monitor.
        #[expect(unsafe_code, reason = "states that the guest is stopped")]
        work(&unsafe { GuestStopped::new() });
        if running && let Err(why) = connection.command("cont") {
            return Err(self.let_go(connection, why));
        }
        self.connection = Some(connection);
        Ok(())
    }

    /// Resumes a guest that this may have stopped, or is about to stop. Returns `why`, and what the
    /// user can do if it fails.
    fn let_go(&mut self, mut connection: Connection, why: MonitorError) -> MonitorError {
        // It follows a `stop` that is executed late.
        let sent = connection.send("cont");
        self.late = Some(connection).filter(|_| sent.is_ok());
        let again = || {
            let mut connection = Connection::new(&self.path)?;
            connection.command("cont").map(drop)
        };
        match vcpu::resume().or_else(|_| again()) {
            Ok(()) => why,
            Err(_) if sent.is_ok() => MonitorError::MayStandStill(Box::new(why)),
            Err(_) => MonitorError::StandsStill(Box::new(why)),
        }
    }
}

impl Pause for Monitor {
    fn during(&mut self, work: Work) -> Result<(), PauseError> {
        self.stop_and_work(work).map_err(|why| PauseError::Monitor { path: self.path.clone(), why })
    }
}

/// A connection that is ready for commands.
struct Connection {
    stream: UnixStream,
    /// Bytes that were read and not parsed.
    buffer: Vec<u8>,
}

impl Connection {
    fn new(path: &Path) -> Result<Connection, MonitorError> {
        let stream = connect(path)?;
        stream.set_write_timeout(Some(TIMEOUT))?;
        let mut connection = Connection { stream, buffer: Vec::new() };
        let greeting = connection.receive(Instant::now() + TIMEOUT)?;
        if greeting.get("QMP").is_none() {
            return Err(MonitorError::NotQmp);
        }
        connection.command("qmp_capabilities")?;
        Ok(connection)
    }

    fn send(&mut self, name: &str) -> Result<(), MonitorError> {
        let request = format!("{{\"execute\":\"{name}\"}}\n");
        Ok(self.stream.write_all(request.as_bytes())?)
    }

    /// Sends a command and returns its result. Events are dropped.
    fn command(&mut self, name: &'static str) -> Result<Value, MonitorError> {
        self.send(name)?;
        let deadline = Instant::now() + TIMEOUT;
        loop {
            let mut reply = self.receive(deadline).map_err(|why| MonitorError::Answer { name, why: Box::new(why) })?;
            if let Some(error) = reply.get_mut("error") {
                return Err(MonitorError::Refused { name, error: error.take() });
            }
            if let Some(result) = reply.get_mut("return") {
                return Ok(result.take());
            }
        }
    }

    fn receive(&mut self, deadline: Instant) -> Result<Value, MonitorError> {
        loop {
            if let Some(end) = memchr::memchr(b'\n', &self.buffer) {
                let line: Vec<u8> = self.buffer.drain(..=end).collect();
                return serde_json::from_slice(&line).map_err(MonitorError::NoJson);
            }
            if self.buffer.len() > MAX_LINE {
                return Err(MonitorError::LongLine);
            }
            let rest = deadline.saturating_duration_since(Instant::now());
            if rest.is_zero() {
                return Err(MonitorError::Timeout);
            }
            self.stream.set_read_timeout(Some(rest))?;
            let mut chunk = [0; 4096];
            match self.stream.read(&mut chunk) {
                Ok(0) => return Err(MonitorError::Closed),
                Ok(n) => self.buffer.extend_from_slice(&chunk[..n]),
                Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                    return Err(MonitorError::Timeout);
                }
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) => return Err(e.into()),
            }
        }
    }
}

/// Connects without waiting: std's connect() waits for ever if the backlog is full.
fn connect(path: &Path) -> std::io::Result<UnixStream> {
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    rustix::net::connect(&socket, &SocketAddrUnix::new(path)?)?;
    let stream = UnixStream::from(socket);
    stream.set_nonblocking(false)?;
    Ok(stream)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixListener;

    /// A monitor that sends `lines`, one after each line that it gets, and then closes or is
    /// silent.
    fn monitor(test: &str, lines: &'static [&'static str], closes: bool) -> (PathBuf, std::thread::JoinHandle<String>) {
        let folder = std::env::temp_dir().join(format!("libleak-monitor-{test}-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let path = folder.join("qmp");
        let _ = std::fs::remove_file(&path);
        let listener = UnixListener::bind(&path).unwrap();
        let thread = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut told = String::new();
            for line in lines {
                stream.write_all(line.as_bytes()).unwrap();
                let mut chunk = [0; 4096];
                let n = stream.read(&mut chunk).unwrap_or(0);
                told += std::str::from_utf8(&chunk[..n]).unwrap();
            }
            if !closes {
                stream.read_to_string(&mut told).unwrap();
            }
            told
        });
        (path, thread)
    }

    const HELLO: &str = "{\"QMP\":{}}\n";
    const DONE: &str = "{\"event\":\"STOP\"}\n{\"return\":{}}\n";

    #[test]
    fn what_is_no_monitor_or_dies_or_babbles_is_told() {
        let failed = |test, lines, words: &str| {
            let (path, thread) = monitor(test, lines, true);
            let error =
                Monitor::new(&path).stop_and_work(Box::new(|_| panic!("nobody stopped"))).unwrap_err().to_string();
            assert!(error.contains(words), "{error}");
            thread.join().unwrap();
        };
        failed("none", &["SSH-2.0\n"], "not JSON");
        failed("other", &["{}\n"], "no QMP monitor");
        failed("dead", &[HELLO, DONE], "closed the connection");
        failed("refuses", &[HELLO, DONE, "{\"return\":{\"running\":true}}\n", "{\"error\":{}}\n"], "stop: {}");
        let error =
            Monitor::new(Path::new("/no/such/monitor")).stop_and_work(Box::new(|_| ())).unwrap_err().to_string();
        assert!(error.contains("No such file"), "{error}");
    }

    #[test]
    fn a_guest_that_is_stopped_is_told_to_go_on() {
        let (path, thread) =
            monitor("cont", &[HELLO, DONE, "{\"return\":{\"running\":true}}\n", DONE, "garbage\n"], false);
        let mut way = Monitor::new(&path);
        let error = way.stop_and_work(Box::new(|_| ())).unwrap_err().to_string();
        assert!(error.contains("cont: a line of the monitor is not JSON") && error.contains("type cont"), "{error}");
        drop(way);
        let told = thread.join().unwrap();
        assert_eq!(told.matches("\"cont\"").count(), 2, "{told}");
    }

    #[test]
    fn nobody_waits_where_nobody_listens() {
        let folder = std::env::temp_dir().join(format!("libleak-monitor-full-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let path = folder.join("qmp");
        let _listener = UnixListener::bind(&path).unwrap();
        let mut waiting = Vec::new();
        // The system lets a number of connections wait. Then there is an error.
        while let Ok(stream) = connect(&path) {
            waiting.push(stream);
            assert!(waiting.len() < 100_000);
        }
    }
}
