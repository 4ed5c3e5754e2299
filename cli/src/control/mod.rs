//! Commands for a guest that runs: requests to the plugin's control socket, and what comes back in words.
//!
//! - [`connection`]: the socket
//! - [`print`]: answers as text
//! - [`watch`]: a live view

pub mod connection;
mod print;
mod watch;

use crate::{LEAKS, NO_RESULT};
use connection::{Connection, Error};
use detector::control::{By, Count, Grown, Live, Marked, Reasons, Request, Status};
use detector::report::{Format, json};
use serde_json::Value;
use std::path::PathBuf;
use std::process::ExitCode;

/// Requests to the socket of the plugin's option control=.
#[derive(clap::Subcommand)]
pub enum Command {
    /// Stop a running guest, and report what leaked and was not reported before
    ///
    /// The status is 0 if there is nothing new, 23 if there is, and 24 if libleak cannot be reached or does not work.
    Scan {
        #[command(flatten)]
        asking: Asking,
        /// Report no object that is younger
        #[arg(long, value_name = "SECONDS")]
        min_age: Option<f64>,
        /// Print every object, in kmemleak's very words, and not one of each group
        #[arg(long)]
        each: bool,
    },
    /// Take what is live in a running guest as the state of things, which is reported by no later scan
    Mark {
        #[command(flatten)]
        asking: Asking,
        /// What it is called, for leak diff; it gets a number without
        name: Option<String>,
    },
    /// Show where a running guest has allocated more than it freed since a mark, referred to or not
    Diff {
        #[command(flatten)]
        asking: Asking,
        /// The mark, if not the last one
        name: Option<String>,
        #[command(flatten)]
        places: Places,
    },
    /// Never report what is unreferenced in a running guest by now
    Clear {
        #[command(flatten)]
        asking: Asking,
    },
    /// Show what libleak knows of a running guest, without stopping it
    Status {
        #[command(flatten)]
        asking: Asking,
    },
    /// Show where most of a running guest's live bytes are from
    Top {
        #[command(flatten)]
        asking: Asking,
        #[command(flatten)]
        places: Places,
    },
    /// Show who refers to a live object of a running guest, step by step to the root
    Why {
        #[command(flatten)]
        asking: Asking,
        /// The address of any byte of it, in hexadecimal
        #[arg(value_parser = address)]
        address: u64,
    },
    /// Write a snapshot of a running guest, for leak check
    Snapshot {
        #[command(flatten)]
        asking: Asking,
        /// The file
        file: PathBuf,
    },
    /// Print what happens in a running guest, scans and marks, as lines of JSON until its end
    Events {
        #[command(flatten)]
        socket: Socket,
    },
    /// Show a running guest's memory every second until its end: how much, how fast, and what grows
    Watch {
        #[command(flatten)]
        socket: Socket,
        /// How often
        #[arg(long, value_name = "SECONDS", default_value = "1")]
        every: f64,
        /// Places shown
        #[arg(long, value_name = "NUMBER", default_value = "10")]
        limit: usize,
    },
}

/// Where libleak listens.
#[derive(clap::Args)]
pub struct Socket {
    /// The socket of the plugin's option control=; the environment variable LIBLEAK_CONTROL without
    #[arg(long, value_name = "PATH")]
    control: Option<PathBuf>,
}

/// How libleak is asked.
#[derive(clap::Args)]
pub struct Asking {
    #[command(flatten)]
    socket: Socket,
    /// Print the answer as it came, a line of JSON
    #[arg(long)]
    json: bool,
}

/// Which places are shown.
#[derive(clap::Args)]
pub struct Places {
    /// Places shown
    #[arg(long, value_name = "NUMBER", default_value = "20")]
    limit: usize,
    /// What a place is: a whole stack, or the site of an allocator and its caller
    #[arg(long, value_name = "stack|site")]
    by: Option<By>,
}

fn address(text: &str) -> Result<u64, String> {
    let digits = text.strip_prefix("0x").unwrap_or(text);
    u64::from_str_radix(digits, 16).map_err(|why| format!("{why}; give it as a report does: 0xffff888103a4c1e0"))
}

