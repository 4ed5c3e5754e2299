//! Requests at random, and what came of them.

use crate::random::Random;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Without an answer for so long, libleak or QEMU hangs, on however busy a host.
pub const PATIENCE: Duration = Duration::from_secs(180);

/// A connection to the control socket.
pub struct Connection(BufReader<UnixStream>);

impl Connection {
    /// Connects.
    ///
    /// # Errors
    /// What the system says.
    pub fn to(socket: &Path) -> std::io::Result<Connection> {
        let stream = UnixStream::connect(socket)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        Ok(Connection(BufReader::new(stream)))
    }

    /// Sends a request and reads its answer.
    ///
    /// # Errors
    /// What the system says; an answer that is no JSON.
    pub fn ask(&mut self, request: &Value) -> std::io::Result<Value> {
        self.0.get_mut().write_all(format!("{request}\n").as_bytes())?;
        let mut line = String::new();
        self.0.read_line(&mut line)?;
        Ok(serde_json::from_str(&line)?)
    }
}

/// What came of the requests of one kind.
#[derive(Debug, Default)]
pub struct Tally {
    /// Those that were done.
    pub done: u64,
    /// Those that were refused: nothing is tracked yet, there is no such object or mark.
    pub refused: u64,
    /// Those that got no answer while QEMU lived.
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
    /// By the request's word.
    pub tallies: BTreeMap<&'static str, Tally>,
    /// Objects that `clear` had to hide, none of which was lost.
    pub cleared: u64,
    /// The first answers of each kind that refuse something.
    pub refusals: Vec<String>,
}

impl Client {
    /// One that is not connected yet.
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

    /// Takes these to ask about.
    pub fn learn(&mut self, addresses: Vec<u64>) {
        self.addresses = addresses;
    }

    /// How long to wait until the next request: some come at once, most not.
    pub fn pause(&mut self) -> Duration {
        match self.random.below(5) {
            0 => Duration::ZERO,
            _ => self.random.between(Duration::from_millis(100), Duration::from_secs(3)),
        }
    }

    /// Asks for something.
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
        // Some go without a word, and a connection with events takes no further request.
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

    /// Marks and `clear` are rare: they hide what a false report would be.
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

    /// Who holds an object is an object to ask about.
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

/// The words of requests.
const NAMES: [&str; 9] = ["scan", "mark", "diff", "clear", "status", "top", "why", "snapshot", "events"];
