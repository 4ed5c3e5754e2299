//! Unsafe code exists only in the files listed here.
//!
//! clippy checks that each block says why it is sound (`undocumented_unsafe_blocks`). The compiler
//! checks crates without any (`forbid(unsafe_code)`).

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use tests::program::workspace;

/// Files that may have any, and why.
const PLACES: [(&str, &str); 9] = [
    ("detector/src/scan/kernels.rs", "vector instructions, and a hint to the CPU"),
    ("plugin/src/ffi/", "contact with QEMU and libc"),
    ("plugin/src/lib.rs", "what QEMU and the loader look for"),
    // They state that the guest is stopped, and nothing else.
    ("plugin/src/session.rs", "the first block of a kernel"),
    ("plugin/src/pause/monitor.rs", "a monitor that has stopped the guest"),
    // Not part of the plugin.
    ("tests/empty-plugin/src/lib.rs", "a plugin that does nothing, for scripts/bench"),
    ("tests/busy-plugin/src/lib.rs", "a plugin that is called for everything, for scripts/ways"),
    ("tests/tests/unsafe_code.rs", "the word itself"),
    ("fuzz/", "fuzzers, which are no part of the plugin"),
];

/// All Rust files below a folder.
fn files(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).expect("a folder of the checkout").flatten() {
        let path = entry.path();
        let hidden = entry.file_name().to_string_lossy().starts_with('.');
        if path.is_dir() && !hidden && !path.join("CACHEDIR.TAG").exists() {
            files(&path, found);
        } else if path.extension().is_some_and(|e| e == "rs") {
            found.push(path);
        }
    }
}

/// Counts the keyword in code. Comments and longer names do not count.
fn count(text: &str) -> usize {
    let code = text.lines().map(|line| line.split_once("//").map_or(line, |(code, _)| code));
    let words = code.flat_map(|line| line.split(|c: char| !c.is_alphanumeric() && c != '_'));
    words.filter(|word| *word == "unsafe").count()
}

#[test]
fn unsafe_code_is_where_it_is_said_to_be() {
    let (mut all, mut counts) = (Vec::new(), BTreeMap::new());
    files(&workspace(), &mut all);
    assert!(all.len() > 100, "only {} files were found", all.len());
    for file in all {
        let name = file.strip_prefix(workspace()).expect("below the checkout").display().to_string();
        let n = count(&std::fs::read_to_string(&file).expect("a file of the checkout"));
        if n > 0 {
            counts.insert(name, n);
        }
    }
    let known =
        |name: &str| PLACES.iter().any(|(place, _)| name == *place || place.ends_with('/') && name.starts_with(place));
    let others: Vec<_> = counts.iter().filter(|(name, _)| !known(name)).collect();
    assert!(
        others.is_empty(),
        "unsafe code in {others:?}: put it below plugin/src/ffi, or say here why it is elsewhere"
    );
    for (file, n) in [("plugin/src/session.rs", 1), ("plugin/src/pause/monitor.rs", 1)] {
        assert_eq!(counts.get(file), Some(&n), "{file}");
    }
    println!("{counts:?}");
}

/// Who states that the guest is stopped, and how often in each file.
const WITNESSES: [(&str, usize); 5] = [
    ("plugin/src/ffi/lifecycle.rs", 1),
    ("plugin/src/ffi/vcpu.rs", 2),
    ("plugin/src/lib.rs", 1),
    ("plugin/src/pause/monitor.rs", 1),
    ("plugin/src/session.rs", 1),
];

#[test]
fn the_stopped_guest_is_stated_where_it_is_stopped() {
    let mut all = Vec::new();
    files(&workspace().join("plugin/src"), &mut all);
    let mut found = BTreeMap::new();
    for file in all {
        let name = file.strip_prefix(workspace()).expect("below the checkout").display().to_string();
        let text = std::fs::read_to_string(&file).expect("a file of the checkout");
        let n = text.matches("GuestStopped::new()").count();
        found.extend(Some((name, n)).filter(|(_, n)| *n > 0));
    }
    let wanted: BTreeMap<String, usize> = WITNESSES.iter().map(|(file, n)| ((*file).to_owned(), *n)).collect();
    assert_eq!(found, wanted);
}

#[test]
fn words_are_told_from_their_parts() {
    assert_eq!(count("#![forbid(unsafe_code)] // unsafe\n/// unsafe\nlet x = unsafe { f() };\nunsafe extern \"C\""), 2);
}