impl Command {
    /// Does it; errors are printed.
    pub fn run(self) -> ExitCode {
        match self.try_run() {
            Ok(code) => code,
            Err(why) => {
                eprintln!("leak: error: {why}");
                ExitCode::from(NO_RESULT)
            }
        }
    }

    fn try_run(self) -> Result<ExitCode, Error> {
        let done = Ok(ExitCode::SUCCESS);
        match self {
            Command::Scan { asking, min_age, each } => {
                let answer = asking.ask(&Request::Scan { min_age })?;
                let report = json::read_fields(&answer).map_err(|why| Error::Answer(why.to_string()))?;
                asking.print(&answer, || Ok(Format::Text.write(&report, each)))?;
                Ok(if report.groups.is_empty() { ExitCode::SUCCESS } else { ExitCode::from(LEAKS) })
            }
            Command::Mark { asking, name } => {
                let answer = asking.ask(&Request::Mark { name })?;
                asking.print(&answer, || Ok(print::marked(&read::<Marked>(&answer)?)))?;
                done
            }
            Command::Diff { asking, name, places: Places { limit, by } } => {
                let answer = asking.ask(&Request::Diff { name, limit: Some(limit), by })?;
                asking.print(&answer, || Ok(print::grown(&read::<Grown>(&answer)?)))?;
                done
            }
            Command::Clear { asking } => {
                let answer = asking.ask(&Request::Clear {})?;
                asking.print(&answer, || Ok(print::cleared(read::<Count>(&answer)?)))?;
                done
            }
            Command::Status { asking } => {
                let answer = asking.ask(&Request::Status {})?;
                let status = read::<Status>(&answer)?;
                asking.print(&answer, || Ok(print::status(&status)))?;
                Ok(if status.tracking { ExitCode::SUCCESS } else { ExitCode::from(NO_RESULT) })
            }
            Command::Top { asking, places: Places { limit, by } } => {
                let answer = asking.ask(&Request::Top { limit: Some(limit), by })?;
                asking.print(&answer, || Ok(print::live(&read::<Live>(&answer)?)))?;
                done
            }
            Command::Why { asking, address } => {
                let answer = asking.ask(&Request::Why { address })?;
                asking.print(&answer, || Ok(print::reasons(&read::<Reasons>(&answer)?)))?;
                done
            }
            Command::Snapshot { asking, file } => {
                // QEMU may run in another folder.
                let path = std::path::absolute(&file).map_err(|_| Error::Path(file.clone()))?;
                let path = path.to_str().ok_or(Error::Path(file))?.to_owned();
                let answer = asking.ask(&Request::Snapshot { path: path.clone() })?;
                asking.print(&answer, || Ok(format!("{path}: written\n")))?;
                done
            }
            Command::Events { socket } => {
                let mut connection = socket.connect()?;
                connection.ask(&Request::Events {})?;
                while let Some(line) = connection.line(None)? {
                    output(&line)?;
                }
                done
            }
            Command::Watch { socket, every, limit } => {
                watch::run(&mut socket.connect()?, every, limit)?;
                done
            }
        }
    }
}

impl Socket {
    fn connect(&self) -> Result<Connection, Error> {
        let from_environment =
            || std::env::var_os("LIBLEAK_CONTROL").filter(|path| !path.is_empty()).map(PathBuf::from);
        Connection::open(&self.control.clone().or_else(from_environment).ok_or(Error::NoPath)?)
    }
}

impl Asking {
    fn ask(&self, request: &Request) -> Result<Value, Error> {
        self.socket.connect()?.ask(request)
    }

    /// Prints an answer in the form that was asked for.
    fn print(&self, answer: &Value, text: impl FnOnce() -> Result<String, Error>) -> Result<(), Error> {
        output(&if self.json { format!("{answer}\n") } else { text()? })
    }
}

fn read<T: serde::de::DeserializeOwned>(answer: &Value) -> Result<T, Error> {
    T::deserialize(answer).map_err(|why| Error::Answer(why.to_string()))
}

/// Writes to standard output. Whoever reads it, such as head, may have seen enough.
fn output(text: &str) -> Result<(), Error> {
    use std::io::Write;
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(why) if why.kind() == std::io::ErrorKind::BrokenPipe => std::process::exit(0),
        done => done.map_err(Error::Output),
    }
}
