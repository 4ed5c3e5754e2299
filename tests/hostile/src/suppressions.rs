//! Suppression files, and whether they match what they should.

use detector::report::{Frame, Function, Place};
use detector::suppress::Suppressions;
use std::path::Path;

/// A file, a zero byte, and one name of a function or source file per line.
pub fn check(data: &[u8]) {
    let end = data.iter().position(|b| *b == 0).unwrap_or(data.len());
    let (file, names) = (&data[..end], String::from_utf8_lossy(data.get(end + 1..).unwrap_or_default()));
    let suppressions = match Suppressions::parse(Path::new("a/file"), file) {
        Ok(suppressions) => suppressions,
        Err(why) => return assert!(why.to_string().contains("a/file"), "{why}"),
    };
    let all = suppressions.all();
    assert!(all.len() <= file.len() && suppressions.is_empty() == all.is_empty());
    assert_eq!(suppressions.unused().count(), all.len());
    let frames: Vec<Frame> = names.split('\n').take(32).enumerate().map(|(i, name)| frame(i, name)).collect();
    let found = suppressions.find(&frames);
    // The naive search: the first frame that any suppression matches, and the first of these.
    let fits = |frame: &Frame| all.iter().position(|s| frame.names().any(|name| fits(&s.template, name)));
    assert_eq!(found, frames.iter().find_map(fits), "{:?}", found.map(|n| &all[n].template));
    if let Some(number) = found {
        suppressions.set_used(number);
        assert_eq!(suppressions.unused().count(), all.len() - 1);
    }
    suppressions.set_used(usize::MAX);
}

fn frame(i: usize, name: &str) -> Frame {
    let function = Function { name: name.to_owned(), ..Function::default() };
    match i % 3 {
        0 => Frame { function: Some(function), ..Frame::default() },
        1 => Frame {
            function: Some(Function { module: Some(name.to_owned()), ..Function::default() }),
            ..Frame::default()
        },
        _ => Frame {
            function: Some(function),
            places: vec![Place { function: None, file: name.to_owned(), line: 1 }],
            ..Frame::default()
        },
    }
}

/// Whether a pattern matches a name, by trying every position.
fn fits(template: &str, name: &str) -> bool {
    if name.is_empty() {
        return false;
    }
    let (start, rest) = template.strip_prefix('^').map_or((false, template), |rest| (true, rest));
    let (end, rest) = rest.strip_suffix('$').map_or((false, rest), |rest| (true, rest));
    let pattern = [if start { "" } else { "*" }, rest, if end { "" } else { "*" }].concat();
    let (pattern, name) = (pattern.as_bytes(), name.as_bytes());
    // The positions in the name at which each prefix of the pattern may end.
    let mut ends = vec![false; name.len() + 1];
    ends[0] = true;
    for p in pattern {
        let mut next = vec![false; name.len() + 1];
        for at in 0..=name.len() {
            next[at] = match p {
                b'*' => ends[..=at].contains(&true),
                _ => at > 0 && ends[at - 1] && name[at - 1] == *p,
            };
        }
        ends = next;
    }
    ends[name.len()]
}
