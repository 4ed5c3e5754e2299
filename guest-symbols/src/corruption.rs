//! Corruption in the kernel's own records.
//!
//! Guests are fuzzed, and their kernels may corrupt their own memory. Each test is an invariant
//! that the kernel keeps at every instruction, and not a guess at usual values. So an intact kernel
//! never shows corruption.

use crate::Kernel;
use crate::memory::{GuestMemory, VirtAddr};
use std::collections::HashSet;

/// A record that contradicts itself or another.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Corruption {
    /// `slab_caches`.
    #[error("the kernel's list of slab caches is invalid or circular after {0} entries")]
    CacheList(usize),
    /// `struct kmem_cache`.
    #[error("{0} slab caches have sizes that contradict each other")]
    Caches(u64),
    /// `kmem_cache_cpu.freelist`.
    #[error("{0} freelists of CPUs leave their slab or are circular")]
    CpuFreelists(u64),
    /// `struct qlist_head`. CPUs that are stopped while they change lists are allowed for.
    #[error("{0} lists of quarantined objects are invalid or circular")]
    Quarantine(u64),
    /// `struct slab`. CPUs that are stopped while they make slabs are allowed for.
    #[error("{0} slabs have invalid freelists, object counts or caches")]
    Slabs(u64),
    /// More objects than a check can hold.
    #[error("the slabs count more than {0} objects as allocated")]
    TooManyObjects(u64),
    /// `struct page`.
    #[error("{0} page descriptors contradict themselves")]
    Descriptors(u64),
    /// `struct per_cpu_pages`.
    #[error("the lists of the CPUs' free pages are invalid or circular")]
    FreePages,
    /// `struct vmap_area`.
    #[error("the tree of vmap areas is invalid: a node cannot be read, or areas overlap")]
    Areas,
    /// `struct pcpu_chunk`.
    #[error("the chunks of per-CPU memory cannot be read completely")]
    Chunks,
    /// `__per_cpu_offset` and `nr_cpu_ids`.
    #[error("the tables of CPUs contradict each other: {0}")]
    Cpus(&'static str),
    /// `task_struct.tasks` and `signal_struct.thread_head`.
    #[error("the list of tasks is invalid or circular after {0} entries")]
    Tasks(usize),
    /// The list of this variable.
    #[error("the list {0} is circular")]
    List(&'static str),
}

/// Why something was not read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Unreadable {
    /// The kernel has no such structure, or its types are not known.
    NotDescribed,
    /// It is corrupted.
    Corruption(Corruption),
}

impl From<Corruption> for Unreadable {
    fn from(corruption: Corruption) -> Unreadable {
        Unreadable::Corruption(corruption)
    }
}

/// The nodes of a circular list (`struct list_head`), at most `most`, and whether the list is
/// complete. `head` is the address of its head.
///
/// A list is complete if it can be read, visits no node twice, and returns to its head. The kernel
/// keeps this true while it changes a list, because other CPUs may walk it.
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
