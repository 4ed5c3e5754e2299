//! Rewrites QEMU's command line, so that the guest runs under the plugin and not under KVM.
//!
//! The options with a value are those of qemu-options.hx in QEMU 9.2 to 11.1. system/vl.c defines
//! how `-nographic` and monitors interact.

use std::ffi::{OsStr, OsString};
use std::path::Path;

/// Options without a value, in these and earlier versions. All others have one.
const WITHOUT_VALUE: &[&str] = &[
    "S",
    "alt-grab",
    "async-teardown",
    "ctrl-grab",
    "daemonize",
    "enable-fips",
    "enable-kvm",
    "enable-sync-profile",
    "full-screen",
    "h",
    "help",
    "mem-prealloc",
    "no-acpi",
    "no-fd-bootchk",
    "no-frame",
    "no-hpet",
    "no-kvm",
    "no-kvm-irqchip",
    "no-quit",
    "no-reboot",
    "no-shutdown",
    "no-user-config",
    "nodefaults",
    "nographic",
    "nouserconfig",
    "old-param",
    "only-migratable",
    "portrait",
    "preconfig",
    "s",
    "semihosting",
    "singlestep",
    "snapshot",
    "usb",
    "version",
    "win2k-hack",
    "xen-attach",
    "xen-domid-restrict",
];

/// Options whose value may be `help`. QEMU then prints a list and exits.
const WITH_HELP: &[&str] = &[
    "M", "accel", "audio", "audiodev", "chardev", "cpu", "d", "device", "display", "global", "machine", "net",
    "netdev", "nic", "object", "soundhw", "tpmdev", "trace", "vga", "watchdog",
];

/// The purpose of a command line.
#[derive(Debug, PartialEq, Eq)]
pub enum Invocation {
    /// No guest: QEMU prints something, or a management program asks for its features.
    Question,
    /// A guest with libleak on the command line.
    Watched,
    /// A guest.
    Guest(Rewritten),
}

/// A guest's rewritten command line.
#[derive(Debug, PartialEq, Eq)]
pub struct Rewritten {
    /// The arguments without the program.
    pub arguments: Vec<OsString>,
    /// Changes concerning KVM.
    pub changed: Vec<String>,
    /// Changes that were not made, since KVM is kept.
    pub kept: Vec<String>,
    /// Whether QEMU continues in the background.
    pub daemonized: bool,
}

/// Additions to the command line.
#[derive(Debug, Clone, Copy)]
pub struct Added<'a> {
    /// The value of `-plugin`.
    pub plugin: &'a OsStr,
    /// The socket of a monitor for the plugin.
    pub monitor: Option<&'a Path>,
    /// Whether KVM stays.
    pub keep_kvm: bool,
}

/// An option with its value, or a lone word such as a disk image.
#[derive(Clone)]
struct Word {
    /// The option as it was written. Empty if it is removed.
    spelled: OsString,
    /// The name of the option. Empty for a lone word.
    name: String,
    value: Option<OsString>,
}

impl Word {
    fn new(name: &str, value: impl Into<OsString>) -> Word {
        Word { spelled: format!("-{name}").into(), name: name.to_owned(), value: Some(value.into()) }
    }

    fn text(&self) -> Option<&str> {
        self.value.as_deref().and_then(OsStr::to_str)
    }

    fn is_machine(&self) -> bool {
        matches!(self.name.as_str(), "machine" | "M")
    }
}

fn words(arguments: &[OsString]) -> Vec<Word> {
    let mut words = Vec::new();
    let mut rest = arguments.iter();
    while let Some(spelled) = rest.next() {
        let name = spelled.to_str().and_then(|s| s.strip_prefix("--").or_else(|| s.strip_prefix('-'))).unwrap_or("");
        let alone = name.is_empty() || WITHOUT_VALUE.contains(&name);
        let value = if alone { None } else { rest.next().cloned() };
        words.push(Word { spelled: spelled.clone(), name: name.to_owned(), value });
    }
    words
}

/// The comma-separated parts of a value. A doubled comma does not separate.
fn parts(value: &str) -> Vec<String> {
    // Arguments contain no NUL.
    value.replace(",,", "\0").split(',').map(|part| part.replace('\0', ",,")).collect()
}

fn is_question(words: &[Word]) -> bool {
    words.iter().any(|word| {
        let first = |part: &str| word.text().is_some_and(|value| parts(value)[0] == part);
        let help = word.text().is_some_and(|value| parts(value).iter().any(|part| part == "help" || part == "?"));
        matches!(word.name.as_str(), "h" | "help" | "version")
            // libvirt and others ask for QEMU's features this way.
            || word.is_machine() && first("none")
            || WITH_HELP.contains(&word.name.as_str()) && help
    })
}

