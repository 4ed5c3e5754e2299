//! The options by their names, and what `help` says of them.

/// An option, for parsing and for `help`.
pub(super) struct Key {
    /// What is before the "=".
    pub(super) name: &'static str,
    /// What it takes.
    pub(super) value: &'static str,
    what: &'static str,
}

/// All of them, in the order of `help`.
pub(super) const KEYS: &[Key] = &[
    Key {
        name: "report",
        value: "PATH",
        what: "write reports there instead of to stderr; once or more, and in JSON if it ends in .jsonl",
    },
    Key {
        name: "format",
        value: "text|jsonl|console",
        what: "form of the report= before it, or of stderr: kmemleak's text, lines of JSON, or text for parsers of consoles",
    },
    Key {
        name: "each",
        value: "on|off",
        what: "print every object, in kmemleak's very words, and not one of each group (default: off)",
    },
    Key {
        name: "suppress",
        value: "PATH",
        what: "leave out what this file of lines leak:PATTERN fits, as LeakSanitizer does; once or more",
    },
    Key { name: "suppress-print", value: "PATH", what: "write suppressions there that fit all that was reported" },
    Key {
        name: "max-objects",
        value: "NUMBER",
        what: "live objects that are tracked at once, at least 1000 (default: one for each 16 bytes of the guest's RAM)",
    },
    Key { name: "frames", value: "NUMBER", what: "frames kept of each backtrace, 1 to 64 (default: 16)" },
    Key {
        name: "debug",
        value: "PATH",
        what: "file or folder with debugging information, for places in the source; once or more",
    },
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
    Key {
        name: "control",
        value: "PATH",
        what: "take requests there, a Unix socket, while the guest runs: for leak scan, watch and other programs",
    },
    Key {
        name: "guest-markers",
        value: "on|off",
        what: "let the guest ask for scans and name tests, by /proc/self/comm, /dev/kmsg or cpuid (default: on)",
    },
    Key {
        name: "tests",
        value: "ktap|off",
        what: "take names of tests from KTAP on the guest's console and in its log (default: ktap)",
    },
    Key { name: "per-test", value: "on|off", what: "also scan at the end of each test (default: off)" },
    Key {
        name: "threads",
        value: "NUMBER",
        what: "threads that make a check, 1 to 64 (default: as many as the host has processors, and 8 at most)",
    },
    Key {
        name: "max-memory",
        value: "SIZE",
        what: "memory for libleak itself at most, such as 500M or 2G (default: what the host has)",
    },
    Key { name: "help", value: "", what: "print this" },
];

/// Their names, for who mistyped one.
pub(super) fn names() -> String {
    KEYS.iter().map(|k| k.name).collect::<Vec<_>>().join(", ")
}

/// What `help` prints.
pub(super) fn help() -> String {
    let rows = KEYS.iter().map(|k| {
        let left = if k.value.is_empty() { k.name.to_owned() } else { format!("{}={}", k.name, k.value) };
        format!("  {left:<25} {}\n", k.what)
    });
    format!(
        "{}: kernel memory leaks of a Linux guest\nusage: -plugin libleak.so[,OPTION]...\n{}",
        env!("CARGO_PKG_VERSION"),
        rows.collect::<String>()
    )
}
