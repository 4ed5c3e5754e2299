//! Compares a report with the leaks that the module `tests/modules/leaky.c` prints.

use crate::hidden::Lost;
use crate::report::Unreferenced;
use std::collections::BTreeMap;

/// A planted leak.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Planted {
    /// The kind of allocation.
    pub kind: String,
    /// Virtual address, or `__percpu` pointer.
    pub address: u64,
    /// Requested bytes.
    pub requested: u64,
    /// Allocated bytes.
    pub size: u64,
}

/// Reads every line `leaky: leak KIND 0xADDRESS REQUESTED SIZE` of a console.
pub fn planted(console: &str) -> Vec<Planted> {
    let lines = console.lines().filter_map(|line| line.split_once("leaky: leak ").map(|(_, rest)| rest));
    lines
        .filter_map(|line| {
            let mut words = line.split_whitespace();
            Some(Planted {
                kind: words.next()?.to_owned(),
                address: u64::from_str_radix(words.next()?.strip_prefix("0x")?, 16).ok()?,
                requested: words.next()?.parse().ok()?,
                size: words.next()?.parse().ok()?,
            })
        })
        .collect()
}

/// The same, for [`Guest::losing`](crate::Guest::losing).
pub fn lost(console: &str) -> Vec<Lost> {
    planted(console).iter().map(Planted::lost).collect()
}

/// The differences between reported and planted objects.
#[derive(Debug, Default)]
pub struct Differences {
    /// Planted and not reported. A few may be hidden: see [`hidden`](crate::hidden).
    pub missing: Vec<Planted>,
    /// All other differences in words.
    pub others: Vec<String>,
}

impl Differences {
    /// Whether the objects are exactly those that were planted.
    pub fn is_empty(&self) -> bool {
        self.missing.is_empty() && self.others.is_empty()
    }

    /// Adds the differences of another report.
    pub fn extend(&mut self, other: Differences) {
        self.missing.extend(other.missing);
        self.others.extend(other.others);
    }
}

impl Planted {
    /// The size that kmemleak reports: allocated bytes for slab objects and vmalloc areas,
    /// requested bytes otherwise.
    fn reported_size(&self) -> u64 {
        match self.kind.as_str() {
            "kmalloc-large" | "percpu" => self.requested,
            _ => self.size,
        }
    }

    /// The lost object. All objects of the list are one structure.
    pub fn lost(&self) -> Lost {
        if self.kind.starts_with("list-") { Lost::part_of("list", self.address) } else { Lost::alone(self.address) }
    }

    /// The function that leaks it.
    fn function(&self) -> &'static str {
        match self.kind.as_str() {
            "kmalloc" | "kmalloc-large" => "leak_kmalloc",
            "kmem-cache" => "leak_cache_object",
            "vmalloc" => "leak_vmalloc",
            "percpu" => "leak_percpu",
            "list-head" | "list-member" => "leak_list",
            kind => panic!("leaky.c has a new kind of leak, {kind}: say here what leaks it"),
        }
    }
}

/// All differences between the reported and the planted objects.
pub fn differences(planted: &[Planted], objects: &[Unreferenced]) -> Differences {
    let mut out = Vec::new();
    let mut expected: BTreeMap<u64, &Planted> = planted.iter().map(|p| (p.address, p)).collect();
    for object in objects {
        // Removed, so that a second report of it is a difference.
        let Some(planted) = expected.remove(&object.address) else {
            out.push(format!("not planted: {object:x?}"));
            continue;
        };
        if object.size != planted.reported_size() {
            out.push(format!("{} bytes reported of {planted:x?}", object.size));
        }
        if object.comm != "insmod" {
            out.push(format!("by \"{}\" and not insmod: {planted:x?}", object.comm));
        }
        // The first frame of the module comes after those of allocators.
        let asked = object.frames.iter().find(|frame| frame.ends_with(']'));
        if !asked.is_some_and(|frame| is_frame_of(frame, planted.function(), "leaky")) {
            out.push(format!("not by {} as its frames say: {object:x?}", planted.function()));
        }
        if !object.frames.last().is_some_and(|frame| frame.starts_with("entry_SYSCALL_64_after_hwframe+")) {
            out.push(format!("its frames do not lead to the system call: {object:x?}"));
        }
    }
    Differences { missing: expected.into_values().cloned().collect(), others: out }
}

/// Whether a frame such as `leak_list+0x42/0xe5e [leaky]` lies in this function of this module.
/// Compilers create variants of a function, such as `leak_list.constprop.0`.
pub fn is_frame_of(frame: &str, function: &str, module: &str) -> bool {
    let Some(place) = frame.strip_suffix(&format!(" [{module}]")) else { return false };
    let Some((name, _)) = place.split_once('+') else { return false };
    name.split('.').next() == Some(function)
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONSOLE: &str = "[    1.9] leaky: leak kmalloc 0xffff8d7d82662e80 100 128
[    1.9] leaky: leak percpu 0x000000000003ca00 64 64
[    1.9] leaky: done
";

    fn object(address: u64, size: u64, frame: &str) -> Unreferenced {
        let frames = ["an_allocator+0x0/0x10", frame, "entry_SYSCALL_64_after_hwframe+0x76/0x7e"];
        let frames = frames.map(str::to_owned).to_vec();
        Unreferenced { address, size, comm: "insmod".to_owned(), frames, group: None }
    }

    #[test]
    fn what_was_planted_is_compared() {
        let planted = planted(CONSOLE);
        let good = [
            object(0x3ca00, 64, "leak_percpu.constprop.0+0x14/0x37 [leaky]"),
            object(0xffff_8d7d_8266_2e80, 128, "leak_kmalloc+0x1/0x2 [leaky]"),
        ];
        assert!(differences(&planted, &good).is_empty());
        assert_eq!(differences(&planted, &good[..1]).missing, [planted[0].clone()]);
        let twice = [good[0].clone(), good[0].clone(), good[1].clone()];
        assert!(differences(&planted, &twice).others[0].starts_with("not planted"));
        let wrong = [object(0x3ca00, 63, "leak_percpu+0x14/0x37"), good[1].clone()];
        assert_eq!(differences(&planted, &wrong).others.len(), 2);
    }
}
