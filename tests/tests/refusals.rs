//! If the plugin cannot work, it prints one line with the requirement. If it can tell at load time,
//! QEMU does not start.

use tests::program::{plugin_argument, qemu, scratch};
use tests::{Boot, Finished, Guest, Program};

/// A machine without a guest, or a program for linux-user QEMU. `words` are the other arguments.
fn run(which: &str, option: Option<&str>, words: &str, seconds: u32) -> Finished {
    let options: Vec<String> = option.iter().map(ToString::to_string).collect();
    Program::new(qemu(which)).arg("-plugin").arg(plugin_argument(&options)).args(words).limit(seconds).run()
}

const BARE: &str = "-nodefaults -no-user-config -display none";

/// The plugin prints exactly one message, an error that contains all of these words.
fn assert_error(messages: &[&str], words: &[&str]) {
    let [message] = messages else { panic!("not one line: {messages:#?}") };
    assert!(message.starts_with("error: "), "{message}");
    for word in words {
        assert!(message.contains(word), "no \"{word}\" in: {message}");
    }
}

/// QEMU did not start, and the plugin said why.
fn assert_refused(done: &Finished, words: &[&str]) {
    assert_eq!(done.status, Some(1), "{}", done.stderr);
    assert_error(&done.messages(), words);
}

fn assert_option_refused(option: &str, words: &[&str]) {
    assert_refused(&run("installed", Some(option), BARE, 60), words);
}

#[test]
fn a_qemu_that_is_too_old() {
    assert_refused(&run("old", None, BARE, 60), &["too old", "version 9.2 to"]);
}

#[test]
fn a_control_socket_that_is_anothers() {
    let folder = std::env::temp_dir().join(format!("libleak-refused-{}", std::process::id()));
    std::fs::create_dir_all(&folder).expect("a folder for sockets");
    let (socket, file) = (folder.join("socket"), folder.join("file"));
    let live = std::os::unix::net::UnixListener::bind(&socket).expect("a socket");
    assert_option_refused(&format!("control={}", socket.display()), &["another process listens there"]);
    assert!(socket.exists());
    drop(live);
    std::fs::write(&file, "mine").expect("a file");
    assert_option_refused(&format!("control={}", file.display()), &["not a socket", "another path"]);
    assert_eq!(std::fs::read_to_string(&file).expect("the file"), "mine");
    std::fs::remove_dir_all(folder).expect("the folder goes away");
}

#[test]
fn linux_user_qemu() {
    assert_refused(&run("user", None, "/bin/true", 60), &["linux-user", "qemu-system-x86_64"]);
}

#[test]
fn another_architecture() {
    let done = run("aarch64", None, &format!("{BARE} -machine virt"), 60);
    assert_refused(&done, &["aarch64", "qemu-system-x86_64"]);
}

#[test]
fn an_unknown_option_names_the_known_ones() {
    assert_option_refused("scans=1", &["\"scans\"", "report", "scan", "min-age", "qmp", "symbols", "help"]);
}

#[test]
fn a_value_that_makes_no_sense() {
    assert_option_refused("scan=0", &["scan=0", "seconds", "scan=SECONDS"]);
    assert_option_refused("scan=soon", &["scan=soon", "scan=SECONDS"]);
    assert_option_refused("min-age=-1", &["min-age=-1", "min-age=SECONDS"]);
    // QEMU's form of an option without a value.
    assert_option_refused("report", &["report=PATH"]);
    assert_option_refused("symbols=", &["symbols=PATH"]);
    assert_option_refused("snapshot", &["snapshot=PATH"]);
    assert_option_refused("format=xml", &["format=xml", "format=text|jsonl|console"]);
    assert_option_refused("frames=65", &["frames=65", "1 to 64"]);
    assert_option_refused("snapshot=/no/such/folder/s", &["/no/such/folder/s", "exists and is writable"]);
}

#[test]
fn help_lists_every_option() {
    let done = run("installed", Some("help"), BARE, 60);
    assert_eq!(done.status, Some(1), "{}", done.stderr);
    for word in ["usage: -plugin", "report=PATH", "scan=SECONDS", "min-age=SECONDS", "qmp=PATH", "symbols=PATH"] {
        assert!(done.messages().iter().any(|line| line.contains(word)), "no {word} in: {}", done.stderr);
    }
    assert!(!done.messages().iter().any(|line| line.contains("error")), "{}", done.stderr);
}

/// The guest continues, and reports go to stderr: see `outputs.rs`.
#[test]
fn a_report_in_a_folder_that_does_not_exist_is_only_a_warning() {
    let path = scratch("refusals-report").join("nowhere/report");
    let done = run("installed", Some(&format!("report={}", path.display())), BARE, 5);
    let messages = done.messages();
    let [warning, error] = messages[..] else { panic!("{messages:#?}") };
    for word in ["warning: cannot write report=", "nowhere/report", "make the folder", "to stderr"] {
        assert!(warning.contains(word), "no \"{word}\" in: {warning}");
    }
    assert_error(&[error], &["nothing was tracked"]);
}

