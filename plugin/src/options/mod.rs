//! The plugin's options: QEMU's `key=value` words after `-plugin FILE,`.

mod keys;

use detector::report::{Format, UnknownFormat};
use keys::{KEYS, OptionName, help, names};
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::time::Duration;

/// A file for reports.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReportFile {
    /// Its path.
    pub path: PathBuf,
    /// The format of its reports.
    pub format: Format,
}

/// Default number of frames of a stack.
const FRAMES: usize = 16;

/// The user's options.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// Files for reports; if there is none, reports go to stderr.
    pub reports: Vec<ReportFile>,
    /// The format of reports on stderr.
    pub stderr: Format,
    /// Whether every object is printed, or one of each group.
    pub each: bool,
    /// Files of suppressions.
    pub suppress: Vec<PathBuf>,
    /// File for suppressions of what was reported.
    pub suppress_print: Option<PathBuf>,
    /// Most frames of each stack.
    pub frames: usize,
    /// Files and folders with debugging information.
    pub debug: Vec<PathBuf>,
    /// Interval of scans.
    pub scan: Option<Duration>,
    /// Minimum age of reported objects.
    pub min_age: Option<Duration>,
    /// QMP socket.
    pub qmp: Option<PathBuf>,
    /// Symbol file.
    pub symbols: Option<PathBuf>,
    /// Whether the audit is printed in full.
    pub audit: bool,
    /// Whether objects whose allocation was not seen may be reported.
    pub live_slab: bool,
    /// Whether pages are tracked.
    pub pages: bool,
    /// Part of the name of functions, modules or tasks whose live objects are explained.
    pub why: Option<String>,
    /// File for snapshots.
    pub snapshot: Option<PathBuf>,
    /// The control socket.
    pub control: Option<PathBuf>,
    /// Whether the guest may send markers.
    pub guest_markers: bool,
    /// Whether lines of KTAP are read.
    pub ktap: bool,
    /// Whether to scan at the end of each test.
    pub per_test: bool,
    /// Most live objects.
    pub max_objects: Option<usize>,
    /// Most threads of a check.
    pub threads: Option<NonZeroUsize>,
    /// QEMU goes to the background, so no one reads stderr. This is not an option.
    pub background: bool,
    /// Most bytes of libleak's own memory.
    pub max_memory: Option<u64>,
    /// Whether the history of references is kept.
    pub history: bool,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            reports: Vec::new(),
            stderr: Format::default(),
            each: false,
            suppress: Vec::new(),
            suppress_print: None,
            frames: FRAMES,
            debug: Vec::new(),
            scan: None,
            min_age: None,
            qmp: None,
            symbols: None,
            audit: false,
            live_slab: false,
            pages: false,
            why: None,
            snapshot: None,
            control: None,
            guest_markers: true,
            ktap: true,
            per_test: false,
            max_objects: None,
            threads: None,
            background: false,
            max_memory: None,
            history: false,
        }
    }
}

/// Why QEMU is to stop at start.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum OptionError {
    /// No such option.
    #[error("unknown option \"{0}\"; the options are {keys}", keys = names())]
    Unknown(String),
    /// The value is not valid.
    #[error("option \"{key}={value}\": {why}; it is {key}={wanted}")]
    Value {
        /// The option.
        key: &'static str,
        /// What was given.
        value: String,
        /// What is wrong.
        why: String,
        /// What it takes.
        wanted: &'static str,
    },
    /// The user asked for the text of `help`.
    #[error("{0}")]
    Help(String),
}

/// The least value of `max-memory=` in bytes. A kernel's symbols and a check of a small guest fit
/// into it.
const LEAST_MEMORY: u64 = 64 << 20;

/// Parses a number of bytes, which may end in K, M or G.
fn size(text: &str) -> Option<u64> {
    let shift = match text.bytes().last()?.to_ascii_uppercase() {
        b'K' => 10,
        b'M' => 20,
        b'G' => 30,
        _ => 0,
    };
    let digits = if shift == 0 { text } else { &text[..text.len() - 1] };
    digits.parse::<u64>().ok()?.checked_mul(1 << shift)
}

