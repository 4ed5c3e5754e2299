//! Messages of the control socket: JSON lines, one answer per request.
//!
//! A request is a line `{"do": ..., ...}`. Each may have an `id` of any type, which the answer
//! repeats. Answers come in the order of a connection's requests. A line has at most [`MAX_LINE`]
//! bytes without its end. Addresses are strings, `"0x..."`.
//!
//! | `do` | may have | answer |
//! |---|---|---|
//! | `scan` | `min_age` in seconds: younger objects are not reported | [`report`, `groups`, `tests`](crate::report::json::fields) with the leaks that no scan reported before, as in a report file; `pause_microseconds` |
//! | `mark` | `name` of at most 256 bytes; it replaces a mark of this name, or the oldest of 32 | [`Marked`]. Objects allocated before a mark are in no later report, but they are still searched for references |
//! | `diff` | `name` of a mark (default: the last); `limit` (20), `by`: `stack` (whole stacks) or `site` (allocator and caller) | [`Grown`]: sites with more live objects than at the mark, referenced or not |
//! | `clear` | | [`Count`] of objects that are unreferenced now and were not reported; no later report has them |
//! | `status` | | [`Status`], without stopping the guest |
//! | `top` | `limit` (20), `by` (`site`) | [`Live`]: the sites with most live bytes |
//! | `why` | must have `address` of any byte of a live object | [`Reasons`]: the chain of references up to the root |
//! | `snapshot` | must have `path`, absolute | `path` of a snapshot for `leak check` |
//! | `events` | | no fields; from then on the connection carries [events](Event), and further input is not read |
//!
//! An answer has `schema`, `ok`, and the request's `do` and `id` if there are any. An answer with
//! `"ok": false` has only `error` besides these: what happened and what to do about it. New fields
//! may appear at any time. A field that changes its meaning changes `schema`.
//!
//! # Example
//!
//! ```
//! use detector::control::{By, Request};
//!
//! let request = Request::Top { limit: Some(3), by: Some(By::Stack) };
//! let line = serde_json::to_string(&request)?;
//! assert_eq!(line, r#"{"do":"top","limit":3,"by":"stack"}"#);
//! assert_eq!(serde_json::from_str::<Request>(&line)?, request);
//! # Ok::<(), serde_json::Error>(())
//! ```

use super::model::{Figures, Frame};
pub use crate::count::Count;
use crate::guest_tests::Test;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::str::FromStr;

/// The number of the schema.
pub const SCHEMA: u32 = 1;
/// Most bytes of a request, without the end of the line.
pub const MAX_LINE: usize = 64 << 10;
/// Most sites in an answer, unless the request sets `limit`.
pub const LIMIT: usize = 20;

/// A request.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "do", rename_all = "lowercase", deny_unknown_fields)]
pub enum Request {
    /// Report new leaks.
    Scan {
        /// Least age in seconds of reported objects.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        min_age: Option<f64>,
    },
    /// Mark the objects that are live now.
    Mark {
        /// The name of the mark. Without a name it gets a number.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        name: Option<String>,
    },
    /// Show what grew since a mark.
    Diff {
        /// The mark. The last one if there is no name.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        name: Option<String>,
        /// Most sites in the answer.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        limit: Option<usize>,
        /// The definition of a site. Whole stacks by default.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        by: Option<By>,
    },
    /// Never report what is unreferenced now.
    Clear {},
    /// Show the state of tracking.
    Status {},
    /// Show the sites with most live bytes.
    Top {
        /// Most sites in the answer.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        limit: Option<usize>,
        /// The definition of a site. Allocator and caller by default.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        by: Option<By>,
    },
    /// Show what refers to an object.
    Why {
        /// Virtual address, or `__percpu` pointer, of any byte of the object.
        #[serde(with = "crate::report::encoding::hex")]
        address: u64,
    },
    /// Write a snapshot.
    Snapshot {
        /// The file, as an absolute path.
        path: String,
    },
    /// Send events from now on.
    Events {},
}

