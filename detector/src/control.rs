//! What a control socket and its clients say to each other, in lines of JSON: one request, one answer.
//!
//! A request is a line `{"do": ..., ...}`. Any may have an `id`, a value of any kind, which its answer repeats. Answers come in the order of
//! the requests of a connection. A line has at most [`MAX_LINE`] bytes, its end not counted. Addresses are text, `"0x..."`.
//!
//! | `do` | may have | is answered by |
//! |---|---|---|
//! | `scan` | `min_age`: seconds, no object younger than this is reported | [`report`, `groups`, `tests`](crate::report::json::fields): what no scan has reported before, as in a file of reports; `pause_microseconds` |
//! | `mark` | `name`, of at most 256 bytes; one of the same name is replaced, and of more than 32 the oldest | [`Marked`]. What is allocated before a mark is in no later report, but searched for references |
//! | `diff` | `name` of a mark, the last one without; `limit` (20), `by`: `stack` (whole stacks) or `site` (allocator and caller) | [`Grown`]: where there is more than at the mark, referred to or not |
//! | `clear` | | [`Count`]: what is unreferenced now and was not reported; it is in no later report |
//! | `status` | | [`Status`], without stopping the guest |
//! | `top` | `limit` (20), `by` (`site`) | [`Live`]: where most of the live bytes are from |
//! | `why` | must have `address`, of any byte of a live object | [`Reasons`]: who refers to it, up to the root |
//! | `snapshot` | must have `path`, absolute | a snapshot for `leak check`: `path` |
//! | `events` | | nothing more; from then on the connection is for [events](Event), and what is sent on it is not read |
//!
//! Every answer has `schema`, the request's `do` and `id` where there was any, and `ok`. An answer with `"ok": false` has `error`, what happened and what to
//! do about it, and nothing else. Fields may be added any time; one that changes its meaning changes `schema`.

use crate::guest_tests::Test;
use crate::report::{Figures, Frame};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::str::FromStr;

/// The schema's number.
pub const SCHEMA: u32 = 1;
/// Bytes of a request, without the end of its line.
pub const MAX_LINE: usize = 64 << 10;
/// Places told, unless another limit is asked for.
pub const LIMIT: usize = 20;

/// A request.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "do", rename_all = "lowercase", deny_unknown_fields)]
pub enum Request {
    /// Report what is new.
    Scan {
        /// Seconds; what is younger is not reported.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        min_age: Option<f64>,
    },
    /// Take what is live as the state of things.
    Mark {
        /// The mark's name; it is numbered without.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        name: Option<String>,
    },
    /// Tell what has grown since a mark.
    Diff {
        /// The mark; the last one if there is none.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        name: Option<String>,
        /// Places told, at most.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        limit: Option<usize>,
        /// What a place is; whole stacks if it is not said.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        by: Option<By>,
    },
    /// Do not report what is unreferenced now.
    Clear {},
    /// Tell how things are.
    Status {},
    /// Tell where live bytes are from.
    Top {
        /// Places told, at most.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        limit: Option<usize>,
        /// What a place is; sites if it is not said.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        by: Option<By>,
    },
    /// Tell who refers to an object.
    Why {
        /// Virtual address, or `__percpu` pointer, of any byte of it.
        #[serde(with = "crate::report::json::hex")]
        address: u64,
    },
    /// Write a snapshot.
    Snapshot {
        /// The file, from the root on.
        path: String,
    },
    /// Tell of what happens from now on.
    Events {},
}

impl Request {
    /// The word in its `do`.
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

/// What counts as one place.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum By {
    /// An allocator and its caller.
    Site,
    /// A whole stack.
    #[default]
    Stack,
}

impl FromStr for By {
    type Err = &'static str;

    fn from_str(name: &str) -> Result<By, &'static str> {
        match name {
            "site" => Ok(By::Site),
            "stack" => Ok(By::Stack),
            _ => Err("neither stack nor site"),
        }
    }
}

/// Objects, and their bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Count {
    /// Objects.
    pub objects: u64,
    /// Their bytes, as kmemleak counts them.
    pub bytes: u64,
}

/// A mark.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Marked {
    /// Its name.
    pub name: String,
    /// When it was made, in milliseconds since the start of tracking.
    pub at_ms: u64,
    /// What was live.
    pub live: Count,
}

/// A place where objects are allocated, and what is live of it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    /// Its objects at the mark; 0 where there is none.
    #[serde(default)]
    pub then: Count,
    /// Its objects.
    pub now: Count,
    /// Frames, innermost first.
    pub stack: Vec<Frame>,
}

