//! The result of a run as a table, and whether it passed.

use crate::Outcome;
use crate::arguments::{Arguments, Plugin};
use crate::memory::Memory;
use crate::samples::{self, Slope};
use ::tests::program::messages;
use ::tests::report::{self, Summary};
use std::fmt::Write as _;
use std::time::Duration;

/// Time after which a boot has settled. Memory is compared from then on.
const SETTLES: Duration = Duration::from_secs(60);

/// Shorter runs say nothing about growth.
const ENOUGH: Duration = Duration::from_secs(15 * 60);

/// Words on the console that mean trouble.
const UNWELL: [&str; 5] = ["Oops: ", "BUG:", "Kernel panic", "WARNING: CPU", "self-detected stall"];

/// The table, and whether the run passed.
pub fn verdict(outcome: &Outcome, arguments: &Arguments) -> (String, bool) {
    let mut table = Table(String::new());
    let mut bad = outcome.troubles.clone();
    let mut must_be_none = |what: &str, count: u64| {
        if count > 0 {
            bad.push(format!("{what}: {count}"));
        }
        count
    };

    let reports = report::parse(&outcome.reports);
    let summaries: Vec<&Summary> = reports.iter().map(|r| &r.summary).collect();
    let boots = boots(&summaries);
    let tracked = samples_tracked(outcome);
    let sum = |of: fn(&Summary) -> u64| boots.iter().map(|s| of(s)).sum::<u64>();
    let most = |of: fn(&Summary) -> u64| summaries.iter().map(|s| of(s)).max().unwrap_or(0);
    table.row("minutes", format!("{:.1}", outcome.minutes));
    table.row("resets", outcome.resets);
    table.row("boots that were tracked", format!("{tracked} of {}", outcome.resets + 1));
    table.row("reports", reports.len());
    table.row("allocations", sum(|s| s.allocations));
    table.row("frees", sum(|s| s.frees));
    table.row("false reports", must_be_none("false reports", reports.iter().map(|r| r.summary.unreferenced).sum()));
    table.row("hidden by clear", must_be_none("hidden by clear", outcome.client.cleared));
    for (name, count) in [
        ("unmatched returns", sum(|s| s.unmatched_returns)),
        ("unwatched sites", sum(|s| s.unwatched_sites)),
        ("unknown frees", sum(|s| s.unknown_frees)),
        ("missed frees", sum(|s| s.missed_frees)),
        ("stale", sum(|s| s.stale)),
        ("freed and not seen, at most", most(|s| s.freed)),
    ] {
        table.row(name, must_be_none(name, count));
    }
    // A few objects are in allocator calls when the guest is stopped, as in
    // Summary::is_trustworthy, or all of one kmem_cache_alloc_bulk(). They are not in the next
    // report.
    table.row("unknown, at most", most(|s| s.unknown));
    let unknown = summaries.windows(2).map(|pair| pair[0].unknown.min(pair[1].unknown)).max().unwrap_or(0);
    table.row("unknown in two reports in succession, at most", unknown);
    must_be_none("unknown objects", unknown.saturating_sub(8));
    table.row(
        "reports that are not to be trusted",
        must_be_none("unreliable", lines(&outcome.reports, "libleak: unreliable")),
    );

    for (name, tally) in &outcome.client.tallies {
        must_be_none(&format!("requests without an answer ({name})"), tally.lost);
        table.row(
            &format!("requests: {name}"),
            format!(
                "{} done, {} refused, {} lost, {:.1} s at most",
                tally.done,
                tally.refused,
                tally.lost,
                tally.longest.as_secs_f64()
            ),
        );
    }
    let said = messages(&outcome.boot.stderr).len() as u64 + messages(&outcome.reports).len() as u64;
    table.row("libleak's own messages", must_be_none("messages of libleak", said));
    let unwell = UNWELL.iter().map(|word| lines(&outcome.console, word)).sum();
    table.row("complaints of the guest's kernel", must_be_none("complaints of the guest's kernel", unwell));
    if tracked != u64::from(outcome.resets) + 1 && arguments.plugin != Plugin::None {
        bad.push(format!("only {tracked} of {} boots were tracked", outcome.resets + 1));
    }
    if outcome.boot.status != Some(0) {
        bad.push(format!("QEMU's status: {:?}", outcome.boot.status));
    }
    table.row("QEMU ended", if outcome.boot.status == Some(0) { "well" } else { "badly" });

    let settles = SETTLES.min(arguments.reset_every / 3);
    let settled = samples::settled(&outcome.samples, settles);
    let whole = Duration::from_secs_f64(60.0 * outcome.minutes);
    for percent in [10, 50, 100] {
        let at = whole * percent / 100;
        let mib = |of: fn(&Memory) -> u64| samples::around(&settled, at, of);
        let (all, guest, code, rest) = (mib(|m| m.all), mib(|m| m.guest), mib(|m| m.code), mib(Memory::rest));
        table.row(
            &format!("resident at {percent} % of the time"),
            format!("{all:.0} MiB: guest's memory {guest:.0}, translated code {code:.0}, the rest {rest:.1}"),
        );
    }
    let half: Vec<_> = settled.iter().copied().filter(|s| s.at * 2 >= whole).collect();
    let long = whole >= ENOUGH;
    for (name, slope, unit, limit) in [
        ("the rest, over the second half", samples::by_hours(&half), "an hour", 8.0),
        ("the rest, from boot to boot", samples::by_boots(&settled), "a boot", 1.0),
    ] {
        let grows = long && slope.is_some_and(|s| s.exceeds(limit));
        let said = match slope {
            Some(slope) if long => told(slope, grows, unit),
            _ => "the run is too short to say".to_owned(),
        };
        table.row(name, said);
        if grows {
            bad.push(format!("memory grows: {name}"));
        }
    }
    let _ = write!(table.0, "\n{}", samples::boots(&outcome.samples, settles));
    if !outcome.client.refusals.is_empty() {
        let _ = write!(table.0, "\nthe first refusals of each kind, and all requests without an answer:\n");
        for line in &outcome.client.refusals {
            let _ = writeln!(table.0, "  {line}");
        }
    }
    let _ = match bad.is_empty() {
        true => writeln!(table.0, "\nwell"),
        false => writeln!(table.0, "\nNOT WELL: {}", bad.join("; ")),
    };
    (table.0, bad.is_empty())
}