#[test]
fn suppressions_that_make_no_sense() {
    let path = scratch("refusals-suppress").join("known");
    let option = format!("suppress={}", path.display());
    assert_option_refused(&option, &["cannot read suppressions", "refusals-suppress/known"]);
    std::fs::write(&path, "# fine\nleak:fine\nrace:not\n").unwrap();
    assert_option_refused(&option, &["refusals-suppress/known, line 3", "race:not", "leak:PATTERN"]);
}

#[test]
fn a_symbol_file_that_does_not_exist() {
    let path = scratch("refusals-missing").join("vmlinux");
    assert_option_refused(&format!("symbols={}", path.display()), &["cannot read", "vmlinux", "System.map"]);
}

#[test]
fn a_symbol_file_that_is_none() {
    let path = scratch("refusals-none").join("map");
    let refused = |text: &str, words: &[&str]| {
        std::fs::write(&path, text).unwrap();
        assert_option_refused(&format!("symbols={}", path.display()), words);
    };
    refused("ffffffff81000000 T _text\nnonsense\n", &["System.map", "line 2"]);
    // What /proc/kallsyms shows to ordinary users.
    refused("0000000000000000 T _text\n0000000000000000 R linux_banner\n", &["as root"]);
}

/// An ELF file compiled from these lines of C, not to be run.
fn elf(test: &str, source: &str) -> std::path::PathBuf {
    let folder = scratch(test);
    let (c, vmlinux) = (folder.join("vmlinux.c"), folder.join("vmlinux"));
    std::fs::write(&c, source).unwrap();
    let done = Program::new("cc").args("-nostdlib -static -no-pie -Wl,--build-id,-e0 -o").arg(&vmlinux).arg(&c).run();
    assert_eq!(done.status, Some(0), "{}", done.stderr);
    vmlinux
}

#[test]
fn a_vmlinux_without_symbols() {
    let vmlinux = elf("refusals-stripped", "int init_top_pgt = 1;");
    assert_eq!(Program::new("strip").arg(&vmlinux).run().status, Some(0));
    assert_option_refused(&format!("symbols={}", vmlinux.display()), &["symbol table", "stripped"]);
}

/// The symbols belong to another kernel. libleak notices when it finds the guest's kernel, and the
/// guest continues.
fn boot_with_symbols(test: &str, symbols: &std::path::Path) -> Boot {
    let boot = Guest::new(test, "bookworm-backports").option(&format!("symbols={}", symbols.display())).boot();
    assert_eq!(boot.status, Some(0), "{}", boot.stderr);
    assert!(boot.console.contains("libleak-guest: off"), "{}", boot.hint());
    assert!(!boot.stderr.contains("unreferenced"), "{}", boot.stderr);
    boot
}

/// The first line says so at once, and the last one says so instead of a report.
fn assert_other_kernel(boot: &Boot, words: &[&str]) {
    let messages = boot.messages();
    let [first, last] = messages[..] else { panic!("{messages:#?}") };
    assert_error(&[first], &["does not fit the running kernel", "the guest runs Linux 6.12"]);
    assert_error(&[first], words);
    assert_error(&[last], &["nothing was tracked", "does not fit the running kernel"]);
}

#[test]
fn a_system_map_of_another_kernel() {
    let map = scratch("refusals-map-file").join("System.map-5.4.0-other");
    let text = "ffffffff81000000 T _text\nffffffff81c00120 R linux_banner\nffffffff82000000 D init_top_pgt\n";
    std::fs::write(&map, text).unwrap();
    assert_other_kernel(&boot_with_symbols("refusals-map", &map), &["5.4.0-other"]);
}

#[test]
fn a_vmlinux_of_another_kernel() {
    let vmlinux = elf(
        "refusals-vmlinux-file",
        r#"const char linux_banner[] = "Linux version 5.4.0-other (builder@host) (gcc) #1 SMP\n"; int init_top_pgt = 1;"#,
    );
    assert_other_kernel(&boot_with_symbols("refusals-vmlinux", &vmlinux), &["Linux 5.4.0-other"]);
}

#[test]
fn a_guest_that_is_no_linux() {
    // Only firmware runs, until QEMU is told to quit.
    let done = run("installed", None, BARE, 5);
    assert_error(&done.messages(), &["nothing was tracked", "no Linux kernel"]);
}

#[test]
fn a_guest_that_never_runs() {
    let done = run("installed", None, &format!("{BARE} -S"), 3);
    assert_error(&done.messages(), &["translated no guest code", "-accel tcg"]);
}

#[test]
fn a_guest_under_kvm() {
    let done = run("installed", None, &format!("{BARE} -accel kvm"), 3);
    // Status 124: QEMU ran until it was told to quit. Without KVM it does not start.
    if done.status == Some(124) {
        assert_error(&done.messages(), &["KVM", "-accel tcg"]);
    } else {
        println!("no KVM on this machine: {}", done.stderr);
    }
}
