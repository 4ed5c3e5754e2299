//! The table of options, for parsing and for `help`.

/// A row of the table.
pub(super) struct Key {
    /// The option.
    pub(super) option: OptionName,
    /// Its name, before the "=".
    pub(super) name: &'static str,
    /// The form of its value.
    pub(super) value: &'static str,
    what: &'static str,
}

/// Makes the table, and an enum of all options. A `match` over the enum does not compile if it
/// lacks an option.
macro_rules! keys {
    ($($option:ident: $name:literal = $value:literal, $what:literal;)*) => {
        /// Every option.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub(super) enum OptionName { $($option,)* }

        /// All of them, in the order of `help`.
        pub(super) const KEYS: &[Key] = &[
            $(Key { option: OptionName::$option, name: $name, value: $value, what: $what },)*
        ];
    };
}

keys! {
    Report: "report" = "PATH",
        "write reports there instead of to stderr; once or more, and in JSON if it ends in .jsonl";
    Format: "format" = "text|jsonl|console",
        "form of the report= before it, or of stderr: kmemleak's text, lines of JSON, or text for parsers of consoles";
    Each: "each" = "on|off",
        "print every object in kmemleak's format, not one of each group (default: off)";
    Suppress: "suppress" = "PATH",
        "leave out leaks that a line leak:PATTERN of this file matches, as LeakSanitizer does; once or more";
    SuppressPrint: "suppress-print" = "PATH",
        "write suppressions there that fit all that was reported";
    MaxObjects: "max-objects" = "NUMBER",
        "live objects that are tracked at once, at least 1000 (default: one for each 16 bytes of the guest's RAM)";
    Frames: "frames" = "NUMBER",
        "frames kept of each backtrace, 1 to 64 (default: 16)";
    Debug: "debug" = "PATH",
        "file or folder with debugging information, for places in the source; once or more (default: the kernel's own vmlinux, if it is found)";
    Scan: "scan" = "SECONDS",
        "also scan every so many seconds while the guest runs (default: only at exit)";
    MinAge: "min-age" = "SECONDS",
        "report no object younger than this (default: 0 at exit, 5 for scan=)";
    Qmp: "qmp" = "PATH",
        "pause the guest for scan= through this QMP socket (-qmp unix:PATH,server=on,wait=off)";
    Symbols: "symbols" = "PATH",
        "vmlinux, System.map or saved /proc/kallsyms of the guest's kernel, if it lacks CONFIG_KALLSYMS_ALL";
    Audit: "audit" = "on|off",
        "after each report, list objects that only the kernel or only libleak knows (default: off)";
    Live: "live" = "hooks|slab",
        "slab: also report slab objects whose allocation was not seen (default: hooks)";
    Pages: "pages" = "on|off",
        "also report leaked pages of the page allocator, which kmemleak does not (default: off)";
    History: "history" = "on|off",
        "say where each leak was lost: its last reference, and how that ended (default: off; the guest takes longer)";
    Why: "why" = "PATTERN",
        "after each report, list what refers to live objects of functions, modules or tasks of this name";
    Snapshot: "snapshot" = "PATH",
        "before each check, write the guest's memory there, for leak check; the last one stays";
    Control: "control" = "PATH",
        "answer requests on this Unix socket while the guest runs, for leak scan, leak watch and other programs";
    GuestMarkers: "guest-markers" = "on|off",
        "let the guest ask for scans and name tests, by /proc/self/comm, /dev/kmsg or cpuid (default: on)";
    Tests: "tests" = "ktap|off",
        "take names of tests from KTAP on the guest's console and in its log (default: ktap)";
    PerTest: "per-test" = "on|off",
        "also scan at the end of each test (default: off)";
    Threads: "threads" = "NUMBER",
        "threads of a check, 1 to 64 (default: as many as the host has processors, at most 8)";
    MaxMemory: "max-memory" = "SIZE",
        "most memory of libleak itself, such as 500M or 2G (default: what the host has)";
    Help: "help" = "",
        "print this";
}

/// The names of all options, for the error about an unknown one.
pub(super) fn names() -> String {
    KEYS.iter().map(|k| k.name).collect::<Vec<_>>().join(", ")
}

/// The text of `help`.
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
