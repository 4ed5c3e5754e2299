//! Parses KTAP, the kernel's Test Anything Protocol (Documentation/dev-tools/ktap.rst). KUnit
//! prints it by `printk()`, kselftests write it to standard output.

use serde::{Deserialize, Serialize};

/// How a test ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Verdict {
    /// `ok`.
    #[serde(rename = "ok")]
    Ok,
    /// `not ok`.
    #[serde(rename = "not ok")]
    NotOk,
    /// `ok`, with the directive SKIP.
    #[serde(rename = "skip")]
    Skip,
}

/// A line that starts or ends a test.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Line<'a> {
    /// A test starts.
    Start {
        /// Lines of the test's parts start at this column or behind it.
        column: usize,
        /// The name of the test.
        name: &'a [u8],
    },
    /// A test ended.
    Result {
        /// The column of the line.
        column: usize,
        /// The name of the test, or its number if it has no name.
        name: &'a [u8],
        /// How the test ended.
        verdict: Verdict,
    },
}

/// Columns of a tab, of a nesting level, and of the `# ` before the output of a kselftest.
const LEVEL: usize = 4;
/// Most nesting levels that are parsed.
const MAX_LEVELS: usize = 16;

/// Whether a line with these first bytes may start or end a test. It is a cheap filter.
pub fn may_be(start: &[u8]) -> bool {
    matches!(start.trim_ascii_start().first(), None | Some(b'o' | b'n' | b'#'))
}

/// Parses a line without its end. Returns `None` if it neither starts nor ends a test.
pub fn parse(line: &[u8]) -> Option<Line<'_>> {
    let (mut column, mut rest) = (0, line);
    for _ in 0..MAX_LEVELS {
        while let [blank @ (b' ' | b'\t'), after @ ..] = rest {
            column += if *blank == b'\t' { LEVEL } else { 1 };
            rest = after;
        }
        if let Some(name) = rest.strip_prefix(b"# Subtest: ") {
            return start(column, name);
        }
        if let Some(name) = rest.strip_prefix(b"# ").filter(|name| name.starts_with(b"selftests: ")) {
            return start(column + LEVEL, name);
        }
        match rest.strip_prefix(b"# ") {
            Some(after) => (column, rest) = (column + LEVEL, after),
            None => break,
        }
    }
    let (passed, rest) = match rest.strip_prefix(b"not ok ") {
        Some(rest) => (false, rest),
        None => (true, rest.strip_prefix(b"ok ")?),
    };
    let digits = rest.iter().take_while(|b| b.is_ascii_digit()).count();
    let (number, rest) = rest.split_at(digits);
    if number.is_empty() || rest.first().is_some_and(|b| !b.is_ascii_whitespace()) {
        return None;
    }
    let rest = rest.trim_ascii();
    let rest = rest.strip_prefix(b"- ").unwrap_or(rest).trim_ascii();
    let (name, directive) = match memchr::memmem::find(rest, b"# ").filter(|&at| at == 0 || rest[at - 1] == b' ') {
        Some(at) => (rest[..at].trim_ascii(), &rest[at + 2..]),
        None => (rest, &[][..]),
    };
    let skipped = directive.get(..4).is_some_and(|word| word.eq_ignore_ascii_case(b"skip"));
    let verdict = match passed {
        true if skipped => Verdict::Skip,
        true => Verdict::Ok,
        false => Verdict::NotOk,
    };
    Some(Line::Result { column, name: if name.is_empty() { number } else { name }, verdict })
}

/// A line without what its readers may add or cut: the output of a kselftest has `# ` before each
/// line (tools/testing/selftests/kselftest/prefix.pl).
pub fn bare(mut line: &[u8]) -> &[u8] {
    for _ in 0..MAX_LEVELS {
        line = line.trim_ascii();
        match line.strip_prefix(b"# ") {
            Some(rest) => line = rest,
            None => break,
        }
    }
    line
}

fn start(column: usize, name: &[u8]) -> Option<Line<'_>> {
    Some(Line::Start { column, name: name.trim_ascii() }).filter(|_| !name.trim_ascii().is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn result(column: usize, name: &str, verdict: Verdict) -> Option<Line<'_>> {
        Some(Line::Result { column, name: name.as_bytes(), verdict })
    }

    #[test]
    fn results() {
        assert_eq!(parse(b"ok 1 a test"), result(0, "a test", Verdict::Ok));
        assert_eq!(parse(b"    not ok 12 - a_test"), result(4, "a_test", Verdict::NotOk));
        assert_eq!(parse(b"\tok 1 - a\r"), result(4, "a", Verdict::Ok));
        assert_eq!(parse(b"ok 3"), result(0, "3", Verdict::Ok));
        assert_eq!(parse(b"ok 3 -   a"), result(0, "a", Verdict::Ok));
        assert_eq!(parse(b"ok 3 # SKIP nothing there"), result(0, "3", Verdict::Skip));
        assert_eq!(parse(b"ok 3 a # skip"), result(0, "a", Verdict::Skip));
        assert_eq!(parse(b"not ok 4 a#1 # TIMEOUT 45 seconds"), result(0, "a#1", Verdict::NotOk));
        assert_eq!(parse(b"# # ok 1 deep"), result(8, "deep", Verdict::Ok));
        assert_eq!(parse(b"ok 1 selftests: net: foo.sh # exit=0"), result(0, "selftests: net: foo.sh", Verdict::Ok));
    }

    #[test]
    fn starts() {
        let start = |column, name: &'static str| Some(Line::Start { column, name: name.as_bytes() });
        assert_eq!(parse(b"    # Subtest: example"), start(4, "example"));
        assert_eq!(parse(b"# selftests: net: foo.sh"), start(4, "selftests: net: foo.sh"));
        assert_eq!(parse(b"# # Subtest: a"), start(4, "a"));
    }

    #[test]
    fn other_lines() {
        let lines = [
            "",
            "# ",
            "#",
            "ok",
            "ok then",
            "ok 1a",
            "not ok",
            "okay 1",
            "1..4",
            "KTAP version 1",
            "# a comment",
            "# Subtest: ",
        ];
        for line in lines {
            assert_eq!(parse(line.as_bytes()), None, "{line}");
        }
        assert_eq!(parse(&b"# ".repeat(1 << 16)), None);
    }

    #[test]
    fn what_readers_add_is_not_the_line() {
        for line in ["ok 1 a", "# ok 1 a", "    # # ok 1 a\r", "ok 1 a \n"] {
            assert_eq!(bare(line.as_bytes()), b"ok 1 a", "{line}");
        }
        assert_eq!(bare(b"# Subtest: a"), b"Subtest: a");
        assert_eq!(bare(b"#"), b"#");
        assert_eq!(bare(b""), b"");
    }

    #[test]
    fn a_look_at_the_start_misses_none() {
        for line in ["ok 1 a", "  not ok 1 a", "# ok 1 a", "\t# Subtest: a"] {
            assert!(parse(line.as_bytes()).is_some() && may_be(line.as_bytes()) && may_be(&line.as_bytes()[..1]));
        }
        assert!(!may_be(b"[    1.0] ok 1 a") && !may_be(b"hello"));
    }
}
