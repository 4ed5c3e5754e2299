//! What follows the objects of a report: the summary line, the audit, and paths of references.

use crate::audit::Audit;
use crate::moment::Counters;
use crate::names::Names;
use crate::why::{Holder, Path};
use crate::{Outcome, Unreferenced};
use detector::objects::Object;
use detector::report::Figure;
use guest_symbols::Kernel;
use std::collections::BTreeMap;
use std::fmt::Write;
use std::time::Duration;

/// What follows the objects of a report: the summary, where `with_audit` asks for it the audit, notes, and the paths.
/// `pause` is how long the guest stood still, if it ran at all.
pub fn closing(
    names: Names<'_>,
    outcome: &Outcome,
    counters: &Counters,
    with_audit: bool,
    pause: Option<Duration>,
) -> String {
    let mut text = summary(names.kernel, outcome, counters, pause);
    if let Some(held) = outcome.audit.as_ref().filter(|_| with_audit) {
        text += &audit(held);
    }
    if counters.rewinds > 0 {
        text += &format!(
            "libleak: note: the guest went back in time {} times (loadvm, or the same kernel started again): what was \
             allocated before the last time is reported only with live=slab, without its site\n",
            counters.rewinds
        );
    }
    text.extend(outcome.paths.iter().map(|p| path(names, p)));
    text
}

/// The name of the task that allocated an object, as far as it is text.
pub fn comm(object: &Object) -> String {
    String::from_utf8_lossy(object.comm.split(|&b| b == 0).next().unwrap_or_default()).into_owned()
}

fn mib(bytes: u64) -> f64 {
    bytes as f64 / (1 << 20) as f64
}

/// The line after a report.
fn summary(kernel: &Kernel, outcome: &Outcome, c: &Counters, pause: Option<Duration>) -> String {
    let (unknown, freed) = outcome.audit.as_ref().map_or((0, 0), |a| a.counts());
    let leaked: u64 = outcome.unreferenced.iter().map(|u: &Unreferenced| u.leak.size).sum();
    let pause = pause.map_or(String::new(), |p| format!(", pause {:.1} ms", p.as_secs_f64() * 1e3));
    format!(
        "libleak: {} unreferenced objects ({} bytes); {} allocations, {} frees, {} live objects ({:.1} MiB); \
         scanned {:.1} MiB of roots and {:.1} MiB of heap in {:.1} ms{pause}; \
         {} in slabs, {} unknown, {} freed; \
         {} unmatched returns, {} unwatched sites, {} unknown frees, {} missed frees, {} stale, {} known; \
         {} of {} hooks hit; Linux {}\n",
        outcome.unreferenced.len(),
        leaked,
        c.allocations,
        c.frees,
        outcome.live.0,
        mib(outcome.live.1),
        mib(outcome.root_bytes),
        mib(outcome.heap_bytes),
        outcome.time.as_secs_f64() * 1e3,
        outcome.audit.as_ref().map_or(0, |a| a.allocated),
        unknown,
        freed,
        c.unmatched_returns,
        c.unwatched_sites,
        c.unknown_frees,
        c.missed_frees,
        outcome.stale,
        outcome.known.len(),
        c.hooks_hit,
        c.hooks,
        kernel.release,
    )
}

/// The figures of the summary line, for reports that are read by programs.
pub fn figures(outcome: &Outcome, c: &Counters, pause: Option<Duration>) -> Vec<Figure> {
    let (unknown, freed) = outcome.audit.as_ref().map_or((0, 0), |a| a.counts());
    let suppressed = outcome.suppressed.values().map(|(objects, _)| objects).sum();
    let mut figures = vec![
        ("unreferenced_objects", outcome.unreferenced.len() as u64),
        ("unreferenced_bytes", outcome.unreferenced.iter().map(|u| u.leak.size).sum()),
        ("allocations", c.allocations),
        ("frees", c.frees),
        ("live_objects", outcome.live.0),
        ("live_bytes", outcome.live.1),
        ("root_bytes", outcome.root_bytes),
        ("heap_bytes", outcome.heap_bytes),
        ("scan_microseconds", outcome.time.as_micros() as u64),
        ("in_slabs", outcome.audit.as_ref().map_or(0, |a| a.allocated)),
        ("unknown", unknown),
        ("freed", freed),
        ("unmatched_returns", c.unmatched_returns),
        ("unwatched_sites", c.unwatched_sites),
        ("unknown_frees", c.unknown_frees),
        ("missed_frees", c.missed_frees),
        ("stale", outcome.stale),
        ("known", outcome.known.len() as u64),
        ("suppressed", suppressed),
        ("hooks_hit", c.hooks_hit),
        ("hooks", c.hooks),
        ("rewinds", c.rewinds),
    ];
    figures.extend(pause.map(|p| ("pause_microseconds", p.as_micros() as u64)));
    figures
}

/// The audit in full.
fn audit(audit: &Audit) -> String {
    let lines = |what: &str, counts: &BTreeMap<String, u64>| -> String {
        counts.iter().map(|(name, n)| format!("libleak: audit: {what} {name}: {n}\n")).collect()
    };
    lines("only the kernel holds, by cache,", &audit.unknown)
        + &lines("only libleak holds, by allocating function,", &audit.freed)
        + &format!(
            "libleak: audit: {} slab objects, {} vmalloc blocks and {} per-CPU blocks compared, {} freelists make no sense\n",
            audit.allocated, audit.blocks.0, audit.blocks.1, audit.broken
        )
}

/// Who refers to an object, a line for each step towards the root.
fn path(names: Names<'_>, path: &Path) -> String {
    let site = |object: &Object| match object.site.caller {
        0 => "allocation not seen".to_owned(),
        caller => format!("by {}", names.frame(caller, object.sequence)),
    };
    let words = |words: &[u64]| words.iter().map(|w| format!("{w:x}")).collect::<Vec<_>>().join(" ");
    let (addr, size, object) = &path.of;
    let mut text = format!("libleak: why: {addr:#x} (size {size}, {}): ", site(object));
    if path.holders.is_empty() {
        return text + "nobody refers to it\n";
    }
    text += "referred to by\n";
    for holder in &path.holders {
        let _ = match holder {
            Holder::Object { addr, size, object, cache, offset, words: around } => {
                let cache = cache.as_ref().map_or(format!("{:?}", object.kind).to_lowercase(), |c| c.clone());
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
            Holder::Known => writeln!(text, "libleak: why:   what the kernel declares no leak"),
        };
    }
    text
}