impl Request {
    /// The value of the field `do`.
    pub fn name(&self) -> &'static str {
        match self {
            Request::Scan { .. } => "scan",
            Request::Mark { .. } => "mark",
            Request::Diff { .. } => "diff",
            Request::Clear {} => "clear",
            Request::Status {} => "status",
            Request::Top { .. } => "top",
            Request::Why { .. } => "why",
            Request::Snapshot { .. } => "snapshot",
            Request::Events {} => "events",
        }
    }
}

/// What counts as one site.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum By {
    /// An allocator and its caller.
    Site,
    /// A whole stack.
    #[default]
    Stack,
}

/// A word that is not a value of [`By`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("neither stack nor site")]
pub struct UnknownBy;

impl FromStr for By {
    type Err = UnknownBy;

    fn from_str(name: &str) -> Result<By, UnknownBy> {
        match name {
            "site" => Ok(By::Site),
            "stack" => Ok(By::Stack),
            _ => Err(UnknownBy),
        }
    }
}

/// A mark.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Marked {
    /// The name.
    pub name: String,
    /// The time of the mark, in milliseconds since the start of tracking.
    pub at_ms: u64,
    /// The objects that were live at the mark.
    pub live: Count,
}

/// An allocation site and its live objects.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    /// Live objects at the mark. 0 if there is no mark.
    #[serde(default)]
    pub then: Count,
    /// Live objects now.
    pub now: Count,
    /// Frames, innermost first.
    pub stack: Vec<Frame>,
}

impl Place {
    /// The growth since the mark. 0 if the site did not grow.
    pub fn growth(&self) -> Count {
        Count {
            objects: self.now.objects.saturating_sub(self.then.objects),
            bytes: self.now.bytes.saturating_sub(self.then.bytes),
        }
    }
}

/// The answer to `diff`: sites that grew.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Grown {
    /// The mark that is compared with.
    pub mark: Marked,
    /// All live objects.
    pub live: Count,
    /// The time now, in milliseconds since the start of tracking.
    pub at_ms: u64,
    /// The number of sites that grew.
    pub grown: usize,
    /// The sites that grew most, by bytes.
    pub places: Vec<Place>,
}

/// The answer to `top`: sites by live bytes.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Live {
    /// All live objects.
    pub live: Count,
    /// The number of sites.
    pub total: usize,
    /// The sites with most bytes.
    pub places: Vec<Place>,
}

/// The answer to `status`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// libleak's version.
    pub version: String,
    /// Whether a scan would give a valid report.
    pub tracking: bool,
    /// Why a scan would not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
    /// What `uname -r` prints in the guest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub release: Option<String>,
    /// Milliseconds since the start of tracking.
    pub at_ms: u64,
    /// Events so far. The names are those of the summary's figures, such as `allocations`, `frees`,
    /// `live_objects` and `unmatched_returns`.
    pub figures: Figures,
    /// The pauses of the guest.
    pub pauses: Pauses,
    /// The number of scans.
    pub scans: u64,
    /// The objects that all scans reported together.
    pub reported: Count,
    /// The figures of the last scan.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_scan: Option<Figures>,
    /// The names of all marks, oldest first.
    pub marks: Vec<String>,
    /// Open connections.
    pub clients: usize,
    /// Bytes of memory that libleak uses.
    #[serde(default)]
    pub memory_bytes: u64,
}

/// How often and for how long the guest was stopped.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pauses {
    /// The number of pauses.
    pub count: u64,
    /// Length of the last pause.
    pub last_microseconds: u64,
    /// Length of the longest pause.
    pub longest_microseconds: u64,
    /// Length of all pauses together.
    pub total_microseconds: u64,
}

/// The answer to `why`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Reasons {
    /// One path for each live object that contains the address. Pages may contain another object.
    pub paths: Vec<Path>,
}

