//! Assigns allocations to the tests that run in the guest.
//!
//! A boundary between tests is a sequence number of the live map. An object belongs to the test
//! whose range of numbers contains its own, so objects need no extra field. Boundaries have two
//! sources. Markers begin and end a test by name. Lines of [`ktap`] name a test when it ends.
//!
//! Input from the guest is untrusted. Names are cut and escaped, and the number of ranges is
//! bounded.

pub mod ktap;
pub mod written;

use ktap::Line;
pub use ktap::Verdict;
use serde::{Deserialize, Serialize};
use std::borrow::Cow;
use std::sync::Arc;

/// Most bytes of a name, before and after escaping.
pub const MAX_NAME: usize = 256;
/// Most bytes of a name including those of the enclosing tests.
pub const MAX_PATH: usize = 1024;
/// Most ranges kept. This is enough for a night of short tests.
pub const MAX_STRETCHES: usize = 1 << 16;
/// Most ended tests that wait for the next report.
pub const MAX_FINISHED: usize = 1 << 16;
/// Most enclosing tests.
const MAX_DEPTH: usize = 16;

/// A test that ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Test {
    /// The name. The names of enclosing tests come first, each followed by `/`.
    pub name: String,
    /// How it ended. `None` if only its end is known.
    pub result: Option<Verdict>,
}

/// A range of sequence numbers that belongs to one test or to none. It starts where the previous
/// one ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stretch {
    /// The first sequence number behind the range.
    pub end: u64,
    /// The test, if any.
    pub test: Option<Arc<str>>,
}

/// A test whose start was announced.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Announced {
    /// Lines of its parts start at this column or behind it.
    column: usize,
    name: String,
}

/// All tests so far.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tests {
    /// The ranges, ascending.
    pub stretches: Vec<Stretch>,
    /// Ended tests that no report has listed yet.
    pub finished: Vec<Test>,
    /// The running test, if its name is known.
    pub running: Option<Arc<str>>,
    /// The test that ran or ended when the report was made.
    pub at: Option<Arc<str>>,
    /// Boundaries dropped because a table was full.
    pub dropped: u64,
    /// The test that a marker began.
    marked: Option<Arc<str>>,
    /// Announced tests that enclose the current line, outermost first.
    announced: Vec<Announced>,
}

impl Tests {
    /// The test during which the allocation with this sequence number was made.
    pub fn of(&self, sequence: u64) -> Option<&Arc<str>> {
        match self.stretches.get(self.stretches.partition_point(|s| s.end <= sequence)) {
            Some(stretch) => stretch.test.as_ref(),
            None => self.running.as_ref(),
        }
    }

    /// The sequence number at which the last range ends.
    pub fn last_boundary(&self) -> u64 {
        self.stretches.last().map_or(0, |last| last.end)
    }

    /// A marker ends the previous test and begins a new one, unless `name` is `None`. `now` is the
    /// next sequence number. Returns the test that ended.
    pub fn mark(&mut self, name: Option<&[u8]>, now: u64) -> Option<Arc<str>> {
        self.close(self.running.clone(), now);
        let before = self.marked.take();
        if let Some(before) = &before {
            self.finish(before, None);
        }
        self.announced.clear();
        self.marked = name.map(|name| clean(name).into());
        self.running = self.marked.clone();
        before
    }

    /// Reads a line of the guest's console. `now` is the next sequence number. Returns the test
    /// that the line ends.
    pub fn line(&mut self, line: &[u8], now: u64) -> Option<Arc<str>> {
        match ktap::parse(line)? {
            Line::Start { column, name } => {
                self.close(self.running.clone(), now);
                self.announced.retain(|open| open.column < column);
                if self.announced.len() < MAX_DEPTH {
                    self.announced.push(Announced { column, name: clean(name) });
                }
                self.running = Some(self.path(None).into());
                None
            }
            Line::Result { column, name, verdict } => {
                self.announced.retain(|open| open.column <= column);
                let name: Arc<str> = self.path(Some(clean(name))).into();
                self.close(Some(name.clone()), now);
                self.finish(&name, Some(verdict));
                self.running =
                    if self.announced.is_empty() { self.marked.clone() } else { Some(self.path(None).into()) };
                Some(name)
            }
        }
    }

