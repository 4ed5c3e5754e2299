//! Parses reports of the plugin.

/// One object of a report, or the first object of a group.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Unreferenced {
    /// Virtual address, or `__percpu` pointer.
    pub address: u64,
    /// Bytes.
    pub size: u64,
    /// The comm of the allocating task.
    pub comm: String,
    /// The frames, innermost first, without inlined functions.
    pub frames: Vec<String>,
    /// The group, if the report has groups.
    pub group: Option<Group>,
}

/// The line about a group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Group {
    /// Whether the objects are direct leaks.
    pub direct: bool,
    /// The number of objects.
    pub objects: u64,
    /// Bytes of all objects.
    pub bytes: u64,
}

impl Unreferenced {
    /// The number of objects that it stands for in the summary.
    pub fn count(&self) -> u64 {
        self.group.as_ref().map_or(1, |g| g.objects)
    }
}

/// The summary line of a report.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Summary {
    /// The whole line.
    pub line: String,
    /// Reported objects.
    pub unreferenced: u64,
    /// Direct leaks among them.
    pub direct: u64,
    /// Groups of reported objects.
    pub groups: u64,
    /// Suppressed objects.
    pub suppressed: u64,
    /// Allocations seen so far.
    pub allocations: u64,
    /// Frees seen so far.
    pub frees: u64,
    /// Live objects.
    pub live: u64,
    /// Allocator calls whose return was not seen.
    pub unmatched_returns: u64,
    /// Call sites that could not be watched.
    pub unwatched_sites: u64,
    /// Frees of unknown objects.
    pub unknown_frees: u64,
    /// Addresses that were allocated twice without a free.
    pub missed_frees: u64,
    /// Objects outside of any slab.
    pub stale: u64,
    /// Objects of the kernel whose allocation was not seen.
    pub unknown: u64,
    /// Objects of the live map that the kernel has freed.
    pub freed: u64,
    /// Whole MiB of roots that were read.
    pub root_mib: u64,
}

/// A report: objects and summary.
#[derive(Debug, Clone)]
pub struct Report {
    /// The objects in the order of the report.
    pub objects: Vec<Unreferenced>,
    /// The summary line.
    pub summary: Summary,
}

impl Summary {
    /// Parses `libleak: N unreferenced objects (...); N allocations, ...`. Returns `None` for other
    /// lines.
    ///
    /// # Panics
    /// If a counter is missing. A renamed counter must not go unnoticed.
    pub fn parse(line: &str) -> Option<Summary> {
        let text = line.strip_prefix("libleak: ").filter(|t| t.starts_with(|c: char| c.is_ascii_digit()))?;
        let counters: Vec<(&str, &str)> =
            text.split([';', ',']).filter_map(|part| part.trim().split_once(' ')).collect();
        let counter = |name: &str| {
            let found = counters.iter().find(|(_, what)| *what == name || what.starts_with(&format!("{name} (")));
            let number = found.and_then(|(number, _)| number.parse().ok());
            number.unwrap_or_else(|| panic!("no counter \"{name}\" in: {line}"))
        };
        let groups = text.split_once(" bytes) in ").and_then(|(_, rest)| rest.split_once(" groups, ")?.0.parse().ok());
        let roots = text.split_once("scanned ").and_then(|(_, rest)| rest.split_once('.')?.0.parse().ok());
        Some(Summary {
            root_mib: roots.unwrap_or_else(|| panic!("no roots in: {line}")),
            line: line.to_owned(),
            unreferenced: counter("unreferenced objects"),
            direct: counter("direct"),
            groups: groups.unwrap_or_else(|| panic!("no number of groups in: {line}")),
            suppressed: counter("suppressed"),
            allocations: counter("allocations"),
            frees: counter("frees"),
            live: counter("live objects"),
            unmatched_returns: counter("unmatched returns"),
            unwatched_sites: counter("unwatched sites"),
            unknown_frees: counter("unknown frees"),
            missed_frees: counter("missed frees"),
            stale: counter("stale"),
            unknown: counter("unknown"),
            freed: counter("freed"),
        })
    }

    /// Whether the report can be trusted: all counters that speak against it are 0.
    ///
    /// A few unknown objects are allowed: one that the slab allocator creates before it works, and
    /// those of calls in progress. A function without a hook would show as hundreds.
    pub fn is_trustworthy(&self) -> bool {
        let doubts = [self.unmatched_returns, self.unwatched_sites, self.unknown_frees, self.missed_frees, self.stale];
        doubts.iter().sum::<u64>() + self.freed == 0 && self.unknown <= 8
    }
}

