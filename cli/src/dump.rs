//! `leak dump`.

use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;

/// Longest wait for QEMU's greeting.
const PATIENCE: Duration = Duration::from_secs(10);
/// Most bytes of an answer.
const MAX_ANSWER: u64 = 1 << 20;

/// Have QEMU write the memory of its guest to a file, for `leak check`
///
/// The guest stands still meanwhile and then goes on. It needs no plugin and may run under KVM.
/// QEMU needs a QMP socket: -qmp unix:SOCKET,server=on,wait=off.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  leak dump --qmp /tmp/qmp guest.core && leak check guest.core
  leak dump --qmp /tmp/qmp --format kdump-zlib guest.kdump
  virsh dump --memory-only DOMAIN guest.core   does the same for libvirt's guests")]
pub struct Dump {
    /// QEMU's QMP socket
    #[arg(long, value_name = "SOCKET")]
    qmp: PathBuf,
    /// Format of the file, as QEMU names it: elf, kdump-zlib, kdump-lzo, kdump-snappy, or from QEMU
    /// 8.2 on kdump-raw-zlib and so on. elf is written fastest and has the size of the RAM
    #[arg(long, value_name = "FORMAT", default_value = "elf")]
    format: String,
    /// File to write. QEMU writes it, with its own permissions
    file: PathBuf,
}

/// Why there is no file.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is no QEMU at the socket, or it went away.
    #[error("cannot talk to QEMU at {path}: {why}; give the socket of -qmp unix:SOCKET,server=on,wait=off")]
    Socket {
        /// The socket.
        path: PathBuf,
        /// The error of the system.
        why: std::io::Error,
    },
    /// The other side does not speak QMP.
    #[error("{path} is no QMP socket: it says {said:?}; -monitor is another protocol")]
    Protocol {
        /// The socket.
        path: PathBuf,
        /// What it says.
        said: String,
    },
    /// QEMU refused.
    #[error("QEMU does not write {file}: {why}")]
    Refused {
        /// The file.
        file: PathBuf,
        /// QEMU's words.
        why: String,
    },
    /// The path cannot be made absolute.
    #[error("cannot use {file}: {why}")]
    File {
        /// The file.
        file: PathBuf,
        /// The error of the system.
        why: std::io::Error,
    },
}

impl Dump {
    /// Writes the file.
    ///
    /// # Errors
    /// [`Error`].
    pub fn run(&self) -> Result<(), Error> {
        // QEMU may run in another folder.
        let file = std::path::absolute(&self.file).map_err(|why| Error::File { file: self.file.clone(), why })?;
        let socket = |why| Error::Socket { path: self.qmp.clone(), why };
        let stream = UnixStream::connect(&self.qmp).map_err(socket)?;
        stream.set_read_timeout(Some(PATIENCE)).map_err(socket)?;
        let mut qmp = Qmp(BufReader::new(stream));
        let protocol = |said: String| Error::Protocol { path: self.qmp.clone(), said };
        let greeting = qmp.line().map_err(socket)?;
        if !serde_json::from_str::<Value>(&greeting).is_ok_and(|said| said.get("QMP").is_some()) {
            return Err(protocol(greeting));
        }
        let refused = |why| Error::Refused { file: file.clone(), why };
        qmp.execute(&json!({ "execute": "qmp_capabilities" })).map_err(socket)?.map_err(refused)?;
        // Writing a large guest takes minutes.
        qmp.0.get_ref().set_read_timeout(None).map_err(socket)?;
        let words = json!({ "paging": false, "protocol": format!("file:{}", file.display()), "format": self.format });
        qmp.execute(&json!({ "execute": "dump-guest-memory", "arguments": words })).map_err(socket)?.map_err(refused)
    }
}

/// A connection to QEMU. Each message is one line of JSON (docs/interop/qmp-spec.rst).
struct Qmp(BufReader<UnixStream>);

impl Qmp {
    fn line(&mut self) -> std::io::Result<String> {
        let mut line = String::new();
        match Read::by_ref(&mut self.0).take(MAX_ANSWER).read_line(&mut line)? {
            0 => Err(std::io::ErrorKind::UnexpectedEof.into()),
            _ => Ok(line.trim_end().to_owned()),
        }
    }

    /// Sends a command and waits for its end. The inner error is QEMU's.
    fn execute(&mut self, command: &Value) -> std::io::Result<Result<(), String>> {
        self.0.get_ref().write_all(format!("{command}\n").as_bytes())?;
        loop {
            let said: Value = serde_json::from_str(&self.line()?)?;
            if let Some(error) = said.get("error") {
                let why = error.get("desc").and_then(Value::as_str).unwrap_or("no reason given");
                return Ok(Err(why.to_owned()));
            }
            // Everything else is an event.
            if said.get("return").is_some() {
                return Ok(Ok(()));
            }
        }
    }
}
