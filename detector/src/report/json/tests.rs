//! Reports are read as they were written, and malformed lines are rejected with a reason.

use super::super::text::tests::{leak, report};
use super::super::{Format, Function, Place};
use super::*;
use crate::live::objects::Kind;

fn whole() -> Report {
    let percpu = Leak {
        addr: 0x40fb0,
        kind: Kind::Percpu,
        cache: None,
        guess: Some("struct foo".into()),
        shown_cpu: Some(0),
        retains: Count { objects: 3, bytes: 99 },
        ..leak()
    };
    let mut report = report(vec![leak(), percpu]);
    let place = Place { function: Some("init".into()), file: "a \"b\".c".into(), line: 4 };
    report.groups[0].frames[1].places = vec![Place { function: None, ..place.clone() }, place];
    let unnamed = Function { module: Some("leaky".into()), ..Function::default() };
    let frames = vec![Frame::default(), Frame { address: 5, function: Some(unnamed), places: Vec::new() }];
    let test = Some("suite/case".to_owned());
    report.groups.push(Group { direct: false, test, frames, leaks: vec![leak()] });
    report.test = Some("suite".into());
    report.tests =
        vec![Test { name: "suite/case".into(), result: Some(Verdict::NotOk) }, Test { name: "A".into(), result: None }];
    report.release = "6.12.95+deb12-cloud-amd64".into();
    report.figures = [("unreferenced_objects".to_owned(), 3)].into();
    report.troubles = vec!["the moon is full".into()];
    report.suppressed = vec![Suppressed { template: "a*".into(), file: "f".into(), line: 3, objects: 1, bytes: 64 }];
    report.unused = vec![Suppressed { template: "b$".into(), file: "f".into(), line: 4, ..Suppressed::default() }];
    report.closing = "libleak: 3 unreferenced objects\nlibleak: note: well\n".into();
    report
}

#[test]
fn what_is_written_is_read() {
    let (one, two) = (whole(), report(vec![leak()]));
    let text = write(&one) + &message("warning", "a \"b\"") + &write(&two);
    assert_eq!(text.lines().count(), 8);
    let said = serde_json::json!({"type": "message", "schema": 1, "level": "warning", "text": "a \"b\""});
    assert_eq!(serde_json::from_str::<serde_json::Value>(text.lines().nth(5).unwrap()).unwrap(), said);
    let read = read(&text).unwrap();
    assert_eq!(read, [one.clone(), two]);
    assert_eq!(Format::Text.write(&read[0], true), Format::Text.write(&one, true));
}

#[test]
fn a_report_may_be_fields_of_an_object() {
    for report in [whole(), report(Vec::new())] {
        let object: serde_json::Value = serde_json::from_str(&format!("{{{}}}", fields(&report))).unwrap();
        let count = |field: &str| object[field].as_array().map(Vec::len);
        assert_eq!((count("groups"), count("tests")), (Some(report.groups.len()), Some(report.tests.len())));
        assert_eq!(read_fields(&object).unwrap(), report);
    }
    assert!(read_fields(&serde_json::json!({"ok": true})).is_err());
}

#[test]
fn names_are_those_of_the_schema() {
    let text = write(&whole());
    let lines: Vec<serde_json::Value> = text.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    let (head, group) = (&lines[0], &lines[1]);
    assert_eq!((&head["type"], &head["schema"], &head["groups"]), (&"report".into(), &1.into(), &2.into()));
    assert_eq!(head["figures"]["unreferenced_objects"], 3);
    assert_eq!(head["troubles"][0], "the moon is full");
    assert_eq!(head["suppressed"][0]["template"], "a*");
    assert_eq!(head["unused_suppressions"][0]["line"], 4);
    assert_eq!(
        (&head["summary"], &head["notes"][0]),
        (&"libleak: 3 unreferenced objects".into(), &"libleak: note: well".into())
    );
    assert_eq!((&group["type"], &group["direct"], &group["count"]), (&"group".into(), &true.into(), &2.into()));
    assert_eq!((&group["bytes"], &group["first_age_ms"], &group["last_age_ms"]), (&40.into(), &10.into(), &10.into()));
    assert_eq!(group["retains"], serde_json::json!({"objects": 3, "bytes": 99}));
    let frame = serde_json::json!({
        "address": "0xffffffff81000001", "function": "init", "offset": 0x4a, "size": 0xff0, "module": "leaky",
        "places": [{"file": "a \"b\".c", "line": 4}, {"function": "init", "file": "a \"b\".c", "line": 4}],
    });
    assert_eq!(group["stack"][1], frame);
    let object = serde_json::json!({
        "address": "0xffff888103a4c1e0", "size": 20, "kind": "slab", "cache": "kmalloc-32", "comm": "insmod",
        "pid": 412, "tgid": 411, "cpu": 1, "jiffies": 4294953210u64, "age_ms": 10,
        "head": "68656c6c6f000000000000000000007f7e616263", "crc": "0xbeef", "retains": {"objects": 0, "bytes": 0},
    });
    assert_eq!(group["objects"][0], object);
    assert_eq!((&head["test"], &head["tests"]), (&"suite".into(), &2.into()));
    assert_eq!((group.get("test"), &lines[2]["test"]), (None, &"suite/case".into()));
    let test = serde_json::json!({"type": "test", "schema": 1, "name": "suite/case", "result": "not ok"});
    assert_eq!((&lines[3], &lines[4]["result"]), (&test, &serde_json::Value::Null));
    assert_eq!(
        lines[2]["stack"],
        serde_json::json!([
            {"address": "0x0"}, {"address": "0x5", "function": "", "offset": 0, "size": 0, "module": "leaky"},
        ])
    );
}

#[test]
fn flaws_are_named() {
    let error = |text: &str| read(text).unwrap_err().to_string();
    let text = write(&whole());
    let lines: Vec<&str> = text.lines().collect();
    assert!(error("nonsense").contains("line 1 is not part"));
    assert!(error(&format!("{}\n{}", lines[0], lines[1])).contains("1 groups and 2 tests are missing"));
    assert!(error(&lines[..4].join("\n")).contains("0 groups and 1 tests are missing"));
    assert!(error(&format!("{}\n{}", lines[..4].join("\n"), lines[0])).contains("it should be a test"));
    assert!(error(lines[3]).contains("a test without a report"));
    assert!(error(lines[1]).contains("without a report"));
    assert!(error(&format!("{}\n{}", lines[0], lines[0])).contains("line 2 is not part"));
    assert!(error(&text[..text.len() - 9]).contains("line 5"));
    assert!(error(&lines[0].replace("\"schema\":1", "\"schema\":2")).contains("schema 2"));
    assert!(error(&text.replace("0xbeef", "beef")).contains("not a number of the form 0x"));
    assert!(error(&text.replace("68656c", "68656")).contains("not a row of bytes"));
    assert_eq!(read("\n").unwrap(), []);
}
