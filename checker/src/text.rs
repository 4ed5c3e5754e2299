//! The text after the objects of a report: the summary line, suppressions, the audit, and paths of
//! references.

use crate::Outcome;
use crate::audit::Audit;
use crate::counters::Counters;
use crate::names::Names;
use crate::why::{Holder, Path};
use detector::frozen::Objects;
use detector::guest_tests::shown;
use detector::objects::Object;
use detector::report::{Figures, Group, Report};
use detector::suppress::Suppressions;
use guest_symbols::Kernel;
use std::collections::BTreeMap;
use std::fmt::Write;
use std::time::Duration;

/// Most unused suppressions that the text lists. A structured report lists all.
const MAX_UNUSED: usize = 20;

/// The optional parts of a report.
#[derive(Clone, Copy)]
pub struct Asked<'a> {
    /// Whether the closing lines include the audit.
    pub audit: bool,
    /// How long the guest was stopped. `None` if it did not run.
    pub pause: Option<Duration>,
    /// The suppressions that the check was made with.
    pub suppressions: &'a Suppressions,
    /// Whether to list suppressions that no check used. This is set for the last check.
    pub unused: bool,
}

/// The text after the objects of a report. It holds the summary, reasons to doubt it, suppressions,
/// the audit if asked for, notes, and paths. `report` is complete except for this text.
pub(crate) fn closing(
    names: Names<'_>,
    outcome: &Outcome,
    counters: &Counters,
    report: &Report,
    asked: Asked<'_>,
) -> String {
    let mut text = summary(names.kernel, outcome, counters, &report.groups, asked.pause);
    text.extend(report.troubles.iter().map(|why| format!("libleak: unreliable: {why}\n")));
    text += &suppressions(report);
    if let Some(held) = outcome.audit.as_ref().filter(|_| asked.audit) {
        text += &audit(held);
        text += &not_leaks(&outcome.not_leaks);
    }
    if counters.boot > 1 {
        text += &format!(
            "libleak: note: this is boot {} of the guest; each earlier boot has its own reports\n",
            counters.boot
        );
    }
    if counters.rewinds > 0 {
        text += &format!(
            "libleak: note: the guest was brought to another time (loadvm, resume from disk) or came from elsewhere (-loadvm, -incoming), {} times; \
             objects allocated before the last time are reported only with live=slab, and without a backtrace\n",
            counters.rewinds
        );
    }
    if outcome.tests.dropped > 0 {
        text += &format!(
            "libleak: note: {} test boundaries were dropped for lack of room: objects allocated since are charged to the \
             wrong test\n",
            outcome.tests.dropped
        );
    }
    text.extend(outcome.paths.iter().map(|p| path(names, p)));
    text
}

/// The name of the task that allocated an object. Bytes that are not printable text are replaced.
pub fn comm(objects: &Objects, object: &Object) -> String {
    let comm = objects.comm(object);
    shown(&String::from_utf8_lossy(comm.split(|&b| b == 0).next().unwrap_or_default())).into_owned()
}

fn mib(bytes: u64) -> f64 {
    bytes as f64 / (1 << 20) as f64
}

/// The summary line.
fn summary(kernel: &Kernel, outcome: &Outcome, c: &Counters, groups: &[Group], pause: Option<Duration>) -> String {
    let (unknown, freed) = outcome.audit.as_ref().map_or((0, 0), |a| a.counts());
    let pause = pause.map_or(String::new(), |p| format!(", pause {:.1} ms", p.as_secs_f64() * 1e3));
    format!(
        "libleak: {} unreferenced objects ({} bytes) in {} groups, {} direct; \
         {} allocations, {} frees, {} live objects ({:.1} MiB); \
         scanned {:.1} MiB of roots and {:.1} MiB of heap in {:.1} ms{pause}; \
         {} in slabs, {} unknown, {} freed; \
         {} unmatched returns, {} unwatched sites, {} unknown frees, {} missed frees, {} stale, {} known, \
         {} suppressed; {} of {} hooks hit; Linux {}\n",
        outcome.unreferenced.len(),
        leaked(outcome),
        groups.len(),
        direct(outcome),
        c.live_map.allocations,
        c.live_map.frees,
        outcome.live.objects,
        mib(outcome.live.bytes),
        mib(outcome.root_bytes),
        mib(outcome.heap_bytes),
        outcome.time.as_secs_f64() * 1e3,
        outcome.audit.as_ref().map_or(0, |a| a.allocated),
        unknown,
        freed,
        c.unmatched_returns,
        c.unwatched_sites,
        c.live_map.unknown_frees,
        c.live_map.missed_frees,
        outcome.stale,
        outcome.not_leaks.len(),
        suppressed(outcome),
        c.hooks_hit,
        c.hooks,
        kernel.release,
    )
}

/// Total bytes of the reported objects.
fn leaked(outcome: &Outcome) -> u64 {
    outcome.unreferenced.iter().map(|u| u.leak.size).sum()
}

/// How many of the reported objects are direct leaks.
fn direct(outcome: &Outcome) -> u64 {
    outcome.unreferenced.iter().filter(|u| u.direct).count() as u64
}

