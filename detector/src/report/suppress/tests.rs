//! Patterns and their matches, malformed files, and suppressions that are written and read back.

use super::*;
use crate::report::Place;

fn read(text: &str) -> Result<Suppressions, SuppressError> {
    let mut all = Vec::new();
    parse(Path::new("known.supp"), text.as_bytes(), &mut all)?;
    Suppressions::new(all)
}

fn frame(name: &str, module: Option<&str>) -> Frame {
    let function = Function { name: name.to_owned(), module: module.map(str::to_owned), ..Function::default() };
    Frame { address: 1, function: Some(function), places: Vec::new() }
}

fn fits(template: &str, name: &str) -> bool {
    read(&format!("leak:{template}")).unwrap().find(&[frame(name, None)]).is_some()
}

#[test]
fn patterns_are_parts_of_names() {
    assert!(fits("list", "leak_list") && fits("list", "list") && fits("list", "leak_list_more"));
    assert!(!fits("list", "leak_lis"));
    assert!(fits("*", "x") && fits("^*$", "x") && !fits("*", ""));
}

#[test]
fn anchors_hold() {
    assert!(fits("^leak", "leak_list") && !fits("^list", "leak_list"));
    assert!(fits("list$", "leak_list") && !fits("leak$", "leak_list"));
    assert!(fits("^leak_list$", "leak_list") && !fits("^leak_list$", "leak_list2"));
    // The first match of a part is not the right one.
    assert!(fits("foo$", "foo_foo") && fits("^a*b$", "abcb"));
    // No character matches twice.
    assert!(!fits("^ab*bc$", "abc") && fits("^ab*bc$", "abbc"));
}

#[test]
fn wildcards_stand_for_any_text() {
    assert!(fits("le*st", "leak_list") && fits("le*ak", "leak") && fits("l*k*l*t", "leak_list"));
    assert!(!fits("st*le", "leak_list") && !fits("leak*leak", "leak"));
    assert!(fits("^*list", "leak_list") && fits("leak*$", "leak_list") && fits("a**b", "a_b"));
}

#[test]
fn modules_files_and_inlined_functions_are_names() {
    let mut inner = frame("kmalloc_trace", None);
    let mut outer = frame("probe", Some("leaky"));
    inner.places.push(Place { function: None, file: "mm/slab_common.c".to_owned(), line: 1 });
    let place = |function: &str, file: &str| Place { function: Some(function.into()), file: file.into(), line: 9 };
    outer.places = vec![place("inlined", "drivers/leaky.h"), place("probe", "drivers/leaky.c")];
    let find = |text: &str| read(text).unwrap().find(&[inner.clone(), outer.clone()]);
    for template in ["^leaky$", "^probe$", "^inlined$", "drivers/leaky.h$", "drivers/*.c", "^mm/", "kmalloc"] {
        assert_eq!(find(&format!("leak:other\nleak:{template}\n")), Some(1), "{template}");
    }
    assert_eq!(find("leak:^leak$\nleak:x86"), None);
    // The innermost frame decides, and then the order of the file.
    assert_eq!(find("leak:probe\nleak:leaky\nleak:trace\nleak:kmalloc"), Some(2));
    // A frame without a name matches nothing.
    assert_eq!(read("leak:*").unwrap().find(&[Frame::default()]), None);
}

#[test]
fn comments_and_white_space_are_none() {
    let s = read("# one\n\n  leak:two words \t\r\n\t# three\nleak:x#y").unwrap();
    let all: Vec<_> = s.all().iter().map(|s| (s.template.as_str(), s.line)).collect();
    assert_eq!(all, [("two words", 3), ("x#y", 5)]);
    assert!(read("").unwrap().is_empty() && read("").unwrap().find(&[frame("f", None)]).is_none());
}

#[test]
fn bad_lines_are_named() {
    let bad = |text: &str| read(text).unwrap_err().to_string();
    for (text, words) in [
        ("leak:a\nrace:b\n", "known.supp, line 2: \"race:b\": it does not start with leak:"),
        ("kmalloc", "line 1: \"kmalloc\": it does not start with leak:"),
        ("#\nleak: \t", "line 2: \"leak:\": the pattern is empty"),
        ("leak:^$", "the pattern is empty"),
        ("leak:a$b", "text follows $"),
    ] {
        assert!(bad(text).contains(words), "{}", bad(text));
    }
    let mut all = Vec::new();
    let error = parse(Path::new("x"), b"leak:a\nleak:\xff", &mut all).unwrap_err().to_string();
    assert!(error.contains("x, line 2") && error.contains("UTF-8"), "{error}");
    let error = Suppressions::read(&["/no/such/file"]).unwrap_err().to_string();
    assert!(error.contains("/no/such/file") && error.contains("leak:PATTERN"), "{error}");
}

#[test]
fn unused_ones_are_known() {
    let s = read("leak:a\nleak:b\nleak:c").unwrap();
    s.set_used(1);
    assert_eq!(s.unused().map(|s| s.template.as_str()).collect::<Vec<_>>(), ["a", "c"]);
}

#[test]
fn what_was_reported_can_be_suppressed() {
    let group = |frames: Vec<Frame>| Group { direct: true, test: None, frames, leaks: Vec::new() };
    let unnamed =
        Frame { function: Some(Function { module: Some("m".into()), ..Function::default() }), ..frame("", None) };
    let groups = [
        group(vec![frame("__kmalloc", None), frame("kmemdup_noprof", None), frame("probe", None), frame("x", None)]),
        // A module's function with such a name allocates for itself.
        group(vec![frame("kmalloc_trace", None), frame("alloc_it", Some("m"))]),
        group(vec![frame("vmalloc", None), frame("probe", None)]),
        group(vec![frame("kmalloc_trace", None), unnamed]),
        group(vec![frame("kmalloc_trace", None), frame("alloc_netdev", None)]),
        group(vec![Frame::default()]),
    ];
    let lines = for_groups(&groups);
    let templates: Vec<&str> = lines.keys().map(String::as_str).collect();
    assert_eq!(templates, ["leak:^alloc_it$", "leak:^alloc_netdev$", "leak:^m$", "leak:^probe$"]);
    let comment = &lines["leak:^probe$"];
    assert_eq!(comment.lines().count(), 2);
    assert!(comment.starts_with("# direct, 0 objects, 0 bytes, called by x\n"), "{comment}");
    let text: String = lines.iter().map(|(line, comment)| format!("{comment}{line}\n")).collect();
    let read = read(&text).unwrap();
    assert_eq!(groups.iter().filter(|g| read.find(&g.frames).is_none()).count(), 1);
}

#[test]
#[cfg_attr(miri, ignore = "it is about speed")]
fn a_hundred_thousand_are_no_burden() {
    let text: String = (0..100_000).map(|i| format!("leak:^function_{i}_of_*_{}$\n", i % 7)).collect();
    let s = read(&text).unwrap();
    for i in 0..2_000 {
        let name = format!("function_{i}_of_it_{}", i % 7);
        assert_eq!(s.find(&[frame("kmalloc_trace", None), frame(&name, None)]), Some(i));
        // Only patterns whose longest part occurs in the name are compared.
        let found = s.literals.as_ref().unwrap().find_overlapping_iter(&name);
        assert_eq!(found.map(|m| s.by_literal[m.pattern().as_usize()].len()).sum::<usize>(), 1);
    }
}
