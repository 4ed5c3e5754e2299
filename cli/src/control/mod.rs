//! Commands for a running guest: requests to the plugin's control socket, and their answers as
//! text.
//!
//! - [`connection`]: the socket
//! - [`print`]: answers as text
//! - [`watch`]: a live view

pub mod connection;
mod print;
mod watch;

use crate::output::{LEAKS, NO_RESULT};
use connection::{AnswerFlaw, Connection, Error, output, read};
use detector::control::{By, Count, Grown, Live, Marked, Reasons, Request, Status};
use detector::report::{Format, json};
use serde_json::Value;
use std::path::PathBuf;
use std::process::ExitCode;

/// Requests to the socket of the plugin's option control=.
#[derive(clap::Subcommand)]
pub enum Command {
    /// Stop a running guest and report new leaks
    ///
    /// The status is 0 if there are no new leaks and 23 if there are. It is 24 if libleak cannot be
    /// reached or does not work.
    Scan {
        #[command(flatten)]
        asking: Asking,
        /// Report no object that is younger
        #[arg(long, value_name = "SECONDS")]
        min_age: Option<f64>,
        /// Print every object in kmemleak's format, not one per group
        #[arg(long)]
        each: bool,
    },
    /// Mark all live objects of a running guest: no later scan reports them
    Mark {
        #[command(flatten)]
        asking: Asking,
        /// Name of the mark, for leak diff. Without one the mark gets a number
        name: Option<String>,
    },
    /// Show where a running guest allocated more than it freed since a mark, referenced or not
    Diff {
        #[command(flatten)]
        asking: Asking,
        /// The mark. The default is the last one
        name: Option<String>,
        #[command(flatten)]
        places: Places,
    },
    /// Never report what is unreferenced in a running guest now
    Clear {
        #[command(flatten)]
        asking: Asking,
    },
    /// Show the state of libleak in a running guest, without stopping the guest
    Status {
        #[command(flatten)]
        asking: Asking,
    },
    /// Show the sites with most live bytes of a running guest
    Top {
        #[command(flatten)]
        asking: Asking,
        #[command(flatten)]
        places: Places,
    },
    /// Show the chain of references to a live object of a running guest, up to the root
    Why {
        #[command(flatten)]
        asking: Asking,
        /// Address of any byte of the object, in hexadecimal
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
    /// Print events of a running guest, such as scans and marks, as JSON lines until its end
    Events {
        #[command(flatten)]
        socket: Socket,
    },
    /// Show a running guest's memory every second until its end: size, rate, and what grows
    Watch {
        #[command(flatten)]
        socket: Socket,
        /// Seconds between two updates
        #[arg(long, value_name = "SECONDS", default_value = "1")]
        every: f64,
        /// Places shown
        #[arg(long, value_name = "NUMBER", default_value = "10")]
        limit: usize,
    },
}

/// The socket of the plugin.
#[derive(clap::Args)]
pub struct Socket {
    /// Socket of the plugin's option control=. The default is the environment variable
    /// LIBLEAK_CONTROL
    #[arg(long, value_name = "PATH")]
    control: Option<PathBuf>,
}

/// Options of all requests.
#[derive(clap::Args)]
pub struct Asking {
    #[command(flatten)]
    socket: Socket,
    /// Print the answer as a line of JSON
    #[arg(long)]
    json: bool,
}

/// The choice of sites.
#[derive(clap::Args)]
pub struct Places {
    /// Places shown
    #[arg(long, value_name = "NUMBER", default_value = "20")]
    limit: usize,
    /// What counts as a place: a whole stack, or the site of an allocator and its caller
    #[arg(long, value_name = "stack|site")]
    by: Option<By>,
}

/// An argument that is not an address.
#[derive(Debug, thiserror::Error)]
#[error("{0}; give it as a report does: 0xffff888103a4c1e0")]
struct AddressError(#[from] std::num::ParseIntError);

fn address(text: &str) -> Result<u64, AddressError> {
    let digits = text.strip_prefix("0x").unwrap_or(text);
    Ok(u64::from_str_radix(digits, 16)?)
}

impl Command {
    /// Carries out the command. An error is printed.
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
                let report = json::read_fields(&answer).map_err(AnswerFlaw::from)?;
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

    /// Prints an answer as JSON or as text.
    fn print(&self, answer: &Value, text: impl FnOnce() -> Result<String, Error>) -> Result<(), Error> {
        output(&if self.json { format!("{answer}\n") } else { text()? })
    }
}
