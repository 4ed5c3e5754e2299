//! Reports as lines of JSON, for programs.
//!
//! Each check writes one line of `"type": "report"`, and after it as many lines of `"type": "group"` as its `groups` says,
//! in the order of the text, and as many of `"type": "test"` as its `tests` says. Addresses and checksums are text, `"0x..."`: 64 bits are more than many readers of JSON keep of a number.
//! Fields in brackets are left out where there is nothing to say.
//!
//! Where there is no report, or a lesser one, a line of `"type": "message"` says why in its `text`; its `level` is `error` or
//! `warning`. These stand between checks.
//!
//! | a report | |
//! |---|---|
//! | `schema` | 1; another number if a field changes its meaning or goes. New fields may come any time |
//! | `release` | what `uname -r` prints in the guest |
//! | [`test`] | the test at whose end, or within which, the check was made |
//! | `groups` | how many lines of groups follow |
//! | `tests` | how many lines of tests follow these |
//! | `figures` | the summary's numbers by their names, as `unreferenced_objects`, `scan_microseconds` |
//! | [`troubles`] | why the report is not to be trusted, a text each |
//! | `suppressed` | suppressions that were used: `template`, `file`, `line`, `objects`, `bytes` |
//! | `unused_suppressions` | those that no check used, in the last report: the same |
//! | `summary` | the summary line |
//! | `notes` | the lines after it |
//!
//! | a group | |
//! |---|---|
//! | [`test`] | the test in which its objects were allocated |
//! | `direct` | whether nothing refers to its objects, or only other leaks do |
//! | `count`, `bytes` | objects and bytes of the group |
//! | `first_age_ms`, `last_age_ms` | milliseconds since the first and the last allocation |
//! | `retains` | what hangs from them: `objects`, `bytes` |
//! | `stack` | frames, innermost first: `address`, [`function`, `offset`, `size`, [`module`]], [`places`: [`function`], `file`, `line`, innermost inlined function first] |
//! | `objects` | `address`, `size`, `kind` (slab, large, vmalloc, percpu, pages), [`cache`], [`guess`], `comm`, `pid`, `tgid`, `cpu`, `jiffies`, `age_ms`, `head` (first bytes, in hexadecimal), [`shown_cpu`], `crc`, `retains` |
//!
//! | a test that is over, since the report before | |
//! |---|---|
//! | `schema` | as of a report |
//! | `name` | as in `test` above: those that it is a part of come before its own, each followed by `/` |
//! | `result` | `ok`, `not ok`, `skip`, or null where only its end is known |

use super::{Figures, Frame, Group, Leak, Report, Suppressed};
use crate::guest_tests::{Test, Verdict};
use serde::{Deserialize, Serialize};
use std::borrow::Cow;

/// The schema's number.
pub const SCHEMA: u32 = 1;

/// A line that cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// It is no line of ours.
    #[error("line {line} is no part of a report: {why}; give a file that libleak wrote with format=jsonl")]
    Line {
        /// The line, counted from 1.
        line: usize,
        /// What is wrong.
        why: String,
    },
    /// Another schema than this program's.
    #[error(
        "line {line} is a report of schema {schema}, and this program knows {SCHEMA}; use the program of the libleak that wrote it"
    )]
    Schema {
        /// The line, counted from 1.
        line: usize,
        /// Its schema.
        schema: u32,
    },
    /// The last report lacks lines.
    #[error("{groups} groups and {tests} tests are missing at the end: the file is cut off; take a whole one")]
    Missing {
        /// Lines of groups that should follow.
        groups: usize,
        /// Lines of tests that should.
        tests: usize,
    },
}

#[derive(Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "lowercase")]
enum Line<'a> {
    Report(Head<'a>),
    Group(Body<'a>),
    Test(Finished<'a>),
}

#[derive(Serialize, Deserialize)]
struct Finished<'a> {
    schema: u32,
    name: Cow<'a, str>,
    result: Option<Verdict>,
}

#[derive(Serialize, Deserialize)]
struct Head<'a> {
    schema: u32,
    release: Cow<'a, str>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    test: Option<Cow<'a, str>>,
    groups: usize,
    #[serde(default)]
    tests: usize,
    figures: Cow<'a, Figures>,
    #[serde(default, skip_serializing_if = "<[String]>::is_empty")]
    troubles: Cow<'a, [String]>,
    suppressed: Cow<'a, [Suppressed]>,
    unused_suppressions: Cow<'a, [Suppressed]>,
    summary: Cow<'a, str>,
    notes: Vec<Cow<'a, str>>,
}