/// Whether the option loads the plugin, by any path.
fn is_libleak(word: &Word) -> bool {
    let file = |value: &str| parts(value)[0].trim_start_matches("file=").to_owned();
    let name = word.text().map(file);
    word.name == "plugin" && name.is_some_and(|f| Path::new(&f).file_name().is_some_and(|n| n == "libleak.so"))
}

/// Reads the arguments of the QEMU `program` and rewrites them.
pub fn read(program: &str, arguments: &[OsString], added: Added<'_>) -> Invocation {
    let mut words = words(arguments);
    if is_question(&words) {
        return Invocation::Question;
    }
    if words.iter().any(is_libleak) {
        return Invocation::Watched;
    }
    let has = |words: &[Word], names: &[&str]| words.iter().any(|word| names.contains(&word.name.as_str()));
    let daemonized = has(&words, &["daemonize"]);
    let (mut changed, mut kept) = (Vec::new(), Vec::new());
    match added.keep_kvm {
        true => kept = without_kvm(program, &mut words.clone()),
        false => changed = without_kvm(program, &mut words),
    }
    if let Some(path) = added.monitor {
        // Any monitor option disables QEMU's default monitor, which a user may want to use.
        if has(&words, &["nographic"]) && !has(&words, &["nodefaults", "monitor", "mon", "qmp", "qmp-pretty"]) {
            words.push(if has(&words, &["serial"]) {
                Word::new("monitor", "stdio")
            } else {
                Word::new("serial", "mon:stdio")
            });
        }
        let path = path.display().to_string().replace(',', ",,");
        words.push(Word::new("qmp", format!("unix:{path},server=on,wait=off")));
    }
    words.push(Word::new("plugin", added.plugin));
    let arguments = words.into_iter().flat_map(|word| [Some(word.spelled), word.value]).flatten().collect();
    Invocation::Guest(Rewritten { arguments, changed, kept, daemonized })
}

/// Leaves TCG as the only accelerator and removes KVM's options. Returns the changes.
fn without_kvm(program: &str, words: &mut Vec<Word>) -> Vec<String> {
    let mut changed = Vec::new();
    let mut accelerated = false;
    for word in words.iter_mut() {
        let Some(value) = word.text().map(str::to_owned) else {
            if word.name == "enable-kvm" {
                changed.push("-enable-kvm".to_owned());
                word.spelled.clear();
            }
            continue;
        };
        let before = parts(&value);
        let after = match word.name.as_str() {
            "accel" => accelerator(&before),
            "machine" | "M" => machine(&before),
            "cpu" => cpu(&before),
            _ => continue,
        };
        accelerated |= word.name == "accel" && !after.is_empty() || after.iter().any(|part| part.starts_with("accel="));
        if after != before {
            let became = if after.is_empty() { String::new() } else { format!(" became {}", after.join(",")) };
            changed.push(format!("-{} {value}{became}", word.name));
            word.value = Some(after.join(",").into());
            if after.is_empty() {
                word.spelled.clear();
            }
        }
    }
    words.retain(|word| !word.spelled.is_empty());
    if !accelerated {
        // A QEMU of this name uses KVM by default.
        if program.ends_with("kvm") {
            changed.push(format!("the default accelerator of {program}"));
        }
        words.push(Word::new("accel", "tcg"));
    }
    changed
}

fn accelerator(parts: &[String]) -> Vec<String> {
    match parts[0].trim_start_matches("accel=") {
        "tcg" | "qtest" => parts.to_vec(),
        _ => Vec::new(),
    }
}

fn machine(parts: &[String]) -> Vec<String> {
    let only_kvms = ["kernel_irqchip", "kernel-irqchip", "kvm_shadow_mem", "kvm-shadow-mem", "kvm-type"];
    let keep = |part: &&String| !only_kvms.contains(&part.split('=').next().unwrap_or_default());
    let mut parts: Vec<String> = parts.iter().filter(keep).cloned().collect();
    for part in &mut parts {
        if let Some(names) = part.strip_prefix("accel=")
            && !matches!(names, "tcg" | "qtest")
        {
            *part = "accel=tcg".to_owned();
        }
    }
    parts
}

