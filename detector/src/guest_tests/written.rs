//! Lines of tests on their way through pipes.
//!
//! A test may write to a pipe, whose reader writes the lines to the console some time later. By
//! then the next test may run. A line's boundary is where it was written first. It counts only if
//! it gets to the console, because other text goes through pipes as well.

use super::ktap;
use std::collections::VecDeque;
use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash, Hasher};

/// Most lines that are kept. A pipe holds 64 KiB.
const MAX_LINES: usize = 1 << 10;

/// A line in a pipe.
#[derive(Debug, Clone, Copy)]
struct Line {
    /// A hash of its text. Two lines with equal hashes could get each other's boundary.
    hash: u64,
    /// The pipe that it was written to first.
    pipe: u64,
    /// The next sequence number then.
    at: u64,
}

/// The lines that are in pipes, the oldest first.
#[derive(Debug, Default)]
pub struct Written(VecDeque<Line>);

fn hash(line: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    ktap::bare(line).hash(&mut hasher);
    hasher.finish()
}

impl Written {
    /// A line is written to a pipe. `now` is the next sequence number. If the line comes out of
    /// another pipe, nothing changes.
    pub fn write(&mut self, pipe: u64, line: &[u8], now: u64) {
        let hash = hash(line);
        if self.0.iter().any(|l| l.hash == hash && l.pipe != pipe) {
            return;
        }
        if self.0.len() == MAX_LINES {
            self.0.pop_front();
        }
        self.0.push_back(Line { hash, pipe, at: now });
    }

    /// A line is written to the console. Returns the sequence number at which it was first written,
    /// if it comes out of a pipe. `since` is the last boundary of a test: an equal line from before
    /// it may be one that never got to the console.
    pub fn read(&mut self, line: &[u8], since: u64) -> Option<u64> {
        if self.0.is_empty() {
            return None;
        }
        let hash = hash(line);
        let is_it = |l: &Line| l.hash == hash;
        let found = self.0.iter().position(|l| is_it(l) && l.at >= since).or_else(|| self.0.iter().rposition(is_it))?;
        let Line { pipe, at, .. } = self.0[found];
        // A pipe keeps the order, so the earlier lines were dropped by its reader.
        let mut number = 0;
        self.0.retain(|l| {
            number += 1;
            l.pipe != pipe || number > found + 1
        });
        Some(at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_counts_from_where_it_was_written_first() {
        let mut written = Written::default();
        assert_eq!(written.read(b"ok 1 a", 0), None);
        written.write(7, b"ok 1 a", 10);
        // The prefixer writes it to the pipe of tee.
        written.write(8, b"# ok 1 a", 20);
        assert_eq!(written.read(b"# ok 1 a\r", 5), Some(10));
        assert_eq!(written.read(b"# ok 1 a", 5), None);
    }

    #[test]
    fn equal_lines_of_one_pipe_come_in_their_order() {
        let mut written = Written::default();
        [10, 20, 30].into_iter().for_each(|at| written.write(7, b"ok 1 a", at));
        assert_eq!([1, 10, 20].map(|since| written.read(b"ok 1 a", since)), [Some(10), Some(20), Some(30)]);
    }

    #[test]
    fn lines_that_were_dropped_are_forgotten() {
        let mut written = Written::default();
        written.write(7, b"ok 1 a", 10);
        written.write(7, b"ok 2 b", 20);
        written.write(8, b"ok 3 c", 25);
        written.write(7, b"ok 1 a", 30);
        // The first one never got to the console, and other tests have ended since.
        assert_eq!(written.read(b"ok 1 a", 15), Some(30));
        assert_eq!(written.read(b"ok 2 b", 15), None);
        assert_eq!(written.read(b"ok 3 c", 15), Some(25));
        // A line that comes late does not move a boundary forward.
        written.write(7, b"ok 4 d", 40);
        assert_eq!(written.read(b"ok 4 d", 50), Some(40));
    }

    #[test]
    fn there_are_only_so_many() {
        let mut written = Written::default();
        for i in 0..3 * MAX_LINES as u64 {
            written.write(7, format!("ok {i}").as_bytes(), i);
        }
        assert_eq!(written.0.len(), MAX_LINES);
        assert_eq!(written.read(b"ok 1", 0), None);
    }
}