#[derive(Serialize, Deserialize)]
struct Body<'a> {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    test: Option<Cow<'a, str>>,
    direct: bool,
    count: usize,
    bytes: u64,
    first_age_ms: u64,
    last_age_ms: u64,
    #[serde(with = "counts")]
    retains: (u64, u64),
    stack: Cow<'a, [Frame]>,
    objects: Cow<'a, [Leak]>,
}

/// A report's lines.
pub fn write(report: &Report) -> String {
    let mut closing = report.closing.lines();
    let head = Line::Report(Head {
        schema: SCHEMA,
        release: report.release.as_str().into(),
        test: report.test.as_deref().map(Cow::from),
        groups: report.groups.len(),
        tests: report.tests.len(),
        figures: Cow::Borrowed(&report.figures),
        troubles: report.troubles.as_slice().into(),
        suppressed: report.suppressed.as_slice().into(),
        unused_suppressions: report.unused.as_slice().into(),
        summary: closing.next().unwrap_or_default().into(),
        notes: closing.map(Cow::from).collect(),
    });
    let groups = report.groups.iter().map(|group| {
        let (first_age_ms, last_age_ms) = group.ages();
        Line::Group(Body {
            test: group.test.as_deref().map(Cow::from),
            direct: group.direct,
            count: group.leaks.len(),
            bytes: group.bytes(),
            first_age_ms,
            last_age_ms,
            retains: group.retains(),
            stack: group.frames.as_slice().into(),
            objects: group.leaks.as_slice().into(),
        })
    });
    let tests = report.tests.iter();
    let tests = tests.map(|t| Line::Test(Finished { schema: SCHEMA, name: t.name.as_str().into(), result: t.result }));
    let mut text = String::new();
    for line in [head].into_iter().chain(groups).chain(tests) {
        // Structures of text and numbers have no value that is none of JSON's.
        text += &serde_json::to_string(&line).unwrap_or_default();
        text.push('\n');
    }
    text
}

/// The line of a message: see above.
pub fn message(level: &str, text: &str) -> String {
    serde_json::json!({"type": "message", "schema": SCHEMA, "level": level, "text": text}).to_string() + "\n"
}

/// Reads what [`write`](self::write) made, once or more.
///
/// # Errors
/// [`ReadError`], for the first line that cannot be read.
pub fn read(text: &str) -> Result<Vec<Report>, ReadError> {
    let mut reports: Vec<Report> = Vec::new();
    let (mut missing, mut tests) = (0, 0);
    for (i, text) in text.lines().enumerate().filter(|(_, text)| !text.trim().is_empty()) {
        let line = i + 1;
        let bad = |why: String| ReadError::Line { line, why };
        // First, since another schema's line may be no line of this one.
        let of = serde_json::from_str::<Schema>(text).map_err(|e| bad(e.to_string()))?;
        if let Some(schema) = of.schema.filter(|s| *s != SCHEMA) {
            return Err(ReadError::Schema { line, schema });
        }
        if of.kind.as_deref() == Some("message") {
            continue;
        }
        match serde_json::from_str(text).map_err(|e| bad(e.to_string()))? {
            Line::Report(_) | Line::Test(_) if missing > 0 => {
                return Err(bad(format!("it should be a group, {missing} are missing")));
            }
            Line::Report(_) if tests > 0 => return Err(bad(format!("it should be a test, {tests} are missing"))),
            Line::Report(head) => {
                (missing, tests) = (head.groups, head.tests);
                let closing = [head.summary].into_iter().chain(head.notes).map(|line| line.into_owned() + "\n");
                reports.push(Report {
                    groups: Vec::new(),
                    test: head.test.map(Cow::into_owned),
                    tests: Vec::new(),
                    release: head.release.into_owned(),
                    figures: head.figures.into_owned(),
                    troubles: head.troubles.into_owned(),
                    suppressed: head.suppressed.into_owned(),
                    unused: head.unused_suppressions.into_owned(),
                    closing: closing.collect(),
                });
            }
            Line::Group(body) => {
                let report = reports.last_mut().filter(|_| missing > 0);
                let report = report.ok_or_else(|| bad("it is a group without a report".to_owned()))?;
                missing -= 1;
                let (frames, leaks) = (body.stack.into_owned(), body.objects.into_owned());
                let test = body.test.map(Cow::into_owned);
                report.groups.push(Group { direct: body.direct, test, frames, leaks });
            }
            Line::Test(test) => {
                let report = reports.last_mut().filter(|_| tests > 0);
                let report = report.ok_or_else(|| bad("it is a test without a report".to_owned()))?;
                tests -= 1;
                report.tests.push(Test { name: test.name.into_owned(), result: test.result });
            }
        }
    }
    if missing + tests > 0 { Err(ReadError::Missing { groups: missing, tests }) } else { Ok(reports) }
}

