//! The allocations of the live map, and the functions that called the allocators.

use detector::frozen::Objects;
use detector::objects::Object;
use detector::stacks::{StackId, Stacks};
use guest_symbols::Kernel;
use std::collections::HashMap;

/// The live objects at the time of a check, and the stacks of their allocations.
#[derive(Clone, Copy)]
pub struct Allocations<'a> {
    /// The live map's snapshot.
    pub objects: &'a Objects,
    /// Indexed by stack number.
    pub stacks: &'a Stacks,
    /// Whether events ended before the check. Frees after that show only in the kernel's allocator
    /// metadata.
    pub halted: bool,
}

/// Prefixes of functions that only allocate what they return (mm/slub.c, mm/util.c, mm/vmalloc.c
/// and their headers, 5.10 to 7.3). Their callers are the allocation sites.
const WRAPPERS: [&str; 12] = [
    "kmalloc",
    "__kmalloc",
    "___kmalloc",
    "kmem_cache_alloc",
    "vmalloc",
    "__vmalloc",
    "vzalloc",
    "kvmalloc",
    "__kvmalloc",
    "krealloc",
    "kmemdup",
    "kstrdup",
];

/// Whether a function only allocates what it returns.
pub(crate) fn is_wrapper(function: &str) -> bool {
    WRAPPERS.iter().any(|start| function.starts_with(start))
}

/// The index of the first frame that is not an allocator. Frames are given innermost first. Frame 0
/// is the allocator that was entered. The result is 1 if all frames are allocators.
pub(crate) fn caller_of<'n>(frames: &[u64], mut name: impl FnMut(u64) -> Option<&'n str>) -> Option<usize> {
    let found = (1..frames.len()).find(|&i| !name(frames[i]).is_some_and(is_wrapper));
    found.or_else(|| (frames.len() > 1).then_some(1))
}

/// A function's name without the suffixes that compilers add.
fn function(kernel: &Kernel, at: u64) -> Option<&str> {
    kernel.symbols.resolve(at).map(|r| r.name.split('.').next().unwrap_or(r.name))
}

impl<'a> Allocations<'a> {
    /// The kernel function that called the allocator.
    pub(crate) fn caller<'k>(&self, kernel: &'k Kernel, stack: StackId) -> Option<&'k str> {
        let frames = self.stacks.frames(stack);
        caller_of(&frames, |at| function(kernel, at)).and_then(|i| function(kernel, frames[i]))
    }

    /// Returns a predicate on objects, by the function that called the allocator. Each call site is
    /// looked up once. There are a few thousand of them, and a hundred times as many objects.
    pub(crate) fn by_caller(self, kernel: &'a Kernel, is: fn(&str) -> bool) -> impl FnMut(&Object) -> bool + 'a {
        // Stacks are numbered from 1 on without gaps.
        let mut found: Vec<Option<bool>> = vec![None; self.stacks.len() + 1];
        let mut names: HashMap<u64, Option<&'a str>> = HashMap::new();
        move |object| {
            let Some(found) = found.get_mut(object.stack().0 as usize) else { return false };
            *found.get_or_insert_with(|| {
                let frames = self.stacks.frames(object.stack());
                let mut name = |at| *names.entry(at).or_insert_with(|| function(kernel, at));
                caller_of(&frames, &mut name).and_then(|i| name(frames[i])).is_some_and(is)
            })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_called_the_allocator() {
        let name = |at| match at {
            1 => Some("__kmalloc_node_noprof"),
            2 => Some("__kvmalloc_node_noprof"),
            3 => Some("seq_read"),
            _ => None,
        };
        assert_eq!(caller_of(&[1, 2, 3], name), Some(2));
        assert_eq!(caller_of(&[1, 3, 2], name), Some(1));
        assert_eq!(caller_of(&[1, 9], name), Some(1), "a module's function");
        assert_eq!(caller_of(&[1, 2, 2], name), Some(1), "nobody else is known");
        assert_eq!(caller_of(&[1], name), None);
        // Functions that create caches allocate their sheaves, so they are not wrappers.
        assert!(["kmem_cache_init", "__kmem_cache_create", "pcpu_alloc_chunk"].iter().all(|name| !is_wrapper(name)));
    }
}
