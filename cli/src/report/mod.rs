//! `leak report`: converts JSON lines to other formats.

mod folded;
mod junit;
mod ktap;
pub mod lines;
pub mod words;

use crate::output;
use detector::report::Format as TextFormat;
use lines::Run;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

/// Print JSON lines of the plugin in another format
///
/// Several files stand for several guests, as of a test suite that starts one per part. The status
/// is 0 if all files can be read, with or without leaks.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  leak report run.jsonl
  leak report run.jsonl --format junit > leaks.xml
  leak report shard-*.jsonl --format ktap
  leak report run.jsonl --format folded | inferno-flamegraph > leaks.svg")]
pub struct ReportCommand {
    /// JSON lines that the plugin wrote with report=NAME.jsonl
    #[arg(required = true, value_name = "FILE.jsonl")]
    files: Vec<PathBuf>,
    /// Format to print
    #[arg(long, value_name = "FORM", default_value = "text")]
    format: Form,
}

/// A format of reports.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Form {
    /// kmemleak's text format
    Text,
    /// Kernel Test Anything Protocol
    Ktap,
    /// JUnit XML
    Junit,
    /// One JSON object
    Json,
    /// Folded stacks with their bytes, for flame graphs
    Folded,
    /// JSON lines, as the plugin writes them
    Jsonl,
}

/// Why there is no report.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file cannot be read.
    #[error(transparent)]
    Lines(#[from] lines::Error),
    /// The XML cannot be written.
    #[error("cannot write XML: {0}")]
    Xml(#[from] quick_junit::SerializeError),
    /// Standard output cannot be written.
    #[error("cannot write the report: {0}")]
    Output(#[from] std::io::Error),
}

impl Form {
    /// The format of a file, by its suffix.
    pub fn of(path: &Path) -> Option<Form> {
        match path.extension()?.to_str()? {
            "txt" | "text" | "log" => Some(Form::Text),
            "ktap" | "tap" => Some(Form::Ktap),
            "xml" => Some(Form::Junit),
            "json" => Some(Form::Json),
            "folded" => Some(Form::Folded),
            "jsonl" => Some(Form::Jsonl),
            _ => None,
        }
    }

    /// Writes runs in this format.
    ///
    /// # Errors
    /// The error of the XML writer.
    pub fn write(self, runs: &[Run]) -> Result<String, quick_junit::SerializeError> {
        Ok(match self {
            Form::Text => text(runs),
            Form::Ktap => ktap::write(runs),
            Form::Junit => junit::write(runs)?,
            Form::Json => pretty(runs),
            Form::Folded => folded::write(runs),
            Form::Jsonl => runs.iter().flat_map(|run| &run.values).map(|value| format!("{value}\n")).collect(),
        })
    }
}

impl ReportCommand {
    /// Prints the report.
    ///
    /// # Errors
    /// [`Error`].
    pub fn run(&self) -> Result<(), Error> {
        let runs: Vec<Run> = self.files.iter().map(|file| Run::open(file)).collect::<Result<_, _>>()?;
        Ok(output::print(&self.format.write(&runs)?)?)
    }
}

/// The reports as the plugin prints them. Empty reports are left out if others follow.
fn text(runs: &[Run]) -> String {
    let mut text = String::new();
    for (i, run) in runs.iter().enumerate() {
        if runs.len() > 1 {
            text += &format!("==> guest {}\n", i + 1);
        }
        for (n, report) in run.reports.iter().enumerate() {
            if !report.groups.is_empty() || n + 1 == run.reports.len() {
                text += &TextFormat::Text.write(report, false);
            }
        }
        run.warnings.iter().for_each(|why| text += &format!("libleak: warning: {why}\n"));
        if let Some(why) = run.failure() {
            text += &format!("libleak: error: {why}\n");
        }
    }
    text
}

/// One object per guest with its `reports`, each with its `groups`, and its `tests` and `messages`.
fn pretty(runs: &[Run]) -> String {
    let guests: Vec<Value> = runs
        .iter()
        .map(|run| {
            let mut reports: Vec<Value> = Vec::new();
            let (mut tests, mut messages) = (Vec::new(), Vec::new());
            for value in &run.values {
                match (value["type"].as_str().unwrap_or_default(), reports.last_mut()) {
                    ("report", _) => {
                        let mut report = value.clone();
                        report["groups"] = json!([]);
                        reports.push(report);
                    }
                    ("group", Some(report)) => {
                        report["groups"].as_array_mut().into_iter().for_each(|groups| groups.push(value.clone()));
                    }
                    ("test", _) => tests.push(value.clone()),
                    ("message", _) => messages.push(value.clone()),
                    _ => {}
                }
            }
            json!({"reports": reports, "tests": tests, "messages": messages})
        })
        .collect();
    format!("{:#}\n", json!({"schema": 1, "guests": guests}))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forms_go_by_the_ending() {
        let forms =
            ["a.txt", "a.xml", "a.tap", "a.folded", "a.jsonl", "a.json"].map(|p| Form::of(Path::new(p)).unwrap());
        assert_eq!(forms, [Form::Text, Form::Junit, Form::Ktap, Form::Folded, Form::Jsonl, Form::Json]);
        assert_eq!([Form::of(Path::new("a")), Form::of(Path::new("a.md"))], [None; 2]);
    }

    #[test]
    fn lines_come_back_and_json_is_whole() {
        let runs = [Run::read(&lines::tests::text()).unwrap()];
        assert_eq!(Run::read(&Form::Jsonl.write(&runs).unwrap()).unwrap(), runs[0]);
        let json: Value = serde_json::from_str(&Form::Json.write(&runs).unwrap()).unwrap();
        let guest = &json["guests"][0];
        assert_eq!(guest["reports"][1]["groups"][2]["test"], "died");
        assert_eq!((guest["tests"][1]["result"].as_str(), guest["tests"].as_array().unwrap().len()), (Some("skip"), 3));
        let text = Form::Text.write(&runs).unwrap();
        assert_eq!(
            (text.matches("unreferenced object 0x").count(), text.matches("libleak: 3 ").count()),
            (4, 2),
            "{text}"
        );
        let text = Form::Text.write(&[runs[0].clone(), Run::default()]).unwrap();
        assert!(text.ends_with("==> guest 2\nlibleak: error: no report was made\n"), "{text}");
    }
}