/// A report as fields of an object: `"report":{...},"groups":[...],"tests":[...]`, each element as the line that it would be.
pub fn fields(report: &Report) -> String {
    let text = write(report);
    let lines: Vec<&str> = text.lines().collect();
    let (head, rest) = lines.split_first().unwrap_or((&"null", &[]));
    let (groups, tests) = rest.split_at(report.groups.len().min(rest.len()));
    format!("\"report\":{head},\"groups\":[{}],\"tests\":[{}]", groups.join(","), tests.join(","))
}

/// Reads what [`fields`] made.
///
/// # Errors
/// [`ReadError`].
pub fn read_fields(object: &serde_json::Value) -> Result<Report, ReadError> {
    let rest = ["groups", "tests"].into_iter().flat_map(|field| object[field].as_array().into_iter().flatten());
    let lines: Vec<String> = [&object["report"]].into_iter().chain(rest).map(|line| line.to_string()).collect();
    let flaw = || ReadError::Line { line: 1, why: "there is no report".to_owned() };
    read(&lines.join("\n"))?.pop().ok_or_else(flaw)
}

#[derive(Deserialize)]
struct Schema {
    #[serde(rename = "type")]
    kind: Option<String>,
    schema: Option<u32>,
}

/// Numbers as `"0x..."`.
pub(crate) mod hex {
    use serde::{Deserialize, Deserializer, Serializer, de::Error};
    use std::fmt::LowerHex;

    pub(crate) fn serialize<S: Serializer>(number: &impl LowerHex, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(&format_args!("{number:#x}"))
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>, N: TryFrom<u64>>(from: D) -> Result<N, D::Error> {
        let text = String::deserialize(from)?;
        let number = text.strip_prefix("0x").and_then(|digits| u64::from_str_radix(digits, 16).ok());
        let number = number.and_then(|n| N::try_from(n).ok());
        number.ok_or_else(|| D::Error::custom(format!("\"{text}\" is no number of the form 0x...")))
    }
}

/// Bytes as hexadecimal digits.
pub(super) mod bytes {
    use serde::{Deserialize, Deserializer, Serializer, de::Error};
    use std::fmt::Write;

    pub(in super::super) fn serialize<S: Serializer>(bytes: &[u8], to: S) -> Result<S::Ok, S::Error> {
        let mut text = String::with_capacity(2 * bytes.len());
        for byte in bytes {
            // Writing to a String does not fail.
            let _ = write!(text, "{byte:02x}");
        }
        to.serialize_str(&text)
    }

    pub(in super::super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<u8>, D::Error> {
        let text = String::deserialize(from)?;
        let (pairs, rest) = text.as_bytes().as_chunks::<2>();
        let byte = |pair: &[u8; 2]| u8::from_str_radix(str::from_utf8(pair).ok()?, 16).ok();
        let bytes = pairs.iter().map(byte).collect::<Option<Vec<u8>>>().filter(|_| rest.is_empty());
        bytes.ok_or_else(|| D::Error::custom(format!("\"{text}\" is no row of bytes")))
    }
}

/// How many objects, and of how many bytes.
pub(super) mod counts {
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    #[derive(Serialize, Deserialize)]
    struct Counts {
        objects: u64,
        bytes: u64,
    }

    pub(in super::super) fn serialize<S: Serializer>(counts: &(u64, u64), to: S) -> Result<S::Ok, S::Error> {
        Counts { objects: counts.0, bytes: counts.1 }.serialize(to)
    }

    pub(in super::super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<(u64, u64), D::Error> {
        Counts::deserialize(from).map(|c| (c.objects, c.bytes))
    }
}

#[cfg(test)]
mod tests;