impl Options {
    /// Parses QEMU's words.
    ///
    /// # Errors
    /// [`OptionError`], with the line to print.
    pub fn parse<'a>(words: impl IntoIterator<Item = &'a str>) -> Result<Options, OptionError> {
        let mut options = Options::default();
        for word in words {
            let (name, value) = word.split_once('=').unwrap_or((word, ""));
            let key = KEYS.iter().find(|k| k.name == name).ok_or_else(|| OptionError::Unknown(name.to_owned()))?;
            let bad = |why: &str| OptionError::Value {
                key: key.name,
                value: value.to_owned(),
                why: why.to_owned(),
                wanted: key.value,
            };
            // QEMU turns a bare word into word=on.
            let path = || match value {
                "" | "on" if !word.contains('/') => Err(bad("no path")),
                path => Ok(PathBuf::from(path)),
            };
            let seconds = |least: u64| match value.parse::<u64>() {
                Ok(n) if (least..=86_400 * 365).contains(&n) => Ok(Some(Duration::from_secs(n))),
                _ => Err(bad(&format!("not a whole number of seconds of at least {least}"))),
            };
            let switch = || match value {
                "on" => Ok(true),
                "off" => Ok(false),
                _ => Err(bad("neither on nor off")),
            };
            match key.option {
                OptionName::Report => {
                    let path = path()?;
                    if options.reports.iter().any(|r| r.path == path) {
                        return Err(bad("given twice"));
                    }
                    options.reports.push(ReportFile { format: Format::of(&path), path });
                }
                OptionName::Format => {
                    let before = options.reports.last_mut().map_or(&mut options.stderr, |r| &mut r.format);
                    *before = value.parse().map_err(|_| bad(UnknownFormat::MESSAGE))?;
                }
                OptionName::Each => options.each = switch()?,
                OptionName::Suppress => options.suppress.push(path()?),
                OptionName::SuppressPrint => options.suppress_print = Some(path()?),
                OptionName::Frames => match value.parse() {
                    Ok(n) if (1..=64).contains(&n) => options.frames = n,
                    _ => return Err(bad("not a number from 1 to 64")),
                },
                OptionName::MaxObjects => match value.parse() {
                    Ok(n) if n >= 1000 => options.max_objects = Some(n),
                    _ => return Err(bad("not a number of at least 1000")),
                },
                OptionName::Threads => match value.parse::<NonZeroUsize>() {
                    Ok(n) if n.get() <= 64 => options.threads = Some(n),
                    _ => return Err(bad("not a number from 1 to 64")),
                },
                OptionName::MaxMemory => match size(value) {
                    Some(bytes) if bytes >= LEAST_MEMORY => options.max_memory = Some(bytes),
                    _ => return Err(bad("not a number of bytes, K, M or G that comes to at least 64M")),
                },
                OptionName::Debug => options.debug.push(path()?),
                OptionName::Scan => options.scan = seconds(1)?,
                OptionName::MinAge => options.min_age = seconds(0)?,
                OptionName::Qmp => options.qmp = Some(path()?),
                OptionName::Symbols => options.symbols = Some(path()?),
                OptionName::Snapshot => options.snapshot = Some(path()?),
                OptionName::Control => options.control = Some(path()?),
                OptionName::Live => {
                    options.live_slab = match value {
                        "hooks" => false,
                        "slab" => true,
                        _ => return Err(bad("neither hooks nor slab")),
                    }
                }
                OptionName::Why => match value {
                    "" | "on" => return Err(bad("no pattern")),
                    pattern => options.why = Some(pattern.to_owned()),
                },
                OptionName::Audit => options.audit = switch()?,
                OptionName::GuestMarkers => options.guest_markers = switch()?,
                OptionName::PerTest => options.per_test = switch()?,
                OptionName::Tests => {
                    options.ktap = match value {
                        "ktap" => true,
                        "off" => false,
                        _ => return Err(bad("neither ktap nor off")),
                    }
                }
                OptionName::History => options.history = switch()?,
                OptionName::Pages => options.pages = switch()?,
                OptionName::Help => return Err(OptionError::Help(help())),
            }
        }
        Ok(options)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn good_words() {
        let o = Options::parse(["report=/tmp/r", "scan=10", "min-age=0", "audit=on", "why=kmalloc"]).unwrap();
        assert_eq!(o.reports, [ReportFile { path: "/tmp/r".into(), format: Format::Text }]);
        assert_eq!(o.scan, Some(Duration::from_secs(10)));
        assert_eq!(o.min_age, Some(Duration::ZERO));
        assert!(o.audit);
        assert_eq!(o.why.as_deref(), Some("kmalloc"));
        assert_eq!(Options::parse([]).unwrap(), Options::default());
        assert_eq!(Options::default().frames, 16);
        let o = Options::parse(["guest-markers=off", "tests=off", "per-test=on"]).unwrap();
        assert_eq!((o.guest_markers, o.ktap, o.per_test), (false, false, true));
        let memory = |word| Options::parse([word]).unwrap().max_memory;
        assert_eq!(memory("max-memory=64M"), memory("max-memory=67108864"));
        assert_eq!((memory("max-memory=2g"), memory("max-memory=65536K")), (Some(2 << 30), Some(64 << 20)));
        assert_eq!(Options::parse(["threads=2"]).unwrap().threads.map(usize::from), Some(2));
        let o = Options::parse(["frames=64", "each=on", "suppress=a", "suppress=/b", "debug=c", "suppress-print=d"])
            .unwrap();
        assert_eq!((o.frames, o.each, o.suppress_print), (64, true, Some("d".into())));
        assert_eq!((o.suppress, o.debug), (vec!["a".into(), "/b".into()], vec![PathBuf::from("c")]));
    }

    #[test]
    fn a_format_is_of_the_report_before_it() {
        let formats = |words: &[&str]| {
            let o = Options::parse(words.iter().copied()).unwrap();
            (o.stderr, o.reports.iter().map(|r| r.format).collect::<Vec<_>>())
        };
        assert_eq!(formats(&["report=a.txt", "report=b.jsonl"]), (Format::Text, vec![Format::Text, Format::JsonLines]));
        assert_eq!(
            formats(&["format=jsonl", "report=a.jsonl", "format=console", "report=b"]),
            (Format::JsonLines, vec![Format::Console, Format::Text])
        );
    }

    #[test]
    fn bad_words_name_the_right_ones() {
        let error = |w| Options::parse([w]).unwrap_err().to_string();
        assert!(error("scans=1").contains("scan, min-age"), "{}", error("scans=1"));
        assert!(error("scan=0").contains("scan=SECONDS"));
        assert!(error("scan=x").contains("whole number"));
        assert!(error("audit=1").contains("audit=on|off"));
        assert!(
            error("tests=on").contains("tests=ktap|off") && error("guest-markers=x").contains("guest-markers=on|off")
        );
        assert!(error("live=on").contains("live=hooks|slab"));
        assert!(error("why=on").contains("why=PATTERN"));
        assert!(error("report=on").contains("report=PATH"));
        assert!(error("format=json").contains("format=text|jsonl|console"));
        assert!(error("each=yes").contains("each=on|off"));
        assert!(error("suppress=").contains("suppress=PATH") && error("debug=on").contains("debug=PATH"));
        assert!(error("frames=0").contains("from 1 to 64") && error("frames=65").contains("frames=NUMBER"));
        assert!(Options::parse(["report=a", "report=a"]).unwrap_err().to_string().contains("given twice"));
        assert!(error("max-objects=999").contains("at least 1000"));
        assert_eq!(Options::parse(["max-objects=1000"]).unwrap().max_objects, Some(1000));
        assert!(error("threads=0").contains("threads=NUMBER") && error("threads=65").contains("from 1 to 64"));
        for word in ["max-memory=", "max-memory=on", "max-memory=1M", "max-memory=M", "max-memory=99999999999999G"] {
            assert!(error(word).contains("at least 64M") && error(word).contains("max-memory=SIZE"), "{word}");
        }
        assert!(error("snapshot").contains("snapshot=PATH"));
        assert!(error("control=on").contains("control=PATH"));
        assert!(error("help=on").contains("usage:"));
    }
}