    /// Ends the running test together with the guest. Returns that test.
    pub fn end(&mut self, now: u64) -> Option<Arc<str>> {
        let running = self.running.clone();
        if let Some(running) = running.as_deref().filter(|_| running != self.marked) {
            self.finish(running, None);
        }
        self.mark(None, now);
        running
    }

    /// The guest was reset to an earlier state. Sequence numbers continue, the running test does
    /// not.
    pub fn forget(&mut self, now: u64) {
        self.close(None, now);
        (self.marked, self.running) = (None, None);
        self.announced.clear();
    }

    /// The full name of a part of the innermost announced test, or of that test itself.
    fn path(&self, name: Option<String>) -> String {
        let marked = self.marked.as_deref().map(str::to_owned);
        let parts = marked.into_iter().chain(self.announced.iter().map(|open| open.name.clone())).chain(name);
        cut(parts.collect::<Vec<_>>().join("/"), MAX_PATH)
    }

    fn close(&mut self, test: Option<Arc<str>>, now: u64) {
        let full = self.stretches.len() >= MAX_STRETCHES;
        match self.stretches.last_mut() {
            // No object was allocated in between.
            Some(last) if last.end >= now => {}
            // Both ranges belong to the same test.
            Some(last) if last.test == test => last.end = now,
            _ if full => self.dropped += 1,
            _ => self.stretches.push(Stretch { end: now, test }),
        }
    }

    fn finish(&mut self, name: &str, result: Option<Verdict>) {
        match self.finished.len() {
            MAX_FINISHED.. => self.dropped += 1,
            _ => self.finished.push(Test { name: name.to_owned(), result }),
        }
    }
}

/// A name as one printable line: cut, trimmed and escaped as in [`shown`].
pub fn clean(name: &[u8]) -> String {
    cut(shown(String::from_utf8_lossy(&name[..name.len().min(MAX_NAME)]).trim()).into_owned(), MAX_NAME)
}

/// Text of the guest as it can be printed. Control characters and characters that change the
/// direction of text are escaped.
pub fn shown(text: &str) -> Cow<'_, str> {
    let directs = |c: char| matches!(c, '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{200e}' | '\u{200f}');
    if !text.contains(|c: char| c.is_control() || directs(c)) {
        return Cow::Borrowed(text);
    }
    let mut shown = String::new();
    for c in text.chars() {
        if c.is_control() || directs(c) {
            shown.extend(c.escape_unicode());
        } else {
            shown.push(c);
        }
    }
    Cow::Owned(shown)
}

