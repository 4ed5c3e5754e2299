//! A connection to the control socket of a running QEMU.

use detector::control::{Request, SCHEMA};
use detector::report::json;
use serde_json::Value;
use std::io::{self, BufRead, BufReader, ErrorKind, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Longest wait for an answer. A pause takes at most 10 seconds, and other requests may be first.
const ANSWER: Duration = Duration::from_secs(300);

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No socket was named.
    #[error(
        "no control socket is given; give --control PATH or set LIBLEAK_CONTROL, with the path of the plugin's option control="
    )]
    NoPath,
    /// Nobody listens on the socket.
    #[error("cannot reach libleak at {path}: {why}; is QEMU running, with -plugin libleak.so,control={path}?")]
    Connect {
        /// The socket.
        path: PathBuf,
        /// The error of the system.
        why: io::Error,
    },
    /// The connection broke.
    #[error("the connection to libleak broke: {0}; see what QEMU says on stderr")]
    Lost(io::Error),
    /// The guest ended before the answer.
    #[error("the guest ended before there was an answer; libleak's last report has the result")]
    Ended,
    /// libleak refused the request. The field is its message.
    #[error("{0}")]
    Refused(String),
    /// The answer is malformed.
    #[error("the answer is malformed: {0}; use the program of the same libleak as the plugin")]
    Answer(#[from] AnswerFlaw),
    /// A path is not UTF-8 or has no folder.
    #[error("{0} has no path that can be sent; give another file")]
    Path(PathBuf),
    /// Standard output.
    #[error("cannot write the answer: {0}")]
    Output(io::Error),
}

/// What is wrong with an answer.
#[derive(Debug, thiserror::Error)]
pub enum AnswerFlaw {
    /// It is not JSON, or lacks a field.
    #[error(transparent)]
    Json(#[from] serde_json::Error),
    /// Its report cannot be read.
    #[error(transparent)]
    Report(#[from] json::ReadError),
    /// It has another schema.
    #[error("it is of schema {0}, and this program knows {SCHEMA}")]
    Schema(Value),
    /// It has neither a result nor an error.
    #[error("it has neither a result nor an error")]
    Neither,
}

/// The connection.
pub struct Connection(BufReader<UnixStream>);

impl Connection {
    /// Connects to the socket at `path`.
    ///
    /// # Errors
    /// [`Error::Connect`].
    pub fn open(path: &Path) -> Result<Connection, Error> {
        let stream = UnixStream::connect(path).map_err(|why| Error::Connect { path: path.into(), why })?;
        Ok(Connection(BufReader::new(stream)))
    }

    /// Sends a request and waits for the answer.
    ///
    /// # Errors
    /// [`Error`]. [`Error::Refused`] has libleak's own message.
    pub fn ask(&mut self, request: &Request) -> Result<Value, Error> {
        let line = serde_json::to_string(request).map_err(AnswerFlaw::from)? + "\n";
        // A refused client first gets an answer and is then disconnected. Such an answer is more
        // useful than the failed write.
        let sent = self.0.get_mut().write_all(line.as_bytes());
        let answer = match self.line(Some(ANSWER))? {
            Some(line) => line,
            None => return Err(sent.err().map_or(Error::Ended, Error::Lost)),
        };
        let answer: Value = serde_json::from_str(&answer).map_err(AnswerFlaw::from)?;
        match (&answer["schema"], &answer["ok"], &answer["error"]) {
            (schema, _, _) if *schema != SCHEMA => Err(AnswerFlaw::Schema(schema.clone()).into()),
            (_, Value::Bool(true), _) => Ok(answer),
            (_, _, Value::String(why)) => Err(Error::Refused(why.clone())),
            _ => Err(AnswerFlaw::Neither.into()),
        }
    }

    /// The next line with its end. `None` when the guest has ended.
    ///
    /// # Errors
    /// [`Error::Lost`], also if no line comes within `limit`.
    pub fn line(&mut self, limit: Option<Duration>) -> Result<Option<String>, Error> {
        self.0.get_ref().set_read_timeout(limit).map_err(Error::Lost)?;
        let mut line = String::new();
        match self.0.read_line(&mut line) {
            Ok(_) if line.ends_with('\n') => Ok(Some(line)),
            Ok(_) => Ok(None),
            Err(why) if why.kind() == ErrorKind::ConnectionReset => Ok(None),
            Err(why) if why.kind() == ErrorKind::WouldBlock => {
                Err(Error::Lost(io::Error::new(ErrorKind::TimedOut, "there is no answer")))
            }
            Err(why) => Err(Error::Lost(why)),
        }
    }
}

/// Reads the fields of an answer.
///
/// # Errors
/// [`Error::Answer`].
pub fn read<T: serde::de::DeserializeOwned>(answer: &Value) -> Result<T, Error> {
    T::deserialize(answer).map_err(|why| AnswerFlaw::from(why).into())
}

/// Writes to standard output. If its reader, such as head, is gone, the program ends.
///
/// # Errors
/// [`Error::Output`].
pub fn output(text: &str) -> Result<(), Error> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(why) if why.kind() == ErrorKind::BrokenPipe => std::process::exit(0),
        done => done.map_err(Error::Output),
    }
}
