//! The plugin's options: QEMU's `key=value` words after `-plugin FILE,`.

use std::path::PathBuf;
use std::time::Duration;

/// An option, for parsing and for `help`.
struct Key {
    name: &'static str,
    value: &'static str,
    what: &'static str,
}

const KEYS: &[Key] = &[
    Key { name: "report", value: "PATH", what: "write reports there instead of to stderr" },
    Key {
        name: "scan",
        value: "SECONDS",
        what: "also scan every so many seconds while the guest runs (default: only at exit)",
    },
    Key {
        name: "min-age",
        value: "SECONDS",
        what: "report no object younger than this (default: 0 at exit, 5 for scan=)",
    },
    Key {
        name: "qmp",
        value: "PATH",
        what: "pause the guest for scan= through this QMP socket (-qmp unix:PATH,server=on,wait=off)",
    },
    Key {
        name: "symbols",
        value: "PATH",
        what: "vmlinux, System.map or saved /proc/kallsyms of the guest's kernel, if it lacks CONFIG_KALLSYMS_ALL",
    },
    Key {
        name: "audit",
        value: "on|off",
        what: "after each report, say which objects only the kernel or only libleak knows (default: off)",
    },
    Key {
        name: "live",
        value: "hooks|slab",
        what: "slab: report also what the kernel holds and whose allocation was not seen (default: hooks)",
    },
    Key {
        name: "pages",
        value: "on|off",
        what: "also report pages taken from the page allocator and lost, which kmemleak does not (default: off)",
    },
    Key {
        name: "why",
        value: "PATTERN",
        what: "after each report, say who refers to the live objects of functions, modules or tasks so called",
    },
    Key {
        name: "snapshot",
        value: "PATH",
        what: "before each check, write all that it needs there, for the program leak; the last one stays",
    },
    Key { name: "help", value: "", what: "print this" },
];

/// What the user asked for.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Options {
    /// Where reports go.
    pub report: Option<PathBuf>,
    /// Time between scans.
    pub scan: Option<Duration>,
    /// Least age of what is reported.
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
    /// Part of the name of functions or modules whose live objects are explained.
    pub why: Option<String>,
    /// Where snapshots go.
    pub snapshot: Option<PathBuf>,
}

/// Why QEMU is to stop at start.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum OptionError {
    /// No such option.
    #[error("unknown option \"{0}\"; the options are {keys}", keys = names())]
    Unknown(String),
    /// A value that makes no sense.
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
    /// Not an error: the user wants to read.
    #[error("{0}")]
    Help(String),
}

fn names() -> String {
    KEYS.iter().map(|k| k.name).collect::<Vec<_>>().join(", ")
}

fn help() -> String {
    let rows = KEYS.iter().map(|k| {
        let left = if k.value.is_empty() { k.name.to_owned() } else { format!("{}={}", k.name, k.value) };
        format!("  {left:<16} {}\n", k.what)
    });
    format!(
        "{}: kernel memory leaks of a Linux guest\nusage: -plugin libleak.so[,OPTION]...\n{}",
        env!("CARGO_PKG_VERSION"),
        rows.collect::<String>()
    )
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
                path => Ok(Some(PathBuf::from(path))),
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
            match key.name {
                "report" => options.report = path()?,
                "scan" => options.scan = seconds(1)?,
                "min-age" => options.min_age = seconds(0)?,
                "qmp" => options.qmp = path()?,
                "symbols" => options.symbols = path()?,
                "snapshot" => options.snapshot = path()?,
                "live" => {
                    options.live_slab = match value {
                        "hooks" => false,
                        "slab" => true,
                        _ => return Err(bad("neither hooks nor slab")),
                    }
                }
                "why" => match value {
                    "" | "on" => return Err(bad("no pattern")),
                    pattern => options.why = Some(pattern.to_owned()),
                },
                "audit" => options.audit = switch()?,
                "pages" => options.pages = switch()?,
                _ => return Err(OptionError::Help(help())),
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
        assert_eq!(o.report, Some("/tmp/r".into()));
        assert_eq!(o.scan, Some(Duration::from_secs(10)));
        assert_eq!(o.min_age, Some(Duration::ZERO));
        assert!(o.audit);
        assert_eq!(o.why.as_deref(), Some("kmalloc"));
        assert_eq!(Options::parse([]).unwrap(), Options::default());
    }

    #[test]
    fn bad_words_name_the_right_ones() {
        let error = |w| Options::parse([w]).unwrap_err().to_string();
        assert!(error("scans=1").contains("scan, min-age"), "{}", error("scans=1"));
        assert!(error("scan=0").contains("scan=SECONDS"));
        assert!(error("scan=x").contains("whole number"));
        assert!(error("audit=1").contains("audit=on|off"));
        assert!(error("live=on").contains("live=hooks|slab"));
        assert!(error("why=on").contains("why=PATTERN"));
        assert!(error("report=on").contains("report=PATH"));
        assert!(error("snapshot").contains("snapshot=PATH"));
        assert!(error("help=on").contains("usage:"));
    }
}
