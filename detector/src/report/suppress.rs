//! Suppressions: known leaks that the user does not want to see, in LeakSanitizer's file format.
//!
//! A line is `leak:PATTERN`, a comment that starts with `#`, or empty. A pattern matches part of a
//! name. Names are those of functions, modules and source files of any frame, including inlined
//! functions. `*` stands for any text. `^` at the start and `$` at the end anchor the pattern.
//!
//! `LeakSanitizer` takes the first match of each part of a pattern, so its `foo$` does not match
//! `foo_foo`. Here it does.
//!
//! # Example
//!
//! ```
//! use detector::report::{Frame, Function};
//! use detector::suppress::Suppressions;
//! use std::path::Path;
//!
//! let known = Suppressions::parse(Path::new("known"), b"# fixed in 6.13\nleak:^foo_*$\n")?;
//! let function = Function { name: "foo_probe".into(), ..Function::default() };
//! let frame = Frame { function: Some(function), ..Frame::default() };
//! assert_eq!(known.find(&[frame]), Some(0));
//! # Ok::<(), detector::suppress::SuppressError>(())
//! ```

use super::model::{Frame, Function, Group};
use aho_corasick::AhoCorasick;
use std::collections::{BTreeMap, HashMap};
use std::fmt::Write;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::{fs, io};

/// Larger files are rejected. A hundred thousand suppressions take about 3 MiB.
const MAX_BYTES: u64 = 256 << 20;

/// Why suppressions cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SuppressError {
    /// The file cannot be read.
    #[error("cannot read suppressions from {path}: {why}; give a file of lines leak:PATTERN")]
    Read {
        /// The file.
        path: PathBuf,
        /// The error of the system.
        why: std::io::Error,
    },
    /// A line is malformed.
    #[error(
        "suppressions {path}, line {line}: \"{text}\": {why}; a line is leak:PATTERN, or a comment that starts with #"
    )]
    Line {
        /// The file.
        path: PathBuf,
        /// The line, counted from 1.
        line: usize,
        /// The text of the line.
        text: String,
        /// What is wrong with the line.
        why: Flaw,
    },
    /// There are more suppressions than the search can handle.
    #[error("too many suppressions: {0}; give fewer of them")]
    TooMany(String),
}

/// What is wrong with a line of suppressions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Flaw {
    /// The line has invalid UTF-8.
    #[error("it is not UTF-8")]
    Encoding,
    /// A line is not empty, not a comment and not a suppression.
    #[error("it does not start with leak:")]
    Prefix,
    /// The pattern has no text besides its anchors.
    #[error("the pattern is empty; if every leak is meant, it is leak:*")]
    Empty,
    /// The pattern has text behind the anchor `$`.
    #[error("text follows $, which stands for the end of a name")]
    AfterEnd,
}

/// One suppression.
#[derive(Debug)]
pub struct Suppression {
    /// The pattern as it is written in the file.
    pub template: String,
    /// The file.
    pub path: PathBuf,
    /// The line in the file, counted from 1.
    pub line: usize,
    pattern: Pattern,
    used: AtomicBool,
}

/// Suppressions in the order of files and lines. A suppression's number is its index.
#[derive(Debug, Default)]
pub struct Suppressions {
    all: Vec<Suppression>,
    /// Finds the longest literal of each pattern in a name. `None` if there are no suppressions.
    literals: Option<AhoCorasick>,
    /// By literal, the numbers of the patterns that contain it, ascending.
    by_literal: Vec<Vec<usize>>,
    /// The first pattern that matches every name.
    any: Option<usize>,
}

/// Reads a regular file. A pipe or a device may have no end, so its size must be known.
fn bytes(path: &Path) -> io::Result<Vec<u8>> {
    let about = fs::metadata(path)?;
    if !about.is_file() {
        return Err(io::Error::other("it is no regular file"));
    }
    if about.len() > MAX_BYTES {
        return Err(io::Error::other(format!("it has {} bytes, and {MAX_BYTES} are the most", about.len())));
    }
    let mut bytes = Vec::new();
    fs::File::open(path)?.take(MAX_BYTES).read_to_end(&mut bytes)?;
    Ok(bytes)
}

