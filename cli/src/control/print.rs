//! Answers as text.

use detector::control::{Count, Grown, Live, Marked, Place, Reasons, Status};
use detector::report::Frame;
use std::fmt::Write;

/// The answer to `mark`.
pub fn marked(mark: &Marked) -> String {
    let Marked { name, live, .. } = mark;
    format!("mark {name}: {}; no later report has these\n", count(*live))
}

/// The answer to `clear`.
pub fn cleared(cleared: Count) -> String {
    format!("{} unreferenced; no later report has these\n", count(cleared))
}

/// The answer to `diff`.
pub fn grown(grown: &Grown) -> String {
    let mut text = String::new();
    for place in &grown.places {
        let more = place.growth();
        let _ = writeln!(text, "+{} objects, +{} bytes, now {}", more.objects, more.bytes, count(place.now));
        text += &stack(place);
    }
    let seconds = grown.at_ms.saturating_sub(grown.mark.at_ms) as f64 / 1e3;
    let _ = writeln!(
        text,
        "{} of {} places that have grown since mark {}, {seconds:.1} s ago: {} then, {} now",
        grown.places.len(),
        grown.grown,
        grown.mark.name,
        count(grown.mark.live),
        count(grown.live)
    );
    text
}

/// The answer to `top`.
pub fn live(live: &Live) -> String {
    let mut text = String::new();
    for place in &live.places {
        let _ = writeln!(text, "{}", count(place.now));
        text += &stack(place);
    }
    let _ = writeln!(text, "{} of {} places with {}", live.places.len(), live.total, count(live.live));
    text
}

/// The answer to `why`.
pub fn reasons(reasons: &Reasons) -> String {
    let lines = reasons.paths.iter().flat_map(|path| {
        let allocated = path.stack.iter().map(|frame| format!("    {frame}\n"));
        let lines = path.text.iter().map(|line| line.trim_start_matches("libleak: why: ").to_owned() + "\n");
        lines.chain(["  allocated by\n".to_owned()]).chain(allocated)
    });
    lines.collect()
}

/// The answer to `status`.
pub fn status(status: &Status) -> String {
    let mut text = String::new();
    let mut row = |name: &str, value: String| text.push_str(&format!("{name:<12} {value}\n"));
    let figure = |name: &str| status.figures.get(name).copied().unwrap_or(0);
    row("libleak", status.version.clone());
    match &status.why {
        Some(why) => row("tracking", format!("no: {why}")),
        None => row("tracking", format!("yes, for {:.1} s", status.at_ms as f64 / 1e3)),
    }
    row("kernel", status.release.clone().unwrap_or_else(|| "not found".to_owned()));
    let events = ["allocations", "frees", "live_objects"];
    row("events", events.map(|name| format!("{} {}", figure(name), name.replace('_', " "))).join(", "));
    let doubts = ["unmatched_returns", "unwatched_sites", "unknown_frees", "missed_frees"];
    row("doubts", doubts.map(|name| format!("{} {}", figure(name), name.replace('_', " "))).join(", "));
    row("hooks", format!("{} of {} hit", figure("hooks_hit"), figure("hooks")));
    let p = &status.pauses;
    let ms = |micros: u64| micros as f64 / 1e3;
    row(
        "pauses",
        format!(
            "{}, the last {:.1} ms, the longest {:.1} ms, all {:.1} ms",
            p.count,
            ms(p.last_microseconds),
            ms(p.longest_microseconds),
            ms(p.total_microseconds)
        ),
    );
    row("scans", format!("{}, which reported {}", status.scans, count(status.reported)));
    row("marks", if status.marks.is_empty() { "none".to_owned() } else { status.marks.join(", ") });
    row("clients", status.clients.to_string());
    row("own memory", format!("{:.1} MiB", status.memory_bytes as f64 / f64::from(1 << 20)));
    text
}

fn stack(place: &Place) -> String {
    place.stack.iter().map(|frame| format!("    {frame}\n")).collect()
}

/// Objects and bytes in words.
pub fn count(count: Count) -> String {
    format!("{} objects, {} bytes", count.objects, count.bytes)
}

/// A site in one line: the allocator and its caller.
pub fn short(stack: &[Frame]) -> String {
    let name = |frame: &Frame| match &frame.function {
        Some(f) if !f.name.is_empty() => {
            f.name.clone() + &f.module.as_ref().map_or(String::new(), |module| format!(" [{module}]"))
        }
        _ => frame.to_string(),
    };
    match stack {
        [allocator, caller, ..] => format!("{} by {}", name(allocator), name(caller)),
        other => other.first().map(name).unwrap_or_default(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use detector::report::Function;

    fn place() -> Place {
        let frame = |name: &str, module: Option<&str>| Frame {
            address: 1,
            function: Some(Function { name: name.into(), offset: 0, size: 16, module: module.map(str::to_owned) }),
            places: Vec::new(),
        };
        Place {
            then: Count { objects: 2, bytes: 64 },
            now: Count { objects: 5, bytes: 160 },
            stack: vec![frame("kmalloc", None), frame("f", Some("m"))],
        }
    }

    #[test]
    fn growth_is_told_with_its_stack() {
        let mark = Marked { name: "a".into(), at_ms: 500, live: Count { objects: 9, bytes: 900 } };
        let live = Count { objects: 12, bytes: 996 };
        let text = grown(&Grown { mark, live, at_ms: 2000, grown: 7, places: vec![place()] });
        assert_eq!(
            text,
            "+3 objects, +96 bytes, now 5 objects, 160 bytes\n    kmalloc+0x0/0x10\n    f+0x0/0x10 [m]\n\
             1 of 7 places that have grown since mark a, 1.5 s ago: 9 objects, 900 bytes then, 12 objects, 996 bytes now\n"
        );
        assert_eq!(short(&place().stack), "kmalloc by f [m]");
    }

    #[test]
    fn a_status_says_why_nothing_is_tracked() {
        let text = status(&Status { why: Some("no kernel".into()), ..Status::default() });
        assert!(text.contains("tracking     no: no kernel\n") && text.contains("kernel       not found\n"), "{text}");
    }
}
