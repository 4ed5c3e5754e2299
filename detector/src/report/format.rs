//! The choice of a report's format.

use super::model::Report;
use super::{json, text};
use std::path::Path;
use std::str::FromStr;

/// A format of reports.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Format {
    /// kmemleak's text format.
    #[default]
    Text,
    /// As [`Format::Text`], with the headline before each object that console parsers like
    /// syzkaller's look for.
    Console,
    /// JSON lines. See [`json`].
    JsonLines,
}

impl Format {
    /// The format of a file, by its suffix.
    pub fn of(path: &Path) -> Format {
        match path.extension().and_then(|e| e.to_str()) {
            Some("jsonl") => Format::JsonLines,
            _ => Format::Text,
        }
    }

    /// Writes a report in this format. With `each`, text contains every object and not one per
    /// group. JSON always contains every object.
    pub fn write(self, report: &Report, each: bool) -> String {
        let headline = if self == Format::Console { text::CONSOLE } else { "" };
        match self {
            Format::JsonLines => json::write(report),
            Format::Text | Format::Console if each => text::each(report, headline),
            Format::Text | Format::Console => text::groups(report, headline),
        }
    }
}

/// A word that is not the name of a [`Format`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{}", UnknownFormat::MESSAGE)]
pub struct UnknownFormat;

impl UnknownFormat {
    /// The message, for errors that carry static text.
    pub const MESSAGE: &'static str = "neither text, jsonl nor console";
}

impl FromStr for Format {
    type Err = UnknownFormat;

    fn from_str(name: &str) -> Result<Format, UnknownFormat> {
        match name {
            "text" => Ok(Format::Text),
            "console" => Ok(Format::Console),
            "jsonl" => Ok(Format::JsonLines),
            _ => Err(UnknownFormat),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn formats_go_by_the_ending() {
        let formats = ["r.jsonl", "r.txt", "r", "/a.jsonl/r.log"].map(|p| Format::of(Path::new(p)));
        assert_eq!(formats, [Format::JsonLines, Format::Text, Format::Text, Format::Text]);
    }
}
