//! Text from the guest: lines of KTAP on its console and in its log, and markers.

use detector::guest_tests::written::Written;
use detector::guest_tests::{MAX_FINISHED, MAX_NAME, MAX_PATH, MAX_STRETCHES, Tests, clean};
use detector::ktap;

// See control.rs.
#[path = "../../../plugin/src/triggers/command.rs"]
pub mod command;

use command::Command;

/// Lines. Each belongs to the console or is a marker. Half of them go through one of two pipes
/// first.
pub fn check(data: &[u8]) {
    let (mut tests, mut written) = (Tests::default(), Written::default());
    let mut last = 0;
    for (i, line) in data.split(|b| *b == b'\n').enumerate() {
        let now = 3 * i as u64;
        if let Some(found) = ktap::parse(line) {
            assert!(ktap::may_be(line), "a look at the start misses {line:?}");
            let (ktap::Line::Start { name, column } | ktap::Line::Result { name, column, .. }) = found;
            assert!(name.len() <= line.len() && !name.is_empty() && name.trim_ascii() == name, "{name:?}");
            assert!(column <= 4 * line.len());
        }
        if i % 2 == 0 {
            written.write(i as u64 / 2 % 2, line, now);
        }
        match command::parse(line) {
            Some(Ok(Command::Test(name))) => drop(tests.mark(name, now)),
            Some(Ok(Command::Mark(name))) => assert!(name.is_none_or(|name| clean(name).len() <= MAX_NAME)),
            Some(Ok(Command::Scan)) => drop(tests.end(now)),
            Some(Ok(Command::Clear)) => tests.forget(now),
            Some(Err(word)) => assert!(word.len() < line.len()),
            None => {
                let at = written.read(line, tests.last_boundary()).unwrap_or(now);
                assert!(at <= now, "{at} is later than {now}");
                let named = tests.line(line, at);
                assert!(named.is_none_or(|name| name.len() <= MAX_PATH));
            }
        }
        last = now;
    }
    assert!(tests.stretches.len() <= MAX_STRETCHES && tests.finished.len() <= MAX_FINISHED);
    assert!(tests.stretches.is_sorted_by(|a, b| a.end < b.end), "stretches are not in order");
    let running = tests.running.iter().chain(tests.stretches.iter().filter_map(|s| s.test.as_ref()));
    let names = running.map(|name| &**name).chain(tests.finished.iter().map(|t| t.name.as_str()));
    for name in names {
        assert!(name.len() <= MAX_PATH && !name.chars().any(char::is_control), "{name:?}");
    }
    for sequence in (0..last + 2).step_by(7) {
        let stretch = tests.stretches.iter().find(|s| s.end > sequence);
        let expected = stretch.map_or(tests.running.as_ref(), |s| s.test.as_ref());
        assert_eq!(tests.of(sequence), expected);
    }
}
