//! JSON lines of the plugin: reports, tests and messages.

use detector::report::json;
use detector::report::{Group, Report};
use serde::Deserialize;
use serde_json::Value;
use std::path::{Path, PathBuf};

/// A file that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file cannot be read.
    #[error("cannot read {path}: {why}; give a file that libleak wrote with report=NAME.jsonl")]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// The error of the system.
        why: std::io::Error,
    },
    /// A line is not a line of a report.
    #[error("{path}: {why}")]
    Broken {
        /// The file.
        path: PathBuf,
        /// What is wrong, and in which line.
        why: json::ReadError,
    },
}

/// How a test ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// `ok`.
    Ok,
    /// `not ok`.
    NotOk,
    /// Skipped.
    Skip,
    /// The result is unknown.
    Unknown,
}

/// A test of the guest, and its leaks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Test {
    /// Its name.
    pub name: String,
    /// The result.
    pub outcome: Outcome,
    /// Its leaks.
    pub leaks: Vec<Group>,
}

/// The results of one guest.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Run {
    /// All reports, in the order of the checks.
    pub reports: Vec<Report>,
    /// All tests in their order, with their leaks.
    pub tests: Vec<Test>,
    /// Leaks outside of tests.
    pub others: Vec<Group>,
    /// Why an expected report is missing.
    pub errors: Vec<String>,
    /// Why reports are incomplete.
    pub warnings: Vec<String>,
    /// The lines as they were read.
    pub values: Vec<Value>,
}

#[derive(Deserialize)]
struct TestLine {
    name: String,
    result: Option<String>,
}

#[derive(Deserialize)]
struct MessageLine {
    level: String,
    text: String,
}

impl Run {
    /// Reads a file.
    ///
    /// # Errors
    /// [`Error`].
    pub fn open(path: &Path) -> Result<Run, Error> {
        let text = std::fs::read_to_string(path).map_err(|why| Error::Unreadable { path: path.into(), why })?;
        Run::read(&text).map_err(|why| Error::Broken { path: path.into(), why })
    }

    /// Reads JSON lines. Unknown types are ignored, since later versions may add some.
    ///
    /// # Errors
    /// [`json::ReadError`], for the first unreadable line.
    pub fn read(text: &str) -> Result<Run, json::ReadError> {
        let mut run = Run::default();
        // The test of each group.
        let mut owners = Vec::new();
        // Other lines are left empty here, so that errors have the right line number.
        let mut reports = String::new();
        for (i, line) in text.lines().enumerate() {
            let bad = |why: serde_json::Error| json::ReadError::Line { line: i + 1, why: why.to_string() };
            if !line.trim().is_empty() {
                let value: Value = serde_json::from_str(line).map_err(bad)?;
                match value["type"].as_str().unwrap_or_default() {
                    "test" => run.add_test(serde_json::from_value(value.clone()).map_err(bad)?),
                    "message" => run.add_message(serde_json::from_value(value.clone()).map_err(bad)?),
                    "group" => {
                        owners.push(value["test"].as_str().map(str::to_owned));
                        reports += line;
                    }
                    "report" => {
                        // This report was made in spite of earlier errors.
                        run.warnings.append(&mut run.errors);
                        reports += &without_tests(&value);
                    }
                    // The reader of reports rejects a line without a type.
                    "" => reports += line,
                    _ => {}
                }
                run.values.push(value);
            }
            reports.push('\n');
        }
        run.reports = json::read(&reports)?;
        let groups: Vec<Group> = run.reports.iter().flat_map(|r| r.groups.iter().cloned()).collect();
        for (group, owner) in groups.into_iter().zip(owners) {
            match owner {
                Some(name) => run.test(&name).leaks.push(group),
                None => run.others.push(group),
            }
        }
        Ok(run)
    }

    fn add_test(&mut self, line: TestLine) {
        let outcome = match line.result.as_deref() {
            Some("ok") => Outcome::Ok,
            Some("not ok") => Outcome::NotOk,
            Some("skip") => Outcome::Skip,
            _ => Outcome::Unknown,
        };
        self.tests.push(Test { name: line.name, outcome, leaks: Vec::new() });
    }

    fn add_message(&mut self, line: MessageLine) {
        if line.level == "error" { &mut self.errors } else { &mut self.warnings }.push(line.text);
    }

    /// The last test of this name. A test that never ended, as when the guest died in it, has no
    /// line and is added.
    fn test(&mut self, name: &str) -> &mut Test {
        let at = self.tests.iter().rposition(|test| test.name == name).unwrap_or_else(|| {
            self.tests.push(Test { name: name.to_owned(), outcome: Outcome::Unknown, leaks: Vec::new() });
            self.tests.len() - 1
        });
        &mut self.tests[at]
    }

