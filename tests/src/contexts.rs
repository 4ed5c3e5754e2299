//! Compares a report with the leaks and stacks that the module `tests/modules/contexts.c` prints.

use crate::hidden::Lost;
use crate::report::Unreferenced;

/// The contexts in which it leaks, after a write to its file.
pub const KINDS: [&str; 8] = ["init", "tasklet", "softirq", "hardirq", "ipi", "workqueue", "kthread", "process"];

/// Most frames that are compared, including the allocator's.
const MAX_FRAMES: usize = 16;

/// One leak.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Leak {
    /// The context.
    pub kind: String,
    /// Virtual address.
    pub address: u64,
    /// Requested bytes.
    pub size: u64,
    /// The stack of the kernel's own unwinder, innermost first: `leak_init+0x23/0x28 [contexts]`.
    pub frames: Vec<String>,
}

/// A source location.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Line {
    /// The module's name for it.
    pub kind: String,
    /// The file.
    pub file: String,
    /// The line.
    pub line: u32,
}

fn ours(console: &str) -> impl Iterator<Item = &str> {
    console.lines().filter_map(|line| line.split_once("contexts: ").map(|(_, rest)| rest))
}

/// Reads every line `contexts: leak KIND 0xADDRESS SIZE` of a console, and the lines `contexts:
/// frame KIND FRAME` after it.
pub fn leaks(console: &str) -> Vec<Leak> {
    let mut leaks: Vec<Leak> = Vec::new();
    for line in ours(console) {
        if let Some(rest) = line.strip_prefix("leak ") {
            let mut words = rest.split_whitespace();
            let leak = (|| {
                Some(Leak {
                    kind: words.next()?.to_owned(),
                    address: u64::from_str_radix(words.next()?.strip_prefix("0x")?, 16).ok()?,
                    size: words.next()?.parse().ok()?,
                    frames: Vec::new(),
                })
            })();
            leaks.extend(leak);
        } else if let Some((kind, frame)) = line.strip_prefix("frame ").and_then(|rest| rest.split_once(' '))
            && let Some(leak) = leaks.last_mut().filter(|leak| leak.kind == kind)
        {
            leak.frames.push(frame.trim_end().to_owned());
        }
    }
    leaks
}

/// The same, for [`Guest::losing`](crate::Guest::losing).
pub fn lost(console: &str) -> Vec<Lost> {
    leaks(console).into_iter().map(|leak| Lost::alone(leak.address)).collect()
}

/// Reads every line `contexts: line KIND FILE LINE` of a console.
pub fn lines(console: &str) -> Vec<Line> {
    let words = ours(console).filter_map(|line| line.strip_prefix("line ")).map(str::split_whitespace);
    words
        .filter_map(|mut words| {
            Some(Line {
                kind: words.next()?.to_owned(),
                file: words.next()?.to_owned(),
                line: words.next()?.parse().ok()?,
            })
        })
        .collect()
}

/// All differences between the reported and the leaked objects, including their frames.
pub fn differences(leaks: &[Leak], objects: &[Unreferenced]) -> Vec<String> {
    let mut out = Vec::new();
    for object in objects {
        if !leaks.iter().any(|leak| leak.address == object.address) {
            out.push(format!("not leaked: {object:x?}"));
        }
    }
    for leak in leaks {
        match objects.iter().filter(|object| object.address == leak.address).collect::<Vec<_>>()[..] {
            [object] => {
                if let Some(difference) = frames_differ(&leak.frames, &object.frames) {
                    out.push(format!("{}: {difference}\n{}", leak.kind, beside(&leak.frames, &object.frames)));
                }
            }
            [] => out.push(format!("not reported: {leak:x?}")),
            _ => out.push(format!("reported twice: {leak:x?}")),
        }
    }
    out
}

/// Most allocators that call each other.
const MAX_ALLOCATORS: usize = 3;

