//! Sends random requests and counts their results.

use crate::random::Random;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// After this time without an answer, libleak or QEMU hangs, even on a busy host.
pub const PATIENCE: Duration = Duration::from_secs(180);

/// A connection to the control socket.
pub struct Connection(BufReader<UnixStream>);

impl Connection {
    /// Connects to the socket.
    ///
    /// # Errors
    /// The error of the system.
    pub fn to(socket: &Path) -> std::io::Result<Connection> {
        let stream = UnixStream::connect(socket)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        Ok(Connection(BufReader::new(stream)))
    }

    /// Sends a request and reads its answer.
    ///
    /// # Errors
    /// The error of the system, or an answer that is not JSON.
    pub fn ask(&mut self, request: &Value) -> std::io::Result<Value> {
        self.0.get_mut().write_all(format!("{request}\n").as_bytes())?;
        let mut line = String::new();
        self.0.read_line(&mut line)?;
        Ok(serde_json::from_str(&line)?)
    }
}

/// The results of requests of one kind.
#[derive(Debug, Default)]
pub struct Tally {
    /// Requests that succeeded.
    pub done: u64,
    /// Requests that were refused, since nothing is tracked yet, or the object or mark does not
    /// exist.
    pub refused: u64,
    /// Requests without an answer while QEMU was running.
    pub lost: u64,
    /// The longest wait for an answer.
    pub longest: Duration,
}

/// A client that asks for everything.
pub struct Client {
    socket: PathBuf,
    snapshot: PathBuf,
    connection: Option<Connection>,
    random: Random,
    addresses: Vec<u64>,
    /// Results by the request's name.
    pub tallies: BTreeMap<&'static str, Tally>,
    /// Objects that `clear` left out. None of them was lost.
    pub cleared: u64,
    /// The first refusals of each kind.
    pub refusals: Vec<String>,
}

impl Client {
    /// A client that is not connected yet.
    pub fn new(socket: &Path, snapshot: &Path, seed: u64) -> Client {
        Client {
            socket: socket.to_owned(),
            snapshot: snapshot.to_owned(),
            connection: None,
            random: Random(seed),
            addresses: Vec::new(),
            tallies: BTreeMap::new(),
            cleared: 0,
            refusals: Vec::new(),
        }
    }

    /// Sets the addresses for `why`.
    pub fn learn(&mut self, addresses: Vec<u64>) {
        self.addresses = addresses;
    }

    /// The time until the next request. Some follow at once, most do not.
    pub fn pause(&mut self) -> Duration {
        match self.random.below(5) {
            0 => Duration::ZERO,
            _ => self.random.between(Duration::from_millis(100), Duration::from_secs(3)),
        }
    }

    /// Sends one random request.
    pub fn ask(&mut self) {
        let request = self.request();
        let name = NAMES.iter().find(|name| request["do"] == **name).expect("a request has a word of the list");
        let began = Instant::now();
        let answer = self.answer(&request);
        let tally = self.tallies.entry(name).or_default();
        tally.longest = tally.longest.max(began.elapsed());
        match answer {
            Ok(answer) if answer["ok"] == true => {
                tally.done += 1;
                if *name == "clear" {
                    self.cleared += answer["objects"].as_u64().unwrap_or(0);
                }
                self.remember(&answer);
            }
            Ok(answer) => {
                tally.refused += 1;
                if tally.refused <= 3 {
                    self.refusals.push(format!("{request}: {}", answer["error"]));
                }
            }
            Err(why) => {
                tally.lost += 1;
                self.refusals.push(format!("{request}: no answer: {why}"));
                self.connection = None;
            }
        }
        // Some clients disconnect. A connection with events takes no further requests.
        if *name == "events" || self.random.below(20) == 0 {
            self.connection = None;
        }
    }

    fn answer(&mut self, request: &Value) -> std::io::Result<Value> {
        let connection = match &mut self.connection {
            Some(connection) => connection,
            none => none.insert(Connection::to(&self.socket)?),
        };
        connection.ask(request)
    }

    /// Marks and `clear` are rare, since they would leave out a false report.
    fn request(&mut self) -> Value {
        let r = &mut self.random;
        match r.below(100) {
            0..30 => json!({"do": "scan", "min_age": *r.one(&[0, 0, 1, 5])}),
            30..34 => json!({"do": "mark", "name": *r.one(&["one", "two"])}),
            34..36 => json!({"do": "clear"}),
            36..50 => {
                json!({"do": "diff", "name": *r.one(&[Some("one"), Some("two"), None]), "by": *r.one(&["stack", "site"])})
            }
            50..64 => json!({"do": "status"}),
            64..76 => json!({"do": "top", "limit": r.below(2000), "by": *r.one(&["stack", "site"])}),
            76..92 => {
                let known = if self.addresses.is_empty() { 0 } else { *r.one(&self.addresses) };
                let address = match r.below(10) {
                    0 => r.below(u64::MAX),
                    _ => known.wrapping_add(r.below(64)),
                };
                json!({"do": "why", "address": format!("{address:#x}")})
            }
            92..95 => json!({"do": "snapshot", "path": self.snapshot}),
            _ => json!({"do": "events"}),
        }
    }

    /// The holder of an object is another object for `why`.
    fn remember(&mut self, answer: &Value) {
        let paths = answer["paths"].as_array().into_iter().flatten();
        let holders = paths.flat_map(|path| path["holders"].as_array().into_iter().flatten());
        let address = |holder: &Value| u64::from_str_radix(holder["address"].as_str()?.strip_prefix("0x")?, 16).ok();
        for found in holders.filter_map(address) {
            if self.addresses.len() < 500 {
                self.addresses.push(found);
            } else {
                let place = self.random.below(500) as usize;
                self.addresses[place] = found;
            }
        }
    }
}

/// The names of requests.
const NAMES: [&str; 9] = ["scan", "mark", "diff", "clear", "status", "top", "why", "snapshot", "events"];
