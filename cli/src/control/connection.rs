//! A connection to libleak in a QEMU that runs.

use detector::control::{Request, SCHEMA};
use serde_json::Value;
use std::io::{self, BufRead, BufReader, ErrorKind, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How long an answer may take: a pause takes 10 seconds at most, and others may be before us.
const ANSWER: Duration = Duration::from_secs(300);

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Nobody said where.
    #[error(
        "where does libleak listen? Give --control PATH or set LIBLEAK_CONTROL, with the path of the plugin's option control="
    )]
    NoPath,
    /// Nobody is there.
    #[error("cannot reach libleak at {path}: {why}; is QEMU running, with -plugin libleak.so,control={path}?")]
    Connect {
        /// The socket.
        path: PathBuf,
        /// The system's word.
        why: io::Error,
    },
    /// The connection broke.
    #[error("the connection to libleak broke: {0}; see what QEMU says on stderr")]
    Lost(io::Error),
    /// It ended.
    #[error("the guest ended before there was an answer; what libleak found is in its report")]
    Ended,
    /// libleak refuses.
    #[error("{0}")]
    Refused(String),
    /// No answer of ours.
    #[error("the answer makes no sense: {0}; use the program of the same libleak as the plugin")]
    Answer(String),
    /// A path that is no text, or of no folder.
    #[error("{0} has no path that can be sent; give another file")]
    Path(PathBuf),
    /// Standard output.
    #[error("cannot write the answer: {0}")]
    Output(io::Error),
}

/// The connection.
pub struct Connection(BufReader<UnixStream>);

impl Connection {
    /// Connects.
    ///
    /// # Errors
    /// [`Error::Connect`].
    pub fn open(path: &Path) -> Result<Connection, Error> {
        let stream = UnixStream::connect(path).map_err(|why| Error::Connect { path: path.into(), why })?;
        Ok(Connection(BufReader::new(stream)))
    }

    /// Asks, and waits for the answer.
    ///
    /// # Errors
    /// [`Error`]; [`Error::Refused`] has libleak's own words.
    pub fn ask(&mut self, request: &Request) -> Result<Value, Error> {
        let line = serde_json::to_string(request).map_err(|why| Error::Answer(why.to_string()))? + "\n";
        // Who was refused is told so, and then cannot be written to: what was told counts.
        let sent = self.0.get_mut().write_all(line.as_bytes());
        let answer = match self.line(Some(ANSWER))? {
            Some(line) => line,
            None => return Err(sent.err().map_or(Error::Ended, Error::Lost)),
        };
        let answer: Value = serde_json::from_str(&answer).map_err(|why| Error::Answer(why.to_string()))?;
        match (&answer["schema"], &answer["ok"], &answer["error"]) {
            (schema, _, _) if *schema != SCHEMA => {
                Err(Error::Answer(format!("it is of schema {schema}, and this program knows {SCHEMA}")))
            }
            (_, Value::Bool(true), _) => Ok(answer),
            (_, _, Value::String(why)) => Err(Error::Refused(why.clone())),
            _ => Err(Error::Answer("it is neither done nor refused".to_owned())),
        }
    }

    /// The next line, with its end; none when the guest has ended.
    ///
    /// # Errors
    /// [`Error::Lost`], also if none comes in that time.
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
