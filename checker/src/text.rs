//! What is printed: reports with their frames, the summary line, the audit, and paths of references.

use crate::audit::Audit;
use crate::moment::Counters;
use crate::why::{Holder, Path};
use crate::{Outcome, Unreferenced};
use detector::objects::{Object, Site};
use guest_symbols::Kernel;
use guest_symbols::modules::Module;
use guest_symbols::symbols::Resolved;
use std::collections::BTreeMap;
use std::fmt::Write;
use std::time::Duration;

/// What addresses are called, in the kernel and in its modules.
#[derive(Clone, Copy)]
pub struct Names<'a> {
    /// The kernel.
    pub kernel: &'a Kernel,
    /// Modules as they were loaded, each with the sequence number of that load.
    pub modules: &'a [(u64, Module)],
}

impl Names<'_> {
    /// The frames of a site, as `%pS` prints them: the allocator, whose own place of call is not known from
    /// outside, and its caller.
    pub fn frames(&self, site: Site, sequence: u64) -> Vec<String> {
        if site == Site::default() {
            return vec!["(allocation not seen)".to_owned()];
        }
        [site.allocator, site.caller].into_iter().map(|at| self.frame(at, sequence)).collect()
    }

    /// An address as it was called at the time of allocation `sequence`.
    pub fn frame(&self, at: u64, sequence: u64) -> String {
        let show = |r: Resolved, module: &str| format!("{}+{:#x}/{:#x}{module}", r.name, r.offset, r.size);
        // The last module that was loaded there before: space is used again after rmmod.
        let module = self.modules.iter().rev().filter(|(loaded, _)| *loaded <= sequence);
        for (_, module) in module {
            if module.ranges.iter().any(|r| r.contains(&at)) {
                return match module.resolve(at) {
                    Some(r) => show(r, &format!(" [{}]", module.name)),
                    None => format!("{at:#x} [{}]", module.name),
                };
            }
        }
        let end = self.kernel.symbols.lookup("_end").unwrap_or(u64::MAX);
        match self.kernel.symbols.resolve(at).filter(|_| at < end) {
            Some(r) => show(r, ""),
            None => format!("{at:#x}"),
        }
    }
}

/// A whole report: the objects, the summary, where `audit` asks for it the audit, and the paths. `pause` is how long
/// the guest stood still, if it ran at all.
pub fn report(
    names: Names<'_>,
    outcome: &Outcome,
    counters: &Counters,
    with_audit: bool,
    pause: Option<Duration>,
) -> String {
    let mut text: String = outcome.unreferenced.iter().map(|u| u.leak.to_string()).collect();
    text += &summary(names.kernel, outcome, counters, pause);
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
