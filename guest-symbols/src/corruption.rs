//! What of the kernel's own records makes no sense.
//!
//! Guests are fuzzed, and their kernels corrupt their own memory. What is told here is true of no kernel that is as it should be, at
//! whatever moment it is stopped: each is a law that the kernel keeps at every instruction, and no guess at what is usual.

use crate::Kernel;
use crate::memory::{GuestMemory, VirtAddr};
use std::collections::HashSet;

/// A record that contradicts itself or another.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Nonsense {
    /// `slab_caches`.
    #[error("the kernel's list of slab caches leads nowhere or in a circle after {0} of them")]
    CacheList(usize),
    /// `struct kmem_cache`.
    #[error("{0} slab caches have sizes that contradict each other")]
    Caches(u64),
    /// `kmem_cache_cpu.freelist`.
    #[error("{0} freelists of CPUs lead out of their slab or in a circle")]
    CpuFreelists(u64),
    /// `struct qlist_head`, more than CPUs can be about to change.
    #[error("{0} lists of quarantined objects lead nowhere or in a circle")]
    Quarantine(u64),
    /// `struct slab`, more than CPUs can be about to make.
    #[error("{0} slabs have freelists, numbers of objects or caches that make no sense")]
    Slabs(u64),
    /// More objects than a check can hold.
    #[error("the slabs count more than {0} objects as allocated")]
    TooManyObjects(u64),
    /// `struct page`.
    #[error("{0} page descriptors contradict themselves")]
    Descriptors(u64),
    /// `struct per_cpu_pages`.
    #[error("the lists of the CPUs' free pages lead nowhere or in a circle")]
    FreePages,
    /// `struct vmap_area`.
    #[error("the tree of vmap areas is none: it leads nowhere, or areas overlap")]
    Areas,
    /// `struct pcpu_chunk`.
    #[error("the chunks of per-CPU memory cannot be read to their end")]
    Chunks,
    /// `__per_cpu_offset` and `nr_cpu_ids`.
    #[error("the tables of CPUs contradict each other: {0}")]
    Cpus(&'static str),
    /// `task_struct.tasks` and `signal_struct.thread_head`.
    #[error("the list of tasks leads nowhere or in a circle after {0} of them")]
    Tasks(usize),
    /// A list by the name of its variable.
    #[error("the list {0} leads in a circle")]
    List(&'static str),
}

/// Why something was not read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Unread {
    /// The kernel has no such thing, or its types are not known.
    NotDescribed,
    /// It makes no sense.
    Nonsense(Nonsense),
}

impl From<Nonsense> for Unread {
    fn from(nonsense: Nonsense) -> Unread {
        Unread::Nonsense(nonsense)
    }
}

/// The nodes of a circular list (`struct list_head`) whose head is at `head`, at most `most`, and whether that is all of
/// them: the list comes back to its head, can be read, and visits no node twice. The kernel keeps that when it changes a list, since
/// others walk it meanwhile.
pub(crate) fn circle(kernel: &Kernel, memory: &impl GuestMemory, head: VirtAddr, most: usize) -> (Vec<VirtAddr>, bool) {
    let mut nodes = Vec::new();
    let mut seen = HashSet::new();
    let mut at = head;
    while nodes.len() < most {
        match kernel.read_u64(memory, at) {
            Ok(next) if next == head.0 => return (nodes, true),
            Ok(next) if seen.insert(next) => at = VirtAddr(next),
            _ => return (nodes, false),
        }
        nodes.push(at);
    }
    (nodes, false)
}
