//! A real leak of an older kernel, which a later stable release fixed: all of it is reported there,
//! and nothing on the newer kernel. `scripts/leaks` does the same for the whole of
//! `tests/leaks/table`.

use tests::program::workspace;
use tests::{Boot, Guest};

/// The program of `tests/leaks`. It needs no module.
const LEAK: &str = "uring_openat";
/// Objects that it loses.
const TIMES: usize = 40;

/// The columns of the leak's row of the table.
fn row() -> Vec<String> {
    let table = std::fs::read_to_string(workspace().join("tests/leaks/table")).expect("the table");
    let mut rows = table.lines().map(|line| line.split_whitespace().map(str::to_owned).collect::<Vec<_>>());
    let row = rows.find(|row| row.first().is_some_and(|name| name == LEAK)).expect("a row of the table");
    assert_eq!(row.len(), 8, "{row:?}");
    row
}

/// The numbers at the start of a release such as `6.12.43+deb12-cloud-amd64`.
fn version(release: &str) -> Vec<u32> {
    let end = release.find(|c: char| c != '.' && !c.is_ascii_digit()).unwrap_or(release.len());
    release[..end].split('.').map(|part| part.parse().expect("a number")).collect()
}

/// Runs the program. Returns the boot and the number of its objects in the report.
fn run(test: &str, kernel: &str, allocator: &str) -> (Boot, usize) {
    let boot = Guest::new(test, kernel).leak(LEAK).run(&[LEAK]).boot();
    boot.assert_ended_well();
    assert!(boot.console.contains(&format!("leaks: {LEAK} {TIMES}")), "{}", boot.hint());
    let objects = boot.report().objects;
    let found = objects.iter().filter(|object| object.frames.iter().any(|frame| frame.starts_with(allocator))).count();
    assert_eq!(objects.len(), found, "other objects; {}", boot.hint());
    boot.assert_trustworthy();
    (boot, found)
}

#[test]
fn a_leak_is_reported_on_the_kernel_that_has_it() {
    let row = row();
    let (boot, found) = run("real-leak", &row[1], &row[5]);
    let release = boot.console.lines().find_map(|line| line.split_once("libleak-guest: up ")).expect("a release").1;
    // The mirror drops old kernels: its oldest one may have the fix some day.
    let lost = if version(release) < version(&row[7]) { TIMES } else { 0 };
    // A stale word may hide one object.
    assert!((lost.saturating_sub(1)..=lost).contains(&found), "{found} of {lost}; {}", boot.hint());
}

#[test]
fn nothing_is_reported_on_the_kernel_that_has_the_fix() {
    let row = row();
    let (boot, found) = run("real-leak-fixed", &row[2], &row[5]);
    assert_eq!(found, 0, "{}", boot.hint());
}
