//! Reports in JSON lines, parsed.

use detector::report::{Format, json};
use detector::suppress::for_groups;

/// Lines.
pub fn check(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    if let Ok(value) = serde_json::from_str(&text)
        && let Ok(report) = json::read_fields(&value)
    {
        let fields = serde_json::from_str(&format!("{{{}}}", json::fields(&report))).expect("its own fields");
        assert_eq!(json::read_fields(&fields).expect("its own fields"), report);
    }
    let reports = match json::read(&text) {
        Ok(reports) => reports,
        // The message may quote a value of the wrong type.
        Err(why) => return assert!(why.to_string().len() < 4096 + 12 * data.len(), "{why}"),
    };
    let lines: String = reports.iter().map(json::write).collect();
    assert_eq!(json::read(&lines).expect("its own lines"), reports);
    for report in &reports {
        for each in [true, false] {
            for form in [Format::Text, Format::Console] {
                let text = form.write(report, each);
                assert!(text.len() < 4096 + 64 * data.len(), "{} bytes of {}", text.len(), data.len());
            }
        }
        assert!(for_groups(&report.groups).len() <= report.groups.len());
    }
}