/// Compares frames. The first frames are allocators, which the module does not print. The offset in
/// their caller differs from the module's, since it printed its stack from another place. All
/// further frames must be equal.
fn frames_differ(truth: &[String], reported: &[String]) -> Option<String> {
    let Some(allocator) = reported.first() else { return Some("no frames".to_owned()) };
    if !allocator.contains("+0x0/") || allocator.ends_with(']') {
        return Some(format!("the first frame is no start of an allocator: {allocator}"));
    }
    let allocators = reported.iter().take(MAX_ALLOCATORS).take_while(|frame| !frame.ends_with(']')).count();
    let callers = &reported[allocators..];
    let wanted = truth.len().min(MAX_FRAMES - allocators);
    if callers.len() < wanted {
        return Some(format!("{} frames, and not {}", reported.len(), wanted + 1));
    }
    if reported.len() > MAX_FRAMES {
        return Some(format!("{} frames", reported.len()));
    }
    // Further frames are wrong, unless the truth was cut.
    if callers.len() > wanted {
        return Some(format!("frames after the last one: {:?}", &callers[wanted..]));
    }
    for (i, (truth, reported)) in truth.iter().zip(callers).enumerate() {
        let same = if i == 0 { without_offset(truth) == without_offset(reported) } else { truth == reported };
        if !same {
            return Some(format!("frame {} is {reported}, and not {truth}", i + 1));
        }
    }
    None
}

/// `leak_init+0x23/0x28 [contexts]` as the name, and the size with the module.
fn without_offset(frame: &str) -> Option<(&str, &str)> {
    let (name, place) = frame.split_once('+')?;
    Some((name, place.split_once('/')?.1))
}

fn beside(truth: &[String], reported: &[String]) -> String {
    let none = String::new();
    let truth = std::iter::once(&none).chain(truth);
    let rows = truth.chain(std::iter::repeat(&none)).zip(reported.iter().chain(std::iter::repeat(&none)));
    let rows = rows.take(MAX_FRAMES.max(reported.len()));
    rows.map(|(truth, reported)| format!("    {truth:60} {reported}\n")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONSOLE: &str = "[    1.2] contexts: leak init 0xffff894b42674ea0 24
[    1.2] contexts: frame init leak_init+0x23/0x28 [contexts]
[    1.2] contexts: frame init contexts_init+0x3f/0x1000 [contexts]
[    1.2] contexts: frame init do_one_initcall+0x59/0x220
[    1.3] contexts: line inlined contexts.c 250
[    1.3] contexts: done
";

    fn object(frames: &[&str]) -> Unreferenced {
        let frames = frames.iter().map(|&f| f.to_owned()).collect();
        Unreferenced { address: 0xffff_894b_4267_4ea0, size: 32, comm: "insmod".to_owned(), frames, group: None }
    }

    #[test]
    fn frames_are_compared() {
        let leaks = leaks(CONSOLE);
        assert_eq!((leaks.len(), leaks[0].size, leaks[0].frames.len()), (1, 24, 3));
        assert_eq!(lines(CONSOLE), [Line { kind: "inlined".to_owned(), file: "contexts.c".to_owned(), line: 250 }]);
        let good = [
            "kmalloc_trace+0x0/0x90",
            "leak_init+0x1b/0x28 [contexts]",
            "contexts_init+0x3f/0x1000 [contexts]",
            "do_one_initcall+0x59/0x220",
        ];
        assert_eq!(differences(&leaks, &[object(&good)]), [""; 0]);
        let wrong = |i: usize, frame: &'static str| {
            let mut frames = good;
            frames[i] = frame;
            differences(&leaks, &[object(&frames)]).len()
        };
        assert_eq!(wrong(0, "kmalloc_trace+0x4/0x90"), 1);
        assert_eq!(wrong(1, "leak_init+0x1b/0x28"), 1);
        assert_eq!(wrong(1, "leak_exit+0x1b/0x28 [contexts]"), 1);
        assert_eq!(wrong(2, "contexts_init+0x3a/0x1000 [contexts]"), 1);
        assert_eq!(wrong(3, "do_one_initcall+0x59/0x230"), 1);
        assert_eq!(differences(&leaks, &[object(&good[..3])]).len(), 1);
        assert_eq!(differences(&leaks, &[object(&[&good[..], &["more+0x1/0x2"]].concat())]).len(), 1);
        assert_eq!(differences(&leaks, &[object(&good), object(&good)]).len(), 1);
        assert_eq!(differences(&leaks, &[]).len(), 1);
        let other = Unreferenced { address: 0x1000, ..object(&good) };
        assert_eq!(differences(&leaks, &[object(&good), other]).len(), 1);
    }

    #[test]
    fn deep_stacks_are_compared_as_far_as_reports_go() {
        let truth: Vec<String> = (0..20).map(|i| format!("f{i}+0x1/0x2 [contexts]")).collect();
        let report = |n: usize| [&["kmalloc+0x0/0x9".to_owned()], &truth[..n]].concat();
        assert_eq!(frames_differ(&truth, &report(15)), None);
        assert!(frames_differ(&truth, &report(14)).is_some());
        assert!(frames_differ(&truth, &report(16)).is_some());
    }
}
