//! Symbols from a file. A saved /proc/kallsyms is as good as the table in guest memory. A file that
//! does not fit is rejected, even if it looks right.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use tests::assert_has;
use tests::program::{Program, scratch};
use tests::{Boot, Guest, planted};

const KERNEL: &str = "bookworm-backports";

/// Prints /proc/kallsyms in a form that a serial line transfers in seconds.
const DUMP: &str = "#!/bin/sh
echo kallsyms: begin
gzip -9 </proc/kallsyms | base64
echo kallsyms: end
";

/// /proc/kallsyms of the kernel, saved in an earlier boot and hence with another KASLR offset. It
/// includes symbols of a module, whose addresses are meaningless later.
fn kallsyms() -> &'static Path {
    static SAVED: OnceLock<PathBuf> = OnceLock::new();
    SAVED.get_or_init(|| {
        let boot = Guest::new("symbols-dump", KERNEL)
            .without_plugin()
            .module("leaky")
            .script("dump", DUMP)
            // No kernel message may interrupt the output.
            .append("quiet loglevel=0")
            .run(&["insmod:leaky", "dump"])
            .boot();
        boot.assert_ended_well();
        let (_, rest) = boot.console.split_once("kallsyms: begin\n").expect("the begin");
        let (text, _) = rest.split_once("kallsyms: end\n").expect("the end");
        let folder = scratch("symbols-saved");
        let (encoded, saved) = (folder.join("kallsyms.gz.base64"), folder.join("kallsyms"));
        std::fs::write(&encoded, text).unwrap();
        let decode = format!("base64 -d '{}' | gzip -d >'{}'", encoded.display(), saved.display());
        let done = Program::new("sh").arg("-c").arg(decode).run();
        assert_eq!(done.status, Some(0), "{}", done.stderr);
        saved
    })
}

fn boot(test: &str, symbols: &Path) -> Boot {
    Guest::new(test, KERNEL)
        .module("leaky")
        .losing(planted::lost)
        .option(&format!("symbols={}", symbols.display()))
        .run(&["insmod:leaky", "workload"])
        .boot()
}

#[test]
fn a_saved_kallsyms_gives_the_same_result() {
    let text = std::fs::read_to_string(kallsyms()).unwrap();
    assert!(text.lines().count() > 50_000, "not all of /proc/kallsyms");
    assert_has(&text, &["\t[leaky]"]);
    let boot = boot("symbols-kallsyms", kallsyms());
    boot.assert_ended_well();
    boot.assert_planted(&boot.report().objects);
    boot.assert_trustworthy();
}

#[test]
fn symbols_at_other_places_are_refused() {
    // The banner is right and at the right address. Later functions are moved, as in a build of the
    // same version with another configuration.
    let text = std::fs::read_to_string(kallsyms()).unwrap();
    let moved = text.lines().map(|line| match line.split_once(" T ") {
        Some((address, name)) => {
            let address = u64::from_str_radix(address, 16).unwrap();
            format!("{:016x} T {name}\n", address.wrapping_add(0x40))
        }
        None => format!("{line}\n"),
    });
    let file = scratch("symbols-moved-file").join("kallsyms");
    std::fs::write(&file, moved.collect::<String>()).unwrap();
    let boot = boot("symbols-moved", &file);
    assert_eq!(boot.status, Some(0), "{}", boot.stderr);
    assert!(!boot.stderr.contains("unreferenced"), "{}", boot.stderr);
    assert!(boot.messages().first().is_some_and(|m| m.contains("does not fit the running kernel")), "{}", boot.stderr);
}