fn cpu(parts: &[String]) -> Vec<String> {
    let flag = |part: &&String| {
        let name = part.trim_start_matches(['+', '-']);
        !name.starts_with("kvm=") && !name.starts_with("kvm_") && !name.starts_with("kvm-") && *name != *"kvm"
    };
    let model = if parts[0] == "host" { "max".to_owned() } else { parts[0].clone() };
    [model].into_iter().chain(parts[1..].iter().filter(flag).cloned()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(program: &str, line: &str, keep_kvm: bool, monitor: bool) -> Invocation {
        let arguments: Vec<OsString> = line.split(' ').filter(|w| !w.is_empty()).map(OsString::from).collect();
        let monitor = monitor.then_some(Path::new("/d/qmp"));
        super::read(program, &arguments, Added { plugin: "P".as_ref(), monitor, keep_kvm })
    }

    /// The rewritten command line, and the changes.
    fn guest(line: &str) -> (String, String) {
        match read("qemu-system-x86_64", line, false, false) {
            Invocation::Guest(guest) => {
                let words: Vec<_> = guest.arguments.iter().map(|a| a.to_str().unwrap().to_owned()).collect();
                (words.join(" ").replace(" -plugin P", ""), guest.changed.join("; "))
            }
            other => panic!("{line}: {other:?}"),
        }
    }

    #[test]
    fn kvm_goes_in_all_its_forms() {
        let same = |line: &str| assert_eq!(guest(line), (line.to_owned(), String::new()));
        same("-accel tcg,thread=single -m 1G disk.img");
        same("-machine q35,accel=tcg");
        assert_eq!(guest("-enable-kvm -S").0, "-S -accel tcg");
        assert_eq!(guest("--enable-kvm").1, "-enable-kvm");
        assert_eq!(guest("-accel kvm,kernel-irqchip=split -accel tcg").0, "-accel tcg");
        assert_eq!(guest("-accel kvm -accel hvf").0, "-accel tcg");
        assert_eq!(guest("-machine accel=kvm:tcg").0, "-machine accel=tcg");
        assert_eq!(guest("-machine accel=kvm:tcg").1, "-machine accel=kvm:tcg became accel=tcg");
        assert_eq!(guest("-M pc,accel=kvm,usb=off").0, "-M pc,accel=tcg,usb=off");
        assert_eq!(guest("-machine q35,kernel_irqchip=on").0, "-machine q35 -accel tcg");
        assert_eq!(guest("-cpu host").0, "-cpu max -accel tcg");
        assert_eq!(
            guest("-cpu host,migratable=no,+kvm_pv_eoi,kvm=off,-x2apic").0,
            "-cpu max,migratable=no,-x2apic -accel tcg"
        );
        assert_eq!(guest("-cpu Skylake-Server,-kvm-asyncpf").0, "-cpu Skylake-Server -accel tcg");
    }

    #[test]
    fn values_are_no_options() {
        assert_eq!(guest("-append -enable-kvm").0, "-append -enable-kvm -accel tcg");
        assert_eq!(guest("-name -version -append help").0, "-name -version -append help -accel tcg");
        assert_eq!(guest("-device virtio-net,id=a,,help").0, "-device virtio-net,id=a,,help -accel tcg");
        assert_eq!(guest("disk.img -snapshot").0, "disk.img -snapshot -accel tcg");
        // QEMU reports the missing value.
        assert_eq!(guest("-m").0, "-m -accel tcg");
    }

    #[test]
    fn a_name_that_means_kvm() {
        let Invocation::Guest(guest) = read("qemu-kvm", "-m 1", false, false) else { panic!("no guest") };
        assert_eq!((guest.arguments[2..4].to_vec(), guest.changed.len()), (vec!["-accel".into(), "tcg".into()], 1));
        let Invocation::Guest(kept) = read("kvm", "-enable-kvm -cpu host", true, false) else { panic!("no guest") };
        assert_eq!(kept.arguments, ["-enable-kvm", "-cpu", "host", "-plugin", "P"]);
        assert_eq!((kept.changed.len(), &kept.kept[0][..]), (0, "-enable-kvm"));
    }

    #[test]
    fn questions_pass() {
        for line in
            "--version|-h|-m 1 -help|-cpu help|-device help|-machine help|-accel help|-device virtio-net,help|-cpu ?|-M none -qmp stdio"
                .split('|')
        {
            assert_eq!(read("qemu", line, false, true), Invocation::Question, "{line}");
        }
        assert_eq!(read("qemu", "-plugin /x/libleak.so,scan=1", false, true), Invocation::Watched);
        assert!(matches!(read("qemu", "-plugin /x/libother.so", false, true), Invocation::Guest(_)));
    }

    #[test]
    fn a_monitor_of_our_own_takes_none_away() {
        let tail = |line: &str| match read("qemu", line, true, true) {
            Invocation::Guest(guest) => {
                guest.arguments[line.split(' ').count()..].join("".as_ref()).into_string().unwrap()
            }
            other => panic!("{other:?}"),
        };
        let ours = "-qmpunix:/d/qmp,server=on,wait=off-pluginP";
        assert_eq!(tail("-m 1"), ours);
        assert_eq!(tail("-nographic"), format!("-serialmon:stdio{ours}"));
        assert_eq!(tail("-nographic -serial null"), format!("-monitorstdio{ours}"));
        assert_eq!(tail("-nographic -nodefaults"), ours);
        assert_eq!(tail("-nographic -monitor none"), ours);
        let Invocation::Guest(guest) = read("qemu", "-daemonize", true, true) else { panic!("no guest") };
        assert!(guest.daemonized);
    }
}
