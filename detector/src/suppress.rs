//! Suppressions: leaks that the user knows of and does not want to hear of again, in LeakSanitizer's file format.
//!
//! A line is `leak:PATTERN`, or a comment that starts with `#`, or empty. A pattern is a part of a name: of a function, of a
//! module, or of a source file of any frame, those of inlined functions too. In it `*` is any text, and `^` at its start and
//! `$` at its end are the name's own start and end.
//!
//! `LeakSanitizer` takes the first place where a piece of a pattern fits, and so does not find `foo$` in `foo_foo`; this does.

use crate::report::{Frame, Function, Group};
use aho_corasick::AhoCorasick;
use std::collections::{BTreeMap, HashMap};
use std::fmt::Write;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::{fs, io};

/// Larger files are refused. A hundred thousand suppressions have some 3 MiB.
const MAX_BYTES: u64 = 256 << 20;

/// Why suppressions cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SuppressError {
    /// The file cannot be read.
    #[error("cannot read suppressions from {path}: {why}; give a file of lines leak:PATTERN")]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system says.
        why: std::io::Error,
    },
    /// A line makes no sense.
    #[error(
        "suppressions {path}, line {line}: \"{text}\": {why}; a line is leak:PATTERN, or a comment that starts with #"
    )]
    Line {
        /// The file.
        path: PathBuf,
        /// The line, counted from 1.
        line: usize,
        /// What stands there.
        text: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// There is more of them than can be searched for.
    #[error("too many suppressions: {0}; give fewer of them")]
    TooMany(String),
}

/// One suppression.
#[derive(Debug)]
pub struct Suppression {
    /// The pattern, as it stands in the file.
    pub template: String,
    /// The file.
    pub path: PathBuf,
    /// The line in it, counted from 1.
    pub line: usize,
    pattern: Pattern,
    used: AtomicBool,
}

/// Suppressions, in the order of their files and lines. Their numbers are their places.
#[derive(Debug, Default)]
pub struct Suppressions {
    all: Vec<Suppression>,
    /// Finds the longest literal of every pattern in a name; `None` if there are no suppressions.
    literals: Option<AhoCorasick>,
    /// By literal, the numbers of the patterns that have it, ascending.
    by_literal: Vec<Vec<usize>>,
    /// The first pattern that fits every name.
    any: Option<usize>,
}

/// The bytes of a file, whose size must be known: a pipe or a device may have no end.
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
    /// [`SuppressError`], for the first line of the first file that makes no sense.
    pub fn read<P: AsRef<Path>>(files: &[P]) -> Result<Suppressions, SuppressError> {
        let mut all = Vec::new();
        for path in files.iter().map(AsRef::as_ref) {
            let bytes = bytes(path).map_err(|why| SuppressError::Read { path: path.into(), why })?;
            parse(path, &bytes, &mut all)?;
        }
        Suppressions::new(all)
    }

    /// As [`Suppressions::read`], of one file's contents; `path` names it in errors.
    ///
    /// # Errors
    /// As there.
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

    /// All of them; the place of each is its number.
    pub fn all(&self) -> &[Suppression] {
        &self.all
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.all.is_empty()
    }

    /// The number of the suppression that fits a stack: that of the innermost frame that any fits, and the first of those.
    pub fn find(&self, frames: &[Frame]) -> Option<usize> {
        frames.iter().find_map(|frame| frame.names().filter_map(|name| self.find_name(name)).min())
    }

    fn find_name(&self, name: &str) -> Option<usize> {
        // As for LeakSanitizer, nothing fits what has no name.
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

    /// Those that were never used.
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
        let text = str::from_utf8(bytes).map_err(|_| bad("it is no UTF-8"))?.trim_matches([' ', '\t', '\r']);
        if text.is_empty() || text.starts_with('#') {
            continue;
        }
        let template = text.strip_prefix("leak:").ok_or_else(|| bad("it does not start with leak:"))?;
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

/// A pattern, taken apart.
#[derive(Debug)]
struct Pattern {
    /// What stands between asterisks.
    pieces: Vec<Box<str>>,
    /// The first piece starts the name.
    start: bool,
    /// The last piece ends the name.
    end: bool,
}

impl Pattern {
    fn parse(template: &str) -> Result<Pattern, &'static str> {
        let (start, rest) = template.strip_prefix('^').map_or((false, template), |rest| (true, rest));
        let (end, rest) = rest.strip_suffix('$').map_or((false, rest), |rest| (true, rest));
        if rest.is_empty() {
            return Err("the pattern is empty; if every leak is meant, it is leak:*");
        }
        if rest.contains('$') {
            return Err("nothing follows the end of a name, which $ stands for");
        }
        Ok(Pattern { pieces: rest.split('*').map(Box::from).collect(), start, end })
    }

    /// The longest piece, which every name that the pattern fits contains.
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
            // If it is also the first, the name ends where it does.
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

/// Parts of the names of functions in the kernel's image that only allocate, for others.
const ALLOCATORS: [&str; 9] =
    ["alloc", "kmem_cache", "slab", "get_free_page", "get_zeroed_page", "strdup", "strndup", "memdup", "asprintf"];

/// Suppressions that fit what was reported, each once: by pattern, the comment that goes before it. Where a stack names
/// nobody but allocators, its outermost frame stands for it; what has no name at all has no suppression.
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
        // Whoever called it tells what it was for.
        let rest = named().skip_while(|f| !std::ptr::eq(*f, culprit)).skip(1).take(3);
        let callers: String = rest.map(|f| format!(", called by {}", f.name)).collect();
        let _ = writeln!(comment, "# {what}, {} objects, {} bytes{callers}", group.leaks.len(), group.bytes());
    }
    lines
}

#[cfg(test)]
mod tests;