/// A path of references.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Path {
    /// The address of the object.
    #[serde(with = "crate::report::encoding::hex")]
    pub address: u64,
    /// The size of the object in bytes.
    pub size: u64,
    /// The allocation stack, innermost frame first.
    pub stack: Vec<Frame>,
    /// The holders from the object to the root. Empty if nothing refers to the object.
    ///
    /// Each has a field `what`: `object`, `root`, `register`, or `known`, which the kernel declares
    /// not a leak. An `object` has `address`, `size`, `kind`, `cache`, `caller`, and the `offset`
    /// of the reference if there is one. A `root` has `physical`, `usage`, `symbol`.
    pub holders: Vec<Value>,
    /// The path as lines of text.
    pub text: Vec<String>,
}

/// An event for subscribers: a line with `schema` and `event`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "lowercase")]
pub enum Event {
    /// A scan was made, by any client or trigger.
    Scan {
        /// The figures of the scan.
        figures: Figures,
        /// The summary line.
        summary: String,
        /// The number of groups.
        groups: usize,
        /// The first groups.
        first: Vec<GroupEvent>,
        /// The test that ran or ended when the scan was made.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        test: Option<String>,
        /// The last of the tests that ended since the previous scan.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        tests: Vec<Test>,
    },
    /// A mark was made.
    Mark(Marked),
    /// The unreferenced objects were cleared.
    Clear(Count),
    /// The guest ended. An event of its last scan came before.
    End {},
    /// The subscriber reads too slowly. This is its last line.
    Dropped {},
}

/// A group of leaks, in short.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct GroupEvent {
    /// Whether nothing refers to the objects.
    pub direct: bool,
    /// The number of objects.
    pub count: usize,
    /// Bytes of all objects.
    pub bytes: u64,
    /// The test during which they were allocated.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub test: Option<String>,
    /// The frames as text, innermost first.
    pub stack: Vec<String>,
}

/// The fields that all answers share, around the body of one.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Envelope<T> {
    /// [`SCHEMA`].
    pub schema: u32,
    /// The request's `do`, if the request could be parsed.
    #[serde(rename = "do", default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// The request's `id`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<Value>,
    /// Whether the request was carried out.
    pub ok: bool,
    /// Why it was not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// How long the guest was stopped for the request, if it was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pause_microseconds: Option<u64>,
    /// The other fields.
    #[serde(flatten)]
    pub body: T,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_read_and_others_are_told_what_there_is() {
        let read = |text: &str| serde_json::from_str::<Request>(text).map_err(|e| e.to_string());
        assert_eq!(read(r#"{"do":"scan"}"#), Ok(Request::Scan { min_age: None }));
        assert_eq!(read(r#"{"do":"scan","min_age":1.5}"#), Ok(Request::Scan { min_age: Some(1.5) }));
        assert_eq!(
            read(r#"{"do":"diff","by":"site","limit":3}"#),
            Ok(Request::Diff { name: None, limit: Some(3), by: Some(By::Site) })
        );
        assert_eq!(read(r#"{"do":"why","address":"0x1f"}"#), Ok(Request::Why { address: 31 }));
        assert_eq!(read(r#"{"do":"clear"}"#), Ok(Request::Clear {}));
        assert!(read(r#"{"do":"scna"}"#).unwrap_err().contains("`scan`, `mark`, `diff`"));
        assert!(read(r#"{"do":"scan","age":1}"#).unwrap_err().contains("min_age"));
        assert!(read(r#"{"do":"clear","age":1}"#).is_err());
        assert!(read(r#"{"do":"why","address":7}"#).is_err() && read("{}").is_err() && read("[]").is_err());
    }

    #[test]
    fn a_request_is_written_as_it_is_read() {
        for request in [
            Request::Scan { min_age: None },
            Request::Why { address: u64::MAX },
            Request::Top { limit: Some(1), by: None },
            Request::Events {},
        ] {
            let text = serde_json::to_string(&request).unwrap();
            assert!(text.contains(&format!(r#""do":"{}""#, request.name())), "{text}");
            assert_eq!(serde_json::from_str::<Request>(&text).unwrap(), request);
        }
    }
}