impl Suppressions {
    /// Reads files of suppressions.
    ///
    /// # Errors
    /// [`SuppressError`], for the first malformed line of the first such file.
    pub fn read<P: AsRef<Path>>(files: &[P]) -> Result<Suppressions, SuppressError> {
        let mut all = Vec::new();
        for path in files.iter().map(AsRef::as_ref) {
            let bytes = bytes(path).map_err(|why| SuppressError::Read { path: path.into(), why })?;
            parse(path, &bytes, &mut all)?;
        }
        Suppressions::new(all)
    }

    /// As [`Suppressions::read`], for the contents of one file. `path` names it in errors.
    ///
    /// # Errors
    /// As for [`Suppressions::read`].
    pub fn parse(path: &Path, contents: &[u8]) -> Result<Suppressions, SuppressError> {
        let mut all = Vec::new();
        parse(path, contents, &mut all)?;
        Suppressions::new(all)
    }

    fn new(all: Vec<Suppression>) -> Result<Suppressions, SuppressError> {
        let any = all.iter().position(|s| s.pattern.literal().is_empty());
        let mut places: HashMap<&str, usize> = HashMap::new();
        let mut by_literal: Vec<Vec<usize>> = Vec::new();
        let mut literals: Vec<&str> = Vec::new();
        for (number, literal) in all.iter().map(|s| s.pattern.literal()).enumerate().filter(|(_, l)| !l.is_empty()) {
            let place = *places.entry(literal).or_insert_with(|| {
                literals.push(literal);
                by_literal.push(Vec::new());
                literals.len() - 1
            });
            by_literal[place].push(number);
        }
        let literals = match literals.is_empty() {
            true => None,
            false => Some(AhoCorasick::new(&literals).map_err(|e| SuppressError::TooMany(e.to_string()))?),
        };
        Ok(Suppressions { all, literals, by_literal, any })
    }

    /// All suppressions, by number.
    pub fn all(&self) -> &[Suppression] {
        &self.all
    }

    /// Whether there are no suppressions.
    pub fn is_empty(&self) -> bool {
        self.all.is_empty()
    }

    /// The number of the suppression that matches a stack. The innermost matching frame decides,
    /// and then the order of suppressions.
    pub fn find(&self, frames: &[Frame]) -> Option<usize> {
        frames.iter().find_map(|frame| frame.names().filter_map(|name| self.find_name(name)).min())
    }

    fn find_name(&self, name: &str) -> Option<usize> {
        // As in LeakSanitizer, nothing matches an empty name.
        let any = self.any.filter(|_| !name.is_empty());
        let found = self.literals.iter().flat_map(|literals| literals.find_overlapping_iter(name));
        let fits = |number: &&usize| self.all[**number].pattern.fits(name);
        let found = found.filter_map(|m| self.by_literal[m.pattern().as_usize()].iter().find(fits)).min().copied();
        any.into_iter().chain(found).min()
    }

    /// Notes that a suppression was used.
    pub fn set_used(&self, number: usize) {
        if let Some(suppression) = self.all.get(number) {
            suppression.used.store(true, Ordering::Relaxed);
        }
    }

    /// Suppressions that were never used.
    pub fn unused(&self) -> impl Iterator<Item = &Suppression> {
        self.all.iter().filter(|s| !s.used.load(Ordering::Relaxed))
    }
}

