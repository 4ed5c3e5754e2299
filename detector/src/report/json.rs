//! Reports as JSON lines, for programs.
//!
//! A check writes one line of `"type": "report"`. Its `groups` is the number of lines of `"type":
//! "group"` that follow, in the order of the text format. Its `tests` is the number of lines of
//! `"type": "test"` after these. Addresses and checksums are strings, `"0x..."`, since many JSON
//! readers lose bits of 64-bit numbers. Fields in brackets are omitted when they are empty.
//!
//! If there is no report, or an incomplete one, a line of `"type": "message"` gives the reason in
//! its `text`. Its `level` is `error` or `warning`. Such lines stand between checks.
//!
//! | a report | |
//! |---|---|
//! | `schema` | 1. It changes if a field changes its meaning or is removed. New fields may appear at any time |
//! | `release` | what `uname -r` prints in the guest |
//! | \[`test`] | the test that ran or ended when the check was made |
//! | `groups` | the number of group lines that follow |
//! | `tests` | the number of test lines after them |
//! | `figures` | the figures of the summary by name, such as `unreferenced_objects`, `scan_microseconds` |
//! | \[`troubles`] | reasons not to trust the report, one string each |
//! | `suppressed` | suppressions that were used: `template`, `file`, `line`, `objects`, `bytes` |
//! | `unused_suppressions` | suppressions that no check used, in the last report: the same fields |
//! | `summary` | the summary line |
//! | `notes` | the lines after it |
//!
//! | a group | |
//! |---|---|
//! | \[`test`] | the test during which its objects were allocated |
//! | `direct` | true if nothing refers to its objects, false if only other leaks do |
//! | `count`, `bytes` | objects and bytes of the group |
//! | `first_age_ms`, `last_age_ms` | milliseconds since the first and the last allocation |
//! | `retains` | indirect leaks that are reachable from it: `objects`, `bytes` |
//! | `stack` | frames, innermost first: `address`, \[`function`, `offset`, `size`, \[`module`]], \[`places`: \[`function`], `file`, `line`, innermost inlined function first] |
//! | `objects` | `address`, `size`, `kind` (slab, large, vmalloc, percpu, pages), \[`cache`], \[`guess`], `comm`, `pid`, `tgid`, `cpu`, `jiffies`, `age_ms`, `head` (first bytes, in hexadecimal), \[`shown_cpu`], `crc`, `retains`, \[`loss`: `how` (overwritten, freed, reused, frame, held), \[`by`], \[`age_ms`], \[`stack`], \[`held`], \[`reference`: `place`, `stored_by`]] |
//!
//! | a test that ended since the previous report | |
//! |---|---|
//! | `schema` | as in a report |
//! | `name` | as `test` above: the names of enclosing tests come first, each followed by `/` |
//! | `result` | `ok`, `not ok`, `skip`, or null if only its end is known |
//!
//! # Example
//!
//! ```
//! use detector::report::{Report, json};
//!
//! let report = Report { closing: "libleak: 0 objects\n".into(), ..Report::default() };
//! let text = json::write(&report);
//! assert!(text.starts_with(r#"{"type":"report","schema":1,"#));
//! assert_eq!(json::read(&text)?, [report]);
//! # Ok::<(), json::ReadError>(())
//! ```

use super::model::{Figures, Frame, Group, Leak, Report, Suppressed};
use crate::count::Count;
use crate::guest_tests::{Test, Verdict};
use serde::{Deserialize, Serialize};
use std::borrow::Cow;

/// The number of the schema.
pub const SCHEMA: u32 = 1;

/// Why JSON lines cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The line is not a line of a report.
    #[error("line {line} is not part of a report: {why}; give a file that libleak wrote with format=jsonl")]
    Line {
        /// The line, counted from 1.
        line: usize,
        /// What is wrong with the line.
        why: String,
    },
    /// The line has a schema that this version does not know.
    #[error(
        "line {line} is a report of schema {schema}, and this program reads {SCHEMA}; use the program leak of the libleak that wrote it"
    )]
    Schema {
        /// The line, counted from 1.
        line: usize,
        /// The schema of the line.
        schema: u32,
    },
    /// Lines of the last report are missing.
    #[error("{groups} groups and {tests} tests are missing at the end: the file is cut off; take a whole one")]
    Missing {
        /// Missing group lines.
        groups: usize,
        /// Missing test lines.
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
    retains: Count,
    stack: Cow<'a, [Frame]>,
    objects: Cow<'a, [Leak]>,
}

/// Writes a report as JSON lines.
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
        let ages = group.ages();
        Line::Group(Body {
            test: group.test.as_deref().map(Cow::from),
            direct: group.direct,
            count: group.leaks.len(),
            bytes: group.bytes(),
            first_age_ms: ages.oldest,
            last_age_ms: ages.youngest,
            retains: group.retains(),
            stack: group.frames.as_slice().into(),
            objects: group.leaks.as_slice().into(),
        })
    });
    let tests = report.tests.iter();
    let tests = tests.map(|t| Line::Test(Finished { schema: SCHEMA, name: t.name.as_str().into(), result: t.result }));
    let mut text = String::new();
    for line in [head].into_iter().chain(groups).chain(tests) {
        // Serialising these types cannot fail.
        text += &serde_json::to_string(&line).unwrap_or_default();
        text.push('\n');
    }
    text
}

/// The line of a message, as described above.
pub fn message(level: &str, text: &str) -> String {
    serde_json::json!({"type": "message", "schema": SCHEMA, "level": level, "text": text}).to_string() + "\n"
}

/// Reads the output of one or more calls of [`write`](self::write).
///
/// # Errors
/// [`ReadError`], for the first unreadable line.
pub fn read(text: &str) -> Result<Vec<Report>, ReadError> {
    let mut reports: Vec<Report> = Vec::new();
    let (mut missing, mut tests) = (0, 0);
    for (i, text) in text.lines().enumerate().filter(|(_, text)| !text.trim().is_empty()) {
        let line = i + 1;
        let bad = |why: String| ReadError::Line { line, why };
        // The schema is checked first, since a line of another schema may not fit these types.
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

/// Writes a report as fields of an object: `"report":{...},"groups":[...],"tests":[...]`. Each
/// element is what would be a line of its own.
pub fn fields(report: &Report) -> String {
    let text = write(report);
    let lines: Vec<&str> = text.lines().collect();
    let (head, rest) = lines.split_first().unwrap_or((&"null", &[]));
    let (groups, tests) = rest.split_at(report.groups.len().min(rest.len()));
    format!("\"report\":{head},\"groups\":[{}],\"tests\":[{}]", groups.join(","), tests.join(","))
}

/// Reads the output of [`fields`].
///
/// # Errors
/// [`ReadError`], if the fields are missing or malformed.
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

#[cfg(test)]
mod tests;
