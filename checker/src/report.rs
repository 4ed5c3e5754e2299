//! The result of a check, ready to be written.

use crate::guess;
use crate::moment::Counters;
use crate::names::Names;
use crate::{Outcome, text};
use detector::report::{Frame, Group, Report};
use detector::stacks::StackId;
use std::cmp::Reverse;
use std::collections::HashMap;
use std::time::Duration;

/// Leaks whose stacks are called the same are of one group, wherever their module was loaded.
fn groups(names: Names<'_>, outcome: &Outcome) -> Vec<Group> {
    let mut groups: Vec<Group> = Vec::new();
    let mut by_name: HashMap<(bool, Vec<String>), usize> = HashMap::new();
    // Names depend on the modules of the time: these are the same as long as no module was loaded.
    let mut by_stack: HashMap<(bool, StackId, usize), usize> = HashMap::new();
    for u in &outcome.unreferenced {
        let loaded = names.modules.partition_point(|(load, _)| *load <= u.object.sequence);
        let group = *by_stack.entry((u.direct, u.object.stack, loaded)).or_insert_with(|| {
            let frames = names.frames(&u.object);
            let name = (u.direct, frames.iter().map(Frame::to_string).collect());
            *by_name.entry(name).or_insert_with(|| {
                groups.push(Group { direct: u.direct, frames, leaks: Vec::new() });
                groups.len() - 1
            })
        });
        let group = &mut groups[group];
        let mut leak = u.leak.clone();
        leak.guess = match group.leaks.last() {
            // Equal stacks allocate equal things.
            Some(other) if other.cache == leak.cache && other.size == leak.size => other.guess.clone(),
            _ => guess::guess(names, &leak, &group.frames),
        };
        group.leaks.push(leak);
    }
    groups.sort_by_key(|g| (!g.direct, Reverse(g.bytes() + g.retains().1), g.leaks.first().map(|l| Reverse(l.age))));
    groups
}

/// Puts leaks with equal stacks together. `with_audit` asks for the audit in the closing lines, and `pause` is how long the
/// guest stood still, if it ran at all.
pub fn report(
    names: Names<'_>,
    outcome: &Outcome,
    counters: &Counters,
    with_audit: bool,
    pause: Option<Duration>,
) -> Report {
    Report {
        groups: groups(names, outcome),
        release: names.kernel.release.clone(),
        figures: text::figures(outcome, counters, pause),
        closing: text::closing(names, outcome, counters, with_audit, pause),
    }
}
