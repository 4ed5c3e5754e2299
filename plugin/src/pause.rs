//! Stopping the guest. One trait, and a ladder of ways; the first that works is used.
//!
//! There is deliberately no barrier of our own in vCPU callbacks: a vCPU that waits there still counts as
//! running for QEMU, which then waits for it for ever.

use crate::ffi::host;
use serde_json::Value;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How long anything may take to stop.
const TIMEOUT: Duration = Duration::from_secs(10);

/// What runs while the guest is stopped.
pub type Work = Box<dyn FnOnce() + Send>;

/// Why the guest could not be stopped.
#[derive(Debug, thiserror::Error)]
pub enum PauseError {
    /// The monitor.
    #[error(
        "pausing through the monitor at {path} failed: {why}; start QEMU with -qmp unix:{path},server=on,wait=off and leave that socket to libleak"
    )]
    Monitor {
        /// The socket.
        path: PathBuf,
        /// What went wrong.
        why: String,
    },
    /// The exclusive section.
    #[error(
        "pausing the vCPUs failed: {0}; give QEMU a monitor of its own for it (-qmp unix:PATH,server=on,wait=off) and pass qmp=PATH"
    )]
    Exclusive(&'static str),
}

/// A way to stop every vCPU.
pub trait Pause: Send {
    /// Runs `work` while no vCPU executes, and lets them go on.
    ///
    /// # Errors
    /// [`PauseError`]; `work` has then not run, unless the guest could not be let go on.
    fn during(&mut self, work: Work) -> Result<(), PauseError>;
}

/// The ways to pause, best first.
pub fn ladder(qmp: Option<&Path>) -> Vec<Box<dyn Pause>> {
    let mut ways: Vec<Box<dyn Pause>> = Vec::new();
    if let Some(path) = qmp {
        ways.push(Box::new(Monitor { path: path.into(), connection: None }));
    }
    ways.push(Box::new(Exclusive));
    ways
}

/// QEMU's own exclusive section, as it uses itself to change translated code: every vCPU is out of it.
struct Exclusive;

impl Pause for Exclusive {
    fn during(&mut self, work: Work) -> Result<(), PauseError> {
        host::exclusive(work, TIMEOUT).map_err(PauseError::Exclusive)
    }
}

/// A QMP monitor: `stop` and `cont`. The guest's clock stands still too.
struct Monitor {
    path: PathBuf,
    connection: Option<BufReader<UnixStream>>,
}

impl Monitor {
    fn connect(&mut self) -> Result<&mut BufReader<UnixStream>, String> {
        if self.connection.is_none() {
            let stream = UnixStream::connect(&self.path).map_err(|e| e.to_string())?;
            stream.set_read_timeout(Some(TIMEOUT)).map_err(|e| e.to_string())?;
            stream.set_write_timeout(Some(TIMEOUT)).map_err(|e| e.to_string())?;
            let mut connection = BufReader::new(stream);
            let greeting = receive(&mut connection)?;
            if greeting.get("QMP").is_none() {
                return Err("it is no QMP monitor".to_owned());
            }
            command(&mut connection, "qmp_capabilities")?;
            self.connection = Some(connection);
        }
        self.connection.as_mut().ok_or_else(|| "not connected".to_owned())
    }

    fn stop_and_work(&mut self, work: Work) -> Result<(), String> {
        let connection = self.connect()?;
        let status = command(connection, "query-status")?;
        // What somebody else stopped is not ours to let go on.
        let running = status.get("running").and_then(Value::as_bool).unwrap_or(true);
        if running {
            command(connection, "stop")?;
        }
        work();
        if running {
            command(connection, "cont")?;
        }
        Ok(())
    }
}

impl Pause for Monitor {
    fn during(&mut self, work: Work) -> Result<(), PauseError> {
        self.stop_and_work(work).map_err(|why| {
            self.connection = None;
            PauseError::Monitor { path: self.path.clone(), why }
        })
    }
}

fn receive(connection: &mut BufReader<UnixStream>) -> Result<Value, String> {
    let mut line = String::new();
    match connection.read_line(&mut line) {
        Ok(0) => Err("the monitor closed the connection".to_owned()),
        Ok(_) => serde_json::from_str(&line).map_err(|e| format!("the monitor said no JSON: {e}")),
        Err(e) => Err(e.to_string()),
    }
}

/// Sends a command and returns its result; events that come between are dropped.
fn command(connection: &mut BufReader<UnixStream>, name: &str) -> Result<Value, String> {
    let request = format!("{{\"execute\":\"{name}\"}}\n");
    connection.get_mut().write_all(request.as_bytes()).map_err(|e| e.to_string())?;
    let deadline = Instant::now() + TIMEOUT;
    while Instant::now() < deadline {
        let mut reply = receive(connection)?;
        if let Some(error) = reply.get("error") {
            return Err(format!("{name}: {error}"));
        }
        if let Some(result) = reply.get_mut("return") {
            return Ok(result.take());
        }
    }
    Err(format!("{name}: no answer"))
}
