//! `leak compare`.

use crate::output;
use crate::report::lines::{self, Run};
use crate::report::words::{function, objects, site};
use detector::report::{Frame, Group};
use serde::Serialize;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::ExitCode;

/// Compare the leaks of two runs, such as those of two nights
///
/// Leaks are the same if the names of their functions are. Addresses and suffixes from the compiler
/// differ between builds. The status is 23 if there are new leaks or more of an old one. It is 24
/// if a file has no result, and 0 otherwise.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  leak compare yesterday.jsonl today.jsonl
  leak compare --json yesterday.jsonl today.jsonl | jq .new")]
pub struct Compare {
    /// JSON lines of the earlier run
    old: PathBuf,
    /// JSON lines of the later run
    new: PathBuf,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Why there is no comparison.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file cannot be read.
    #[error(transparent)]
    Lines(#[from] lines::Error),
    /// A file contains no result.
    #[error("{path} has no result: {why}")]
    NoResult {
        /// The file.
        path: PathBuf,
        /// Why not.
        why: String,
    },
    /// Standard output cannot be written.
    #[error("cannot write the comparison: {0}")]
    Output(#[from] std::io::Error),
}

/// An allocation site that leaks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct Place {
    /// Functions, innermost first.
    stack: Vec<String>,
    direct: bool,
    /// The function that identifies the site.
    site: String,
    before: Count,
    now: Count,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
struct Count {
    objects: u64,
    bytes: u64,
}

/// The differences.
#[derive(Debug, Default, PartialEq, Eq, Serialize)]
struct Differences {
    schema: u32,
    /// Sites without leaks before.
    new: Vec<Place>,
    /// Sites with more objects than before.
    grown: Vec<Place>,
    /// Sites without leaks now.
    gone: Vec<Place>,
    /// The number of sites with the same number of objects or fewer.
    unchanged: usize,
}

/// A name without the suffixes of GCC and Clang for parts and copies of a function.
fn plain(frame: &Frame) -> String {
    let name = function(frame);
    let (name, module) = name.split_once(' ').map_or((name.as_str(), None), |(name, module)| (name, Some(module)));
    // An assembler symbol may start with a dot.
    let name = name.char_indices().skip(1).find(|(_, c)| *c == '.').map_or(name, |(at, _)| &name[..at]);
    module.map_or(name.to_owned(), |module| format!("{name} {module}"))
}

fn differences(old: &Run, new: &Run) -> Differences {
    let mut places: BTreeMap<(Vec<String>, bool), Place> = BTreeMap::new();
    let mut add = |group: &Group, which: fn(&mut Place) -> &mut Count| {
        let stack: Vec<String> = group.frames.iter().map(plain).collect();
        let place = places.entry((stack.clone(), group.direct)).or_insert_with(|| Place {
            stack,
            direct: group.direct,
            site: site(group),
            before: Count::default(),
            now: Count::default(),
        });
        let count = which(place);
        count.objects += group.leaks.len() as u64;
        count.bytes += group.bytes();
    };
    old.groups().for_each(|group| add(group, |place| &mut place.before));
    new.groups().for_each(|group| add(group, |place| &mut place.now));
    let mut differences = Differences { schema: 1, ..Differences::default() };
    for place in places.into_values() {
        match (place.before.objects, place.now.objects) {
            (0, _) => differences.new.push(place),
            (_, 0) => differences.gone.push(place),
            (before, now) if now > before => differences.grown.push(place),
            _ => differences.unchanged += 1,
        }
    }
    for list in [&mut differences.new, &mut differences.grown, &mut differences.gone] {
        list.sort_by_key(|place| std::cmp::Reverse(place.now.bytes.max(place.before.bytes)));
    }
    differences
}

impl Differences {
    fn text(&self) -> String {
        let mut text = String::new();
        for (what, places) in [("new", &self.new), ("grown", &self.grown), ("gone", &self.gone)] {
            for place in places {
                let count = |c: Count| format!("{}, {} bytes", objects(c.objects as usize), c.bytes);
                let counts = match what {
                    "new" => count(place.now),
                    "gone" => count(place.before),
                    _ => format!("{}; before {}", count(place.now), count(place.before)),
                };
                text += &format!("{what} leak in {}: {counts}\n", place.site);
                place.stack.iter().for_each(|frame| text += &format!("    {frame}\n"));
            }
        }
        let [new, grown, gone] = [&self.new, &self.grown, &self.gone].map(Vec::len);
        text + &format!("{new} new, {grown} grown, {gone} gone, {} unchanged\n", self.unchanged)
    }
}

impl Compare {
    /// Prints the differences and returns the status.
    pub fn run(&self) -> ExitCode {
        output::exit(self.try_run())
    }

    fn try_run(&self) -> Result<u8, Error> {
        let open = |path: &PathBuf| {
            let run = Run::open(path)?;
            match run.failure() {
                Some(why) => Err(Error::NoResult { path: path.clone(), why }),
                None => Ok(run),
            }
        };
        let differences = differences(&open(&self.old)?, &open(&self.new)?);
        let json = || serde_json::to_string_pretty(&differences).unwrap_or_default() + "\n";
        output::print(&if self.json { json() } else { differences.text() })?;
        Ok(if differences.new.is_empty() && differences.grown.is_empty() { 0 } else { output::LEAKS })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::lines::tests::text;

    #[test]
    fn leaks_are_told_by_the_names_of_their_functions() {
        let old = Run::read(&text()).unwrap();
        // Another build has other addresses and a part of a function.
        let moved = text().replace("\"offset\":2", "\"offset\":7").replace("leak_a", "leak_a.part.0");
        let same = differences(&old, &Run::read(&moved).unwrap());
        assert_eq!((same.new.len(), same.grown.len(), same.gone.len(), same.unchanged), (0, 0, 0, 4), "{same:?}");

        let worse = Run::read(&text().replace("leak_b", "leak_a").replace("leak_c", "leak_x")).unwrap();
        let worse = differences(&old, &worse);
        let sites = |places: &[Place]| places.iter().map(|p| p.site.clone()).collect::<Vec<_>>();
        assert_eq!(sites(&worse.new), ["leak_x [zoo]"]);
        assert_eq!(sites(&worse.grown), ["leak_a [zoo]"]);
        assert_eq!(sites(&worse.gone), ["leak_b [zoo]", "leak_c [zoo]"]);
        assert_eq!((worse.grown[0].before.bytes, worse.grown[0].now.bytes, worse.unchanged), (64, 96, 1));
        let text = worse.text();
        assert!(
            text.starts_with("new leak in leak_x [zoo]: 1 object, 8 bytes\n    kmalloc\n    leak_x [zoo]\n"),
            "{text}"
        );
        assert!(
            text.contains("grown leak in leak_a [zoo]: 2 objects, 96 bytes; before 1 object, 64 bytes\n"),
            "{text}"
        );
        assert!(text.ends_with("1 new, 1 grown, 2 gone, 1 unchanged\n"), "{text}");
    }
}
