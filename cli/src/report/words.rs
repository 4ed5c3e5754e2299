//! Text that several formats share.

use detector::report::{Format, Frame, Group, Report};

/// The name of the case for leaks outside of tests.
pub const KERNEL: &str = "kernel";

/// The function and the module of a frame, without the offset.
pub fn function(frame: &Frame) -> String {
    match &frame.function {
        Some(f) if !f.name.is_empty() => match &f.module {
            Some(module) => format!("{} [{module}]", f.name),
            None => f.name.clone(),
        },
        Some(f) => format!("{:#x} [{}]", frame.address, f.module.as_deref().unwrap_or("?")),
        None => format!("{:#x}", frame.address),
    }
}

/// `1 object`, `2 objects`.
pub fn objects(n: usize) -> String {
    format!("{n} object{}", if n == 1 { "" } else { "s" })
}

/// Names of allocators in the kernel image, without prefixes and suffixes. They only serve to name
/// the site of a leak.
const ALLOCATORS: &[&str] = &[
    "alloc_pages",
    "alloc_percpu",
    "get_free_pages",
    "kasprintf",
    "kcalloc",
    "kmalloc",
    "kmem_cache_alloc",
    "kmemdup",
    "krealloc",
    "kstrdup",
    "kstrndup",
    "kvasprintf",
    "kvmalloc",
    "kvmemdup",
    "kvrealloc",
    "kvzalloc",
    "kzalloc",
    "memdup_user",
    "pcpu_alloc",
    "vmalloc",
    "vmemdup",
    "vzalloc",
];

/// The function that identifies a group: the innermost one that is not an allocator.
pub fn site(group: &Group) -> String {
    let is_allocator = |frame: &&Frame| {
        let function = frame.function.as_ref().filter(|f| f.module.is_none());
        function.is_some_and(|f| ALLOCATORS.iter().any(|name| f.name.trim_start_matches('_').starts_with(name)))
    };
    let caller = group.frames.iter().find(|frame| !is_allocator(frame));
    caller.or(group.frames.first()).map(function).unwrap_or_default()
}

/// Groups in one line.
pub fn describe(leaks: &[Group]) -> String {
    let each: Vec<String> =
        leaks.iter().map(|g| format!("{} of {} bytes in {}", objects(g.leaks.len()), g.bytes(), site(g))).collect();
    let bytes: u64 = leaks.iter().map(Group::bytes).sum();
    format!("{} leak{}, {bytes} bytes: {}", leaks.len(), if leaks.len() == 1 { "" } else { "s" }, each.join("; "))
}

/// Groups in kmemleak's format.
pub fn stacks(leaks: &[Group]) -> String {
    Format::Text.write(&Report { groups: leaks.to_vec(), ..Report::default() }, false)
}