/// Cuts a text to at most `most` bytes.
fn cut(mut text: String, most: usize) -> String {
    let end = (0..=most.min(text.len())).rev().find(|&at| text.is_char_boundary(at));
    text.truncate(end.unwrap_or(0));
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(tests: &Tests, sequence: u64) -> &str {
        tests.of(sequence).map_or("-", |name| name)
    }

    #[test]
    fn marked_tests_own_what_is_allocated_in_them() {
        let mut tests = Tests::default();
        assert_eq!(of(&tests, 5), "-");
        tests.mark(Some(b"A"), 10);
        assert_eq!((of(&tests, 9), of(&tests, 10)), ("-", "A"));
        tests.mark(Some(b"B"), 20);
        tests.mark(None, 30);
        let all: Vec<&str> = [9, 10, 19, 20, 29, 30].iter().map(|&n| of(&tests, n)).collect();
        assert_eq!(all, ["-", "A", "A", "B", "B", "-"]);
        assert_eq!(tests.finished.iter().map(|t| t.name.as_str()).collect::<Vec<_>>(), ["A", "B"]);
        assert!(tests.finished.iter().all(|t| t.result.is_none()));
    }

    #[test]
    fn a_result_owns_what_came_since_the_line_before() {
        let mut tests = Tests::default();
        let lines: [(&[u8], u64); 6] = [
            (b"KTAP version 1", 1),
            (b"    # Subtest: example", 10),
            (b"    ok 1 simple", 20),
            (b"    not ok 2 - bad # why", 30),
            (b"not ok 1 example", 40),
            (b"ok 2 alone # SKIP no such device", 50),
        ];
        let ended: Vec<_> = lines.iter().filter_map(|(line, now)| tests.line(line, *now)).collect();
        assert_eq!(
            ended.iter().map(|n| &**n).collect::<Vec<_>>(),
            ["example/simple", "example/bad", "example", "alone"]
        );
        let all: Vec<&str> = [9, 10, 20, 30, 40, 50].iter().map(|&n| of(&tests, n)).collect();
        assert_eq!(all, ["-", "example/simple", "example/bad", "example", "alone", "-"]);
        let results: Vec<_> = tests.finished.iter().map(|t| t.result.unwrap()).collect();
        assert_eq!(results, [Verdict::Ok, Verdict::NotOk, Verdict::NotOk, Verdict::Skip]);
    }

    #[test]
    fn parts_of_a_kselftest_have_its_name() {
        let mut tests = Tests::default();
        let lines: [&[u8]; 7] = [
            b"TAP version 13",
            b"# selftests: net: a.sh",
            b"# ok 1 first",
            b"# not ok 2 second",
            b"not ok 1 selftests: net: a.sh # exit=1",
            b"# selftests: net: b.sh",
            b"ok 2 selftests: net: b.sh",
        ];
        for (i, line) in lines.iter().enumerate() {
            tests.line(line, 10 * i as u64);
        }
        let names: Vec<_> = tests.finished.iter().map(|t| t.name.as_str()).collect();
        let want = [
            "selftests: net: a.sh/first",
            "selftests: net: a.sh/second",
            "selftests: net: a.sh",
            "selftests: net: b.sh",
        ];
        assert_eq!(names, want);
        assert_eq!((of(&tests, 15), of(&tests, 35), of(&tests, 45)), (want[0], want[2], "-"));
    }

    #[test]
    fn a_marked_test_holds_those_of_the_console() {
        let mut tests = Tests::default();
        tests.mark(Some(b"run 1"), 10);
        tests.line(b"ok 1 a", 20);
        assert_eq!((of(&tests, 15), of(&tests, 25)), ("run 1/a", "run 1"));
        tests.mark(None, 30);
        assert_eq!((of(&tests, 25), of(&tests, 35)), ("run 1", "-"));
    }

    #[test]
    fn what_runs_at_the_end_is_told_of() {
        let mut tests = Tests::default();
        assert_eq!(tests.end(5), None);
        tests.mark(Some(b"run 1"), 10);
        tests.line(b"# selftests: net: a.sh", 20);
        assert_eq!(tests.end(30).as_deref(), Some("run 1/selftests: net: a.sh"));
        assert_eq!((of(&tests, 25), of(&tests, 30)), ("run 1/selftests: net: a.sh", "-"));
        let names: Vec<_> = tests.finished.iter().map(|t| (t.name.as_str(), t.result)).collect();
        assert_eq!(names, [("run 1/selftests: net: a.sh", None), ("run 1", None)]);
    }

    #[test]
    fn names_are_cut_and_show_what_they_are() {
        let mut tests = Tests::default();
        tests.mark(Some(b" a\x1b[2J\nb\xff\0 "), 1);
        assert_eq!(of(&tests, 1), "a\\u{1b}[2J\\u{a}b\u{fffd}\\u{0}");
        tests.mark(Some("a\u{202e}b".as_bytes()), 2);
        assert_eq!(of(&tests, 2), "a\\u{202e}b");
        tests.mark(Some(&[b'x'; 1 << 16]), 3);
        assert_eq!(of(&tests, 3).len(), MAX_NAME);
        tests.mark(Some(&[0x1b; 1 << 16]), 4);
        assert!(of(&tests, 4).len() <= MAX_NAME);
        (0..MAX_DEPTH).for_each(|i| drop(tests.line(&[&b" ".repeat(i)[..], b"# Subtest: ", &[b'y'; 300]].concat(), 5)));
        assert_eq!(of(&tests, 5).len(), MAX_PATH);
    }

    #[test]
    #[cfg_attr(miri, ignore = "so many lines take minutes under Miri")]
    fn there_are_only_so_many() {
        let mut tests = Tests::default();
        for i in 0..MAX_STRETCHES as u64 + 100 {
            tests.line(format!("ok 1 {i}").as_bytes(), i + 1);
        }
        assert_eq!((tests.stretches.len(), tests.finished.len(), tests.dropped), (MAX_STRETCHES, MAX_FINISHED, 200));
        for _ in 0..1000 {
            for column in 0..100 {
                tests.line(format!("{:column$}# Subtest: x", "").as_bytes(), 1 << 30);
            }
        }
        assert!(tests.announced.len() <= MAX_DEPTH);
    }
}