    /// All groups of all reports.
    pub fn groups(&self) -> impl Iterator<Item = &Group> {
        self.reports.iter().flat_map(|report| &report.groups)
    }

    /// Why there is no result: the last error, or that there is no report.
    pub fn failure(&self) -> Option<String> {
        match self.errors.last() {
            Some(why) => Some(why.clone()),
            None if self.reports.is_empty() => Some("no report was made".to_owned()),
            None => None,
        }
    }
}

/// A report line without its number of test lines, which are read here.
fn without_tests(report: &Value) -> String {
    let mut report = report.clone();
    report.as_object_mut().and_then(|fields| fields.remove("tests"));
    report.to_string()
}

#[cfg(test)]
pub mod tests {
    use super::*;

    /// Reports of three tests and the kernel.
    pub fn text() -> String {
        let report = |groups| {
            format!(
                r#"{{"type":"report","schema":1,"release":"6.12","groups":{groups},"tests":9,"figures":{{"unreferenced_objects":3}},"suppressed":[],"unused_suppressions":[],"summary":"libleak: 3 unreferenced objects","notes":[]}}"#
            )
        };
        let group = |test: &str, function: &str, bytes: u64| {
            let test = if test.is_empty() { String::new() } else { format!(r#""test":"{test}","#) };
            format!(
                r#"{{"type":"group",{test}"direct":true,"count":1,"bytes":{bytes},"first_age_ms":9,"last_age_ms":9,"retains":{{"objects":0,"bytes":0}},"stack":[{{"address":"0x1","function":"kmalloc","offset":0,"size":64}},{{"address":"0x2","function":"{function}","offset":2,"size":64,"module":"zoo"}}],"objects":[{{"address":"0xffff888100000000","size":{bytes},"kind":"slab","comm":"insmod","pid":1,"tgid":1,"cpu":0,"jiffies":1,"age_ms":9,"head":"00","crc":"0x0","retains":{{"objects":0,"bytes":0}}}}]}}"#
            )
        };
        [
            r#"{"type":"test","schema":1,"name":"one","result":"ok"}"#.to_owned(),
            report(1),
            group("one", "leak_a", 64),
            r#"{"type":"test","schema":1,"name":"two","result":"skip"}"#.to_owned(),
            r#"{"type":"later","what":"ever"}"#.to_owned(),
            r#"{"type":"test","schema":1,"name":"three","result":"not ok"}"#.to_owned(),
            report(3),
            group("one", "leak_b", 32),
            group("", "leak_c", 8),
            group("died", "leak_d", 16),
        ]
        .join("\n")
    }

    #[test]
    fn leaks_are_of_their_tests() {
        let run = Run::read(&text()).unwrap();
        let tests: Vec<_> = run.tests.iter().map(|t| (t.name.as_str(), t.outcome, t.leaks.len())).collect();
        assert_eq!(
            tests,
            [
                ("one", Outcome::Ok, 2),
                ("two", Outcome::Skip, 0),
                ("three", Outcome::NotOk, 0),
                ("died", Outcome::Unknown, 1)
            ]
        );
        assert_eq!((run.reports.len(), run.others.len(), run.groups().count()), (2, 1, 4));
        assert_eq!((run.failure(), run.values.len()), (None, 10));
    }

    #[test]
    fn nothing_is_no_success() {
        assert!(Run::read("").unwrap().failure().unwrap().contains("no report"));
        let text = text() + "\n" + r#"{"type":"message","schema":1,"level":"error","text":"no result: moon"}"#;
        assert_eq!(Run::read(&text).unwrap().failure().unwrap(), "no result: moon");
        // A failed scan, followed by a report at the end.
        let report = self::text().lines().nth(1).unwrap().replace("\"groups\":1", "\"groups\":0");
        let run = Run::read(&format!("{text}\n{report}")).unwrap();
        assert_eq!((run.failure(), run.warnings.as_slice()), (None, &["no result: moon".to_owned()][..]));
    }

    #[test]
    fn flaws_are_named_with_their_line() {
        let error = |text: &str| Run::read(text).unwrap_err().to_string();
        assert!(error("{}").contains("line 1"), "{}", error("{}"));
        let cut = text();
        let cut = &cut[..cut.len() - 9];
        assert!(error(cut).contains("line 10"), "{}", error(cut));
        assert!(error(&text().replace("\"schema\":1,\"rel", "\"schema\":7,\"rel")).contains("schema 7"));
    }
}