/// How many objects the suppressions match.
fn suppressed(outcome: &Outcome) -> u64 {
    outcome.suppressed.values().map(|count| count.objects).sum()
}

/// The numbers of the summary line, for structured reports.
pub(crate) fn figures(outcome: &Outcome, groups: &[Group], c: &Counters, pause: Option<Duration>) -> Figures {
    let (unknown, freed) = outcome.audit.as_ref().map_or((0, 0), |a| a.counts());
    let figures = [
        ("unreferenced_objects", outcome.unreferenced.len() as u64),
        ("unreferenced_bytes", leaked(outcome)),
        ("groups", groups.len() as u64),
        ("direct", direct(outcome)),
        ("live_objects", outcome.live.objects),
        ("live_bytes", outcome.live.bytes),
        ("root_bytes", outcome.root_bytes),
        ("heap_bytes", outcome.heap_bytes),
        ("scan_microseconds", outcome.time.as_micros() as u64),
        ("in_slabs", outcome.audit.as_ref().map_or(0, |a| a.allocated)),
        ("unknown", unknown),
        ("freed", freed),
        ("stale", outcome.stale),
        ("known", outcome.not_leaks.len() as u64),
        ("suppressed", suppressed(outcome)),
    ];
    let pause = pause.map(|p| ("pause_microseconds", p.as_micros() as u64));
    figures.into_iter().chain(c.figures()).chain(pause).map(|(name, value)| (name.to_owned(), value)).collect()
}

/// The objects that each suppression matched, in LeakSanitizer's format, and the suppressions that
/// matched nothing.
fn suppressions(report: &Report) -> String {
    const RULE: &str = "-----------------------------------------------------\n";
    let mut text = String::new();
    if !report.suppressed.is_empty() {
        text += RULE;
        text += "Suppressions used:\n  count      bytes template\n";
        for s in &report.suppressed {
            text += &format!("{:>7} {:>10} {}\n", s.objects, s.bytes, s.template);
        }
        text += RULE;
    }
    for s in report.unused.iter().take(MAX_UNUSED) {
        text += &format!("libleak: note: suppression not used: leak:{} ({}, line {})\n", s.template, s.file, s.line);
    }
    if let Some(more @ 1..) = report.unused.len().checked_sub(MAX_UNUSED) {
        text += &format!("libleak: note: {more} more suppressions not used\n");
    }
    text
}

/// The audit in full.
fn audit(audit: &Audit) -> String {
    let lines = |what: &str, counts: &BTreeMap<String, u64>| -> String {
        counts.iter().map(|(name, n)| format!("libleak: audit: {what} {}: {n}\n", shown(name))).collect()
    };
    lines("only the kernel holds, by cache,", &audit.unknown)
        + &lines("only libleak holds, by allocating function,", &audit.freed)
        + &format!(
            "libleak: audit: {} slab objects, {} vmalloc blocks and {} per-CPU blocks compared, {} invalid freelists\n",
            audit.allocated, audit.vmalloc, audit.percpu, audit.broken
        )
}

/// The reasons of objects that the kernel declares not to be leaks, with their counts.
fn not_leaks(reasons: &[&'static str]) -> String {
    let mut counts: BTreeMap<&str, u64> = BTreeMap::new();
    reasons.iter().for_each(|reason| *counts.entry(reason).or_default() += 1);
    counts
        .iter()
        .map(|(reason, n)| format!("libleak: audit: declared no leak by the kernel, {reason}: {n}\n"))
        .collect()
}

/// The references to an object, one line for each step towards the root.
pub fn path(names: Names<'_>, path: &Path) -> String {
    let site = |object: &Object| match names.caller(object) {
        None => "allocation not seen".to_owned(),
        Some(caller) => format!("by {caller}"),
    };
    let words = |words: &[u64]| words.iter().map(|w| format!("{w:x}")).collect::<Vec<_>>().join(" ");
    let mut text = format!("libleak: why: {:#x} (size {}, {}): ", path.addr, path.size, site(&path.object));
    if path.holders.is_empty() {
        return text + "nobody refers to it\n";
    }
    text += "referred to by\n";
    for holder in &path.holders {
        let _ = match holder {
            Holder::Object { addr, size, object, cache, offset, words: around } => {
                let cache = cache.as_ref().map_or(format!("{:?}", object.kind()).to_lowercase(), |c| c.clone());
                let at = offset.map_or("the rule of".to_owned(), |o| format!("+{o:#x} of"));
                writeln!(
                    text,
                    "libleak: why:   {at} {addr:#x} (size {size}, {cache}, {}) [{}]",
                    site(object),
                    words(around)
                )
            }
            Holder::Root { phys, usage, symbol, words: around } => {
                let name = symbol.as_ref().map_or(String::new(), |(name, o)| format!(" {name}+{o:#x}"));
                writeln!(text, "libleak: why:   a root{name} at physical {:#x} ({usage:?}) [{}]", phys.0, words(around))
            }
            Holder::Register => writeln!(text, "libleak: why:   a register"),
            Holder::Known => {
                writeln!(text, "libleak: why:   an object that the kernel declares no leak, or that is suppressed")
            }
        };
    }
    text
}