fn parse(path: &Path, bytes: &[u8], all: &mut Vec<Suppression>) -> Result<(), SuppressError> {
    for (i, bytes) in bytes.split(|&b| b == b'\n').enumerate() {
        let line = i + 1;
        let bad = |why| SuppressError::Line {
            path: path.into(),
            line,
            text: String::from_utf8_lossy(bytes).trim().to_owned(),
            why,
        };
        let text = str::from_utf8(bytes).map_err(|_| bad(Flaw::Encoding))?.trim_matches([' ', '\t', '\r']);
        if text.is_empty() || text.starts_with('#') {
            continue;
        }
        let template = text.strip_prefix("leak:").ok_or_else(|| bad(Flaw::Prefix))?;
        let pattern = Pattern::parse(template).map_err(bad)?;
        all.push(Suppression {
            template: template.to_owned(),
            path: path.into(),
            line,
            pattern,
            used: AtomicBool::new(false),
        });
    }
    Ok(())
}

/// A parsed pattern.
#[derive(Debug)]
struct Pattern {
    /// The parts between asterisks.
    pieces: Vec<Box<str>>,
    /// Whether the first part must start the name.
    start: bool,
    /// Whether the last part must end the name.
    end: bool,
}

impl Pattern {
    fn parse(template: &str) -> Result<Pattern, Flaw> {
        let (start, rest) = template.strip_prefix('^').map_or((false, template), |rest| (true, rest));
        let (end, rest) = rest.strip_suffix('$').map_or((false, rest), |rest| (true, rest));
        if rest.is_empty() {
            return Err(Flaw::Empty);
        }
        if rest.contains('$') {
            return Err(Flaw::AfterEnd);
        }
        Ok(Pattern { pieces: rest.split('*').map(Box::from).collect(), start, end })
    }

    /// The longest part. Every matching name contains it.
    fn literal(&self) -> &str {
        self.pieces.iter().max_by_key(|p| p.len()).map_or("", |p| p)
    }

    fn fits(&self, name: &str) -> bool {
        let (mut rest, mut pieces) = (name, &self.pieces[..]);
        if self.start {
            let [first, others @ ..] = pieces else { return false };
            let Some(after) = rest.strip_prefix(&**first) else { return false };
            (rest, pieces) = (after, others);
        }
        if self.end {
            // A part that is both first and last must be the whole name.
            let [others @ .., last] = pieces else { return rest.is_empty() };
            let Some(before) = rest.strip_suffix(&**last) else { return false };
            (rest, pieces) = (before, others);
        }
        pieces.iter().all(|piece| match rest.split_once(&**piece) {
            Some((_, after)) => {
                rest = after;
                true
            }
            None => false,
        })
    }
}

/// Parts of names of kernel functions that only allocate for their callers.
const ALLOCATORS: [&str; 9] =
    ["alloc", "kmem_cache", "slab", "get_free_page", "get_zeroed_page", "strdup", "strndup", "memdup", "asprintf"];

/// Suppressions for reported leaks: a map from the line to the comment before it.
///
/// The innermost function that is not an allocator names the pattern. If all are allocators, the
/// outermost one does. Groups without any name get no suppression.
pub fn for_groups(groups: &[Group]) -> BTreeMap<String, String> {
    let mut lines = BTreeMap::new();
    for group in groups {
        let named = || group.frames.iter().filter_map(|f| f.function.as_ref());
        let allocates = |f: &Function| f.module.is_none() && ALLOCATORS.iter().any(|a| f.name.contains(a));
        let Some(culprit) = named().find(|f| !allocates(f)).or_else(|| named().next_back()) else { continue };
        let name = match (culprit.name.as_str(), &culprit.module) {
            ("", Some(module)) => module,
            ("", None) => continue,
            (name, _) => name,
        };
        let comment: &mut String = lines.entry(format!("leak:^{name}$")).or_default();
        let what = if group.direct { "direct" } else { "indirect" };
        // The callers show what the allocation was for.
        let rest = named().skip_while(|f| !std::ptr::eq(*f, culprit)).skip(1).take(3);
        let callers: String = rest.map(|f| format!(", called by {}", f.name)).collect();
        let _ = writeln!(comment, "# {what}, {} objects, {} bytes{callers}", group.leaks.len(), group.bytes());
    }
    lines
}

#[cfg(test)]
mod tests;
