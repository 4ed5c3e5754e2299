//! Reads lines of a client, which is not trusted.

use std::io::{self, Read};

/// Bytes of one line that are skipped before the connection is dropped.
const MAX_SKIPPED: u64 = 64 << 20;

/// What was read.
#[derive(Debug, PartialEq, Eq)]
pub enum Line {
    /// A line, without its end.
    Whole(Vec<u8>),
    /// A line that was too long and was skipped.
    TooLong,
    /// The sender has closed.
    End,
}

/// Reads lines of at most `limit` bytes.
pub struct Lines<R> {
    from: R,
    limit: usize,
    /// Bytes that were read and not returned yet.
    buffer: Vec<u8>,
    /// Bytes of the buffer that are known to contain no newline.
    searched: usize,
}

impl<R: Read> Lines<R> {
    /// Lines of `from`.
    pub fn new(from: R, limit: usize) -> Lines<R> {
        Lines { from, limit, buffer: Vec::new(), searched: 0 }
    }

    /// Reads the next line. Bytes after the last newline are dropped.
    ///
    /// # Errors
    /// Errors of the system, and one for a line that does not end.
    pub fn next(&mut self) -> io::Result<Line> {
        let mut skipped = 0u64;
        loop {
            if let Some(end) = memchr::memchr(b'\n', &self.buffer[self.searched..]) {
                let end = self.searched + end;
                let line: Vec<u8> = self.buffer.drain(..=end).take(end).collect();
                self.searched = 0;
                let is_whole = skipped == 0 && line.len() <= self.limit;
                return Ok(if is_whole { Line::Whole(line) } else { Line::TooLong });
            }
            self.searched = self.buffer.len();
            if self.buffer.len() > self.limit {
                skipped += self.buffer.len() as u64;
                self.buffer.clear();
                self.searched = 0;
            }
            if skipped > MAX_SKIPPED {
                return Err(io::ErrorKind::InvalidData.into());
            }
            let mut chunk = [0; 4096];
            match self.from.read(&mut chunk) {
                Ok(0) => return Ok(Line::End),
                Ok(n) => self.buffer.extend_from_slice(&chunk[..n]),
                Err(why) if why.kind() == io::ErrorKind::Interrupted => {}
                Err(why) => return Err(why),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Gives its bytes a few at a time.
    struct Drops<'a>(&'a [u8], usize);

    impl Read for Drops<'_> {
        fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
            let n = self.1.min(self.0.len()).min(to.len());
            to[..n].copy_from_slice(&self.0[..n]);
            self.0 = &self.0[n..];
            Ok(n)
        }
    }

    #[test]
    fn lines_come_whole_or_not_at_all() {
        let long = "x".repeat(10_000);
        let text = format!("one\n\n12345678\n123456789\n{long}\ntwo\nhalf");
        for step in [1, 3, 4096] {
            let mut lines = Lines::new(Drops(text.as_bytes(), step), 8);
            let mut next = || lines.next().unwrap();
            let whole = |text: &str| Line::Whole(text.into());
            assert_eq!([next(), next(), next()], [whole("one"), whole(""), whole("12345678")], "{step}");
            assert_eq!([next(), next()], [Line::TooLong, Line::TooLong], "{step}");
            assert_eq!([next(), next(), next()], [whole("two"), Line::End, Line::End], "{step}");
        }
    }

    #[test]
    fn a_line_without_end_ends() {
        let mut lines = Lines::new(io::repeat(b'x'), 8);
        assert_eq!(lines.next().unwrap_err().kind(), io::ErrorKind::InvalidData);
    }
}