struct Table(String);

impl Table {
    fn row(&mut self, name: &str, value: impl ToString) {
        let _ = writeln!(self.0, "{name:<36} {}", value.to_string());
    }
}

fn told(slope: Slope, grows: bool, unit: &str) -> String {
    let word = if grows { "GROWS" } else { "flat" };
    format!("{word}: {:+.2} MiB {unit}, plus or minus {:.2}", slope.mib, slope.error)
}

/// The last summary of each boot, since a boot's figures start from 0.
fn boots<'a>(summaries: &[&'a Summary]) -> Vec<&'a Summary> {
    let ends = summaries.windows(2).filter(|w| w[1].allocations < w[0].allocations).map(|w| w[0]);
    ends.chain(summaries.last().copied()).collect()
}

/// Boots that libleak said it tracks.
fn samples_tracked(outcome: &Outcome) -> u64 {
    let mut boots: Vec<u32> =
        outcome.samples.iter().filter(|s| s.boot > 0 && s.status["tracking"] == true).map(|s| s.boot).collect();
    boots.dedup();
    boots.len() as u64
}

fn lines(text: &str, word: &str) -> u64 {
    text.lines().filter(|line| line.contains(word)).count() as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn boots_are_told_apart_by_their_allocations() {
        let summaries = [3, 5, 9, 2, 4, 1].map(|allocations| Summary { allocations, ..Summary::default() });
        let summaries: Vec<&Summary> = summaries.iter().collect();
        let ends: Vec<u64> = boots(&summaries).iter().map(|s| s.allocations).collect();
        assert_eq!(ends, [9, 4, 1]);
        assert!(boots(&[]).is_empty());
    }
}