impl Place {
    /// Objects and bytes that it has grown by; 0 if it has not.
    pub fn growth(&self) -> Count {
        Count {
            objects: self.now.objects.saturating_sub(self.then.objects),
            bytes: self.now.bytes.saturating_sub(self.then.bytes),
        }
    }
}

/// Where there is more than there was.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Grown {
    /// The mark that is compared with.
    pub mark: Marked,
    /// What is live.
    pub live: Count,
    /// When, in milliseconds since the start of tracking.
    pub at_ms: u64,
    /// How many places have grown.
    pub grown: usize,
    /// Those that have grown most by bytes.
    pub places: Vec<Place>,
}

/// Where live bytes are from.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Live {
    /// What is live.
    pub live: Count,
    /// Of how many places.
    pub total: usize,
    /// Those with the most bytes.
    pub places: Vec<Place>,
}

/// How things are.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// libleak's version.
    pub version: String,
    /// Whether there is anything that a scan would be right about.
    pub tracking: bool,
    /// Why not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
    /// What `uname -r` prints in the guest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub release: Option<String>,
    /// Milliseconds since the start of tracking.
    pub at_ms: u64,
    /// Events so far, by the names of the summary's figures: `allocations`, `frees`, `live_objects`, `unmatched_returns` and so on.
    pub figures: Figures,
    /// How often the guest was stopped.
    pub pauses: Pauses,
    /// Scans that were made.
    pub scans: u64,
    /// What they reported, all together.
    pub reported: Count,
    /// The summary of the last one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_scan: Option<Figures>,
    /// Names of the marks to compare with, the oldest first.
    pub marks: Vec<String>,
    /// Connections.
    pub clients: usize,
    /// Bytes of memory that libleak itself has taken.
    #[serde(default)]
    pub memory_bytes: u64,
}

/// How often the guest was stopped, and for how long.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pauses {
    /// How often.
    pub count: u64,
    /// Microseconds of the last one.
    pub last_microseconds: u64,
    /// Of the longest.
    pub longest_microseconds: u64,
    /// Of all.
    pub total_microseconds: u64,
}

/// Who refers to an object.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Reasons {
    /// A path for each live object that has the address in it: pages may be around another one.
    pub paths: Vec<Path>,
}

/// A path of references.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Path {
    /// The object's address.
    #[serde(with = "crate::report::json::hex")]
    pub address: u64,
    /// Its size in bytes.
    pub size: u64,
    /// The stack of its allocation, innermost frame first.
    pub stack: Vec<Frame>,
    /// Who refers to it, who refers to that, and so on to the root; empty if nobody does. Each has `what`: `object` (with `address`, `size`, `kind`,
    /// `cache`, `caller`, and the reference's `offset` where there is one), `root` (with `physical`, `usage`, `symbol`), `register`, or
    /// `known` (what the kernel declares no leak).
    pub holders: Vec<Value>,
    /// The same as lines of text.
    pub text: Vec<String>,
}

/// What subscribers are told: a line with `schema`, and `event`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "lowercase")]
pub enum Event {
    /// A scan was made, by whomever it was asked for.
    Scan {
        /// Its figures.
        figures: Figures,
        /// Its summary line.
        summary: String,
        /// Groups reported.
        groups: usize,
        /// The first of them.
        first: Vec<GroupEvent>,
        /// The test at whose end, or within which, it was made.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        test: Option<String>,
        /// The last of the tests that were over since the scan before.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        tests: Vec<Test>,
    },
    /// A mark was made.
    Mark(Marked),
    /// What was unreferenced is not reported any more.
    Clear(Count),
    /// The guest ended. What its last scan found was told before.
    End {},
    /// The subscriber did not read fast enough: this is the last line for it.
    Dropped {},
}

/// A group of leaks, for those who wait for one.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct GroupEvent {
    /// Whether nothing refers to its objects.
    pub direct: bool,
    /// Objects.
    pub count: usize,
    /// Their bytes.
    pub bytes: u64,
    /// The test in which they were allocated.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub test: Option<String>,
    /// Frames as text, innermost first.
    pub stack: Vec<String>,
}

/// A line of a client.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Envelope<T> {
    /// [`SCHEMA`].
    pub schema: u32,
    /// The request's `do`, where it could be read.
    #[serde(rename = "do", default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// The request's `id`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<Value>,
    /// Whether it was done.
    pub ok: bool,
    /// Why not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// How long the guest stood still for it, where it did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pause_microseconds: Option<u64>,
    /// The rest.
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
