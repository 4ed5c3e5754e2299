//! A guest that takes orders from the test, while the test talks to libleak.

use crate::Guest;
use crate::program::{Finished, leak, scratch};
use serde_json::Value;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

/// Longest wait for an event.
const PATIENCE: Duration = Duration::from_secs(200);

/// The sockets and the console of a guest.
pub struct Places {
    /// The control socket.
    pub control: PathBuf,
    console: PathBuf,
    serial: PathBuf,
}

impl Places {
    /// Creates the folders of one test.
    ///
    /// # Panics
    /// If they cannot be created.
    pub fn new(test: &str) -> Places {
        // Not in the target folder, since the path of a socket is limited.
        let folder = std::env::temp_dir().join(format!("libleak-{test}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&folder);
        std::fs::create_dir_all(&folder).expect("a folder for sockets");
        Places {
            control: folder.join("control"),
            serial: folder.join("serial"),
            console: scratch(&format!("{test}-console")).join("console"),
        }
    }

    /// Adds these places and the step that waits for orders. The `machine` needs a second serial
    /// port.
    #[must_use]
    pub fn guest(&self, guest: Guest) -> Guest {
        guest
            .option(&format!("control={}", self.control.display()))
            .console(&self.console)
            .qemu_arg("-serial")
            .qemu_arg(&format!("unix:{},server=on,wait=off", self.serial.display()))
            .module("grower")
            .run(&["insmod:grower", "obey"])
    }

    /// Waits until the console contains a text.
    ///
    /// # Panics
    /// If it does not in time.
    pub fn wait_for(&self, text: &str) {
        let began = Instant::now();
        while !self.console_text().contains(text) {
            assert!(began.elapsed() < PATIENCE, "no \"{text}\" in {}", self.console.display());
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// The console so far.
    pub fn console_text(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(&self.console).unwrap_or_default()).replace('\r', "")
    }

    /// Waits until the guest takes orders. Returns its serial port.
    ///
    /// # Panics
    /// If it does not in time.
    pub fn orders(&self) -> UnixStream {
        self.wait_for("obey: ready");
        UnixStream::connect(&self.serial).expect("the guest's serial line")
    }

    /// Connects to libleak as soon as it listens.
    ///
    /// # Panics
    /// If it does not in time.
    pub fn client(&self) -> Client {
        let began = Instant::now();
        loop {
            match UnixStream::connect(&self.control) {
                Ok(stream) => return Client::new(stream),
                Err(why) => assert!(began.elapsed() < PATIENCE, "{}: {why}", self.control.display()),
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Runs the program `leak` beside the guest.
    ///
    /// # Panics
    /// If it cannot be started.
    pub fn leak(&self, words: &[&str]) -> Finished {
        let output = Command::new(leak())
            .args(words)
            .env("LIBLEAK_CONTROL", &self.control)
            .env_remove("LIBLEAK_LOG")
            .output()
            .expect("leak starts");
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Finished { status: output.status.code(), stdout: text(&output.stdout), stderr: text(&output.stderr) }
    }
}

impl Drop for Places {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(self.control.parent().unwrap_or(Path::new("")));
    }
}

/// Sends an order to the guest. The guest prints a line when it is done.
///
/// # Panics
/// If the guest does not listen.
pub fn order(orders: &mut UnixStream, what: &str) {
    orders.write_all(format!("{what}\n").as_bytes()).expect("the guest listens");
}

/// A connection to the control socket.
pub struct Client(BufReader<UnixStream>);

impl Client {
    fn new(stream: UnixStream) -> Client {
        stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        Client(BufReader::new(stream))
    }

    /// Sends bytes.
    ///
    /// # Panics
    /// If they cannot be sent.
    pub fn send(&mut self, bytes: &[u8]) {
        self.0.get_mut().write_all(bytes).expect("the control socket takes bytes");
    }

    /// The next line. `None` at the end.
    ///
    /// # Panics
    /// If the line is not JSON of the schema.
    pub fn line(&mut self) -> Option<Value> {
        let mut line = String::new();
        let read = self.0.read_line(&mut line).unwrap_or(0);
        let line: Value = (read > 0).then(|| serde_json::from_str(&line).expect("a line of JSON"))?;
        assert_eq!(line["schema"], 1, "{line}");
        Some(line)
    }

    /// Tries to send bytes and returns the next line, if there is one.
    pub fn line_after(&mut self, bytes: &[u8]) -> Option<Value> {
        let _ = self.0.get_mut().write_all(bytes);
        self.line()
    }

    /// Sends a request and returns its answer.
    ///
    /// # Panics
    /// If there is none.
    pub fn answer(&mut self, request: &Value) -> Value {
        self.send(format!("{request}\n").as_bytes());
        self.line().expect("an answer")
    }

    /// As [`Client::answer`], for a request that must succeed.
    ///
    /// # Panics
    /// If it does not.
    pub fn ask(&mut self, request: &Value) -> Value {
        let answer = self.answer(request);
        assert_eq!((&answer["ok"], &answer["do"]), (&true.into(), &request["do"]), "{request}: {answer}");
        answer
    }
}
