//! The result of a check, ready to be written.

use crate::counters::Counters;
use crate::guess;
use crate::loss;
use crate::names::Names;
pub use crate::text::Asked;
use crate::{Outcome, text};
use detector::Count;
use detector::report::{Frame, Group, Report, Suppressed};
use detector::stacks::StackId;
use detector::suppress::Suppression;
use std::cmp::Reverse;
use std::collections::HashMap;

/// Groups the leaks. Leaks of one test whose stacks have equal names are one group, wherever their
/// module was loaded.
fn groups(names: Names<'_>, outcome: &Outcome) -> Vec<Group> {
    let mut groups: Vec<Group> = Vec::new();
    let mut by_name: HashMap<(bool, Option<&str>, Vec<String>), usize> = HashMap::new();
    let mut by_stack: HashMap<(bool, Option<&str>, StackId, u64), usize> = HashMap::new();
    for u in &outcome.unreferenced {
        // An allocation that was not seen belongs to no test.
        let seen = u.object.stack() != StackId::NONE;
        let test = outcome.tests.of(u.object.sequence()).filter(|_| seen).map(|name| &**name);
        let stack = (u.direct, test, u.object.stack(), names.loaded(u.object.sequence()));
        let group = *by_stack.entry(stack).or_insert_with(|| {
            let frames = names.frames(&u.object);
            let name = (u.direct, test, frames.iter().map(Frame::to_string).collect());
            *by_name.entry(name).or_insert_with(|| {
                groups.push(Group { direct: u.direct, test: test.map(str::to_owned), frames, leaks: Vec::new() });
                groups.len() - 1
            })
        });
        let group = &mut groups[group];
        let mut leak = u.leak.clone();
        leak.guess = match group.leaks.last() {
            // Equal stacks allocate objects of equal type.
            Some(other) if other.cache == leak.cache && other.size == leak.size => other.guess.clone(),
            _ => guess::guess(names, &leak, &group.frames),
        };
        leak.loss = u.traced.as_ref().map(|traced| Box::new(loss::tell(names, traced, &group.frames)));
        group.leaks.push(leak);
    }
    let weight = |g: &Group| g.bytes() + g.retains().bytes;
    groups.sort_by_cached_key(|g| (!g.direct, Reverse(weight(g)), g.leaks.first().map(|l| Reverse(l.age))));
    groups
}

/// Makes the report. Leaks with equal stacks are grouped.
pub fn report(names: Names<'_>, outcome: &Outcome, counters: &Counters, asked: Asked<'_>) -> Report {
    let groups = groups(names, outcome);
    let entry = |s: &Suppression, count: Count| Suppressed {
        template: s.template.clone(),
        file: s.path.display().to_string(),
        line: s.line,
        objects: count.objects,
        bytes: count.bytes,
    };
    let all = asked.suppressions.all();
    let used = outcome.suppressed.iter().filter_map(|(&number, &count)| Some(entry(all.get(number)?, count)));
    let unused = asked.suppressions.unused().filter(|_| asked.unused);
    let mut report = Report {
        test: outcome.tests.at.as_deref().map(str::to_owned),
        tests: outcome.tests.finished.clone(),
        release: names.kernel.release.clone(),
        figures: text::figures(outcome, &groups, counters, asked.pause),
        groups,
        troubles: outcome.troubles.clone(),
        suppressed: used.collect(),
        unused: unused.map(|s| entry(s, Count::default())).collect(),
        closing: String::new(),
    };
    report.closing = text::closing(names, outcome, counters, &report, asked);
    report
}
