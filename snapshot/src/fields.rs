//! Writes and reads the numbers, bytes and texts of the file. The reader bounds every length.

use std::io::{self, Read, Write};

/// Writes fields.
pub(crate) struct Sink<W>(pub W);

impl<W: Write> Sink<W> {
    pub fn u8(&mut self, n: u8) -> io::Result<()> {
        self.0.write_all(&[n])
    }

    pub fn u32(&mut self, n: u32) -> io::Result<()> {
        self.0.write_all(&n.to_le_bytes())
    }

    pub fn u64(&mut self, n: u64) -> io::Result<()> {
        self.0.write_all(&n.to_le_bytes())
    }

    pub fn flag(&mut self, is: bool) -> io::Result<()> {
        self.0.write_all(&[is.into()])
    }

    pub fn count(&mut self, n: usize) -> io::Result<()> {
        self.u32(u32::try_from(n).map_err(|_| io::Error::other(format!("{n} entries are too many for the format")))?)
    }

    pub fn bytes(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.count(bytes.len())?;
        self.0.write_all(bytes)
    }
}

/// What is wrong with the contents, and where.
#[derive(Debug)]
pub(crate) struct Flaw {
    pub part: &'static str,
    /// Offset in bytes in the uncompressed contents.
    pub at: u64,
    pub why: String,
}

/// Reads fields and tracks the position.
pub(crate) struct Source<R> {
    from: R,
    at: u64,
    part: &'static str,
}

impl<R: Read> Source<R> {
    pub fn new(from: R) -> Source<R> {
        Source { from, at: 0, part: "start" }
    }

    /// Sets the name of the part that follows.
    pub fn part(&mut self, part: &'static str) {
        self.part = part;
    }

    /// An error at the current position.
    pub fn flaw<T>(&self, why: impl Into<String>) -> Result<T, Flaw> {
        Err(Flaw { part: self.part, at: self.at, why: why.into() })
    }

    pub fn fill(&mut self, buf: &mut [u8]) -> Result<(), Flaw> {
        match self.from.read_exact(buf) {
            Ok(()) => {
                self.at += buf.len() as u64;
                Ok(())
            }
            Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => self.flaw("the file ends there"),
            Err(e) => self.flaw(e.to_string()),
        }
    }

    pub fn array<const N: usize>(&mut self) -> Result<[u8; N], Flaw> {
        let mut buf = [0; N];
        self.fill(&mut buf)?;
        Ok(buf)
    }

    pub fn u64(&mut self) -> Result<u64, Flaw> {
        self.array().map(u64::from_le_bytes)
    }

    pub fn flag(&mut self) -> Result<bool, Flaw> {
        match self.array()? {
            [0] => Ok(false),
            [1] => Ok(true),
            [n] => self.flaw(format!("{n} is neither 0 nor 1")),
        }
    }

    /// Reads a count that is at most `most`.
    pub fn count(&mut self, most: u32) -> Result<usize, Flaw> {
        match u32::from_le_bytes(self.array()?) {
            n if n <= most => Ok(n as usize),
            n => self.flaw(format!("{n} exceeds the limit of {most}")),
        }
    }

    pub fn bytes(&mut self, most: u32) -> Result<Vec<u8>, Flaw> {
        let len = self.count(most)?;
        let mut bytes = Vec::new();
        // Reads in pieces, so that a wrong length costs no more memory than the file has bytes.
        while bytes.len() < len {
            let start = bytes.len();
            bytes.resize(len.min(start + (1 << 20)), 0);
            self.fill(&mut bytes[start..])?;
        }
        Ok(bytes)
    }

    pub fn text(&mut self, most: u32) -> Result<String, Flaw> {
        let bytes = self.bytes(most)?;
        // The text is printed in reports, so it must not contain line breaks or terminal codes.
        let text = String::from_utf8(bytes).ok().filter(|text| !text.contains(char::is_control));
        text.map_or_else(|| self.flaw("no text of one line"), Ok)
    }
}