/// Parses all reports in `text`. Other lines may stand between them.
///
/// # Panics
/// If a summary does not match its objects, or if objects have no summary.
pub fn parse(text: &str) -> Vec<Report> {
    let mut reports = Vec::new();
    let mut objects: Vec<Unreferenced> = Vec::new();
    let mut in_backtrace = false;
    for line in text.lines() {
        if let Some(object) = headline(line) {
            objects.push(object);
            in_backtrace = false;
        } else if let Some(summary) = Summary::parse(line) {
            assert_eq!(summary.unreferenced, objects.iter().map(Unreferenced::count).sum::<u64>(), "before: {line}");
            if objects.iter().any(|o| o.group.is_some()) {
                assert_eq!(summary.groups, objects.len() as u64, "groups before: {line}");
            }
            reports.push(Report { objects: std::mem::take(&mut objects), summary });
            in_backtrace = false;
        } else if let Some(object) = objects.last_mut() {
            if let Some(rest) = line.strip_prefix("  comm \"") {
                object.comm = rest.rsplit_once("\", pid ").map_or(rest, |(comm, _)| comm).to_owned();
            } else if line.starts_with("  backtrace") {
                in_backtrace = true;
            } else if let Some(frame) = line.strip_prefix("    ").filter(|_| in_backtrace) {
                if !frame.ends_with(" [inline]") {
                    object.frames.push(frame.to_owned());
                }
            } else {
                in_backtrace = false;
                object.group = object.group.take().or_else(|| group(line));
            }
        }
    }
    assert!(objects.is_empty(), "objects without a summary: {objects:?}");
    reports
}

/// Removes durations, which differ between checks.
pub fn without_times(text: &str) -> String {
    let line = |line: &str| match line.split_once(" of heap in ").and_then(|(a, b)| Some((a, b.split_once(';')?.1))) {
        Some((before, after)) => format!("{before};{after}\n"),
        None => format!("{line}\n"),
    };
    text.lines().map(line).collect()
}

/// `unreferenced object 0xffff888103a4c1e0 (size 20):`
fn headline(line: &str) -> Option<Unreferenced> {
    let (address, size) = line.strip_prefix("unreferenced object 0x")?.split_once(" (size ")?;
    Some(Unreferenced {
        address: u64::from_str_radix(address, 16).ok()?,
        size: size.strip_suffix("):")?.parse().ok()?,
        ..Unreferenced::default()
    })
}

/// `  direct leak: 2 objects, 192 bytes, first ...`
fn group(line: &str) -> Option<Group> {
    let (what, rest) = line.strip_prefix("  ")?.split_once(" leak: ")?;
    let mut words = rest.split(' ');
    Some(Group {
        direct: ["indirect", "direct"].iter().position(|w| *w == what)? == 1,
        objects: words.next()?.parse().ok()?,
        bytes: words.nth(1)?.parse().ok()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "something else
unreferenced object 0xffff8d7d826cca80 (size 96):
  comm \"insmod\", pid 96, jiffies 4294892718
  hex dump (first 32 bytes):
    00 cc 6c 82 7d 8d ff ff 00 00 00 00 00 00 00 00  ..l.}...........
    00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00  ................
  backtrace (crc 420b7cd5):
    kmalloc_trace+0x0/0x90
    inlined leaky.c:9 [inline]
    leak_list+0x42/0xe5e leaky.c:12 [leaky]
libleak: 1 unreferenced objects (96 bytes) in 1 groups, 0 direct; 359171 allocations, 248497 frees, 110674 live objects (33.9 MiB); \
scanned 14.7 MiB of roots and 33.0 MiB of heap in 83.8 ms, pause 99.9 ms; 9 in slabs, 8 unknown, 7 freed; 1 unmatched returns, 2 unwatched sites, \
3 unknown frees, 4 missed frees, 5 stale, 4 known, 6 suppressed; 27 of 33 hooks hit; Linux 6.1.0-56-cloud-amd64
";

    #[test]
    fn a_report_is_read() {
        let reports = parse(TEXT);
        let [report] = &reports[..] else { panic!("{reports:?}") };
        let [object] = &report.objects[..] else { panic!("{reports:?}") };
        assert_eq!((object.address, object.size, object.comm.as_str()), (0xffff_8d7d_826c_ca80, 96, "insmod"));
        assert_eq!(object.frames, ["kmalloc_trace+0x0/0x90", "leak_list+0x42/0xe5e leaky.c:12 [leaky]"]);
        let s = &report.summary;
        assert_eq!((s.unreferenced, s.allocations, s.frees, s.live), (1, 359_171, 248_497, 110_674));
        assert_eq!((s.unmatched_returns, s.unwatched_sites, s.unknown_frees), (1, 2, 3));
        assert_eq!((s.groups, s.direct, s.suppressed, s.root_mib), (1, 0, 6, 14));
        assert_eq!((s.missed_frees, s.stale, s.unknown, s.freed, s.is_trustworthy()), (4, 5, 8, 7, false));
    }

    #[test]
    fn a_report_of_groups_is_read() {
        let text = TEXT.replace("libleak: 1 unref", "  indirect leak: 7 objects, 672 bytes, first 3.0 s ago, last 1.0 s ago\n  holding 2 objects, 9 bytes\nlibleak: 7 unref");
        let reports = parse(&text);
        assert_eq!(reports[0].objects[0].group, Some(Group { direct: false, objects: 7, bytes: 672 }));
        assert_eq!(reports[0].objects[0].frames.len(), 2);
    }

    #[test]
    #[should_panic = "no counter \"stale\""]
    fn a_missing_counter_is_noticed() {
        Summary::parse(&TEXT.lines().last().unwrap().replace("stale", "fresh"));
    }

    #[test]
    fn messages_are_no_summaries() {
        assert_eq!(Summary::parse("libleak: error: nothing was tracked"), None);
    }
}
