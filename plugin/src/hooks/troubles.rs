//! Reasons not to trust the reports of a kernel, as far as the plugin knows them. Each is a line in
//! every later report and in snapshots. Reasons found by a check are in
//! [`checker::Outcome::troubles`].

use crate::diagnostics;
use parking_lot::Mutex;
use std::mem::{Discriminant, discriminant};

/// A reason not to trust reports.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Trouble {
    /// No function of a family of allocators was found.
    #[error("this kernel has no known function of the families {}; such allocations or frees are not seen", .0.join(", "))]
    NoHook(Vec<&'static str>),
    /// The live map was full.
    #[error(
        "there were {0} live objects, the limit of max-objects=; objects allocated at the limit are never reported, and are searched for references only if allocator metadata lists them"
    )]
    Objects(usize),
    /// Too many calls did not return.
    #[error(
        "more than {0} calls of allocators did not return; the oldest are dropped, and the objects they return are not tracked"
    )]
    Calls(usize),
    /// There were too many stacks.
    #[error("there were more than {0} different backtraces; later ones are cut, and suppressions may not match them")]
    Stacks(usize),
    /// The history of references was given up.
    #[error(
        "there was too little memory for the history of references, and it was given up: nothing says where leaks were lost; give QEMU more, or raise max-memory="
    )]
    NoHistory,
    /// The history of references had no room.
    #[error("the history of references had no room for {0} objects: nothing says where they were lost")]
    Unrecorded(u64),
    /// There were too many names of tasks.
    #[error("there were more than {0} different names of tasks; later ones are left out")]
    Comms(usize),
    /// The guest's clock went back although no snapshot was loaded.
    #[error(
        "the guest's jiffies went back while it ran; its kernel has corrupted its memory, or another program restored it; objects allocated before are not reported"
    )]
    TimeWentBack,
    /// The data by which the kernel was found was overwritten.
    #[error(
        "the guest's kernel has overwritten its own symbols, types or unwind tables; this report uses their earlier contents, but a check of a snapshot may fail or print other names"
    )]
    Image,
    /// The kernel may have been replaced.
    #[error(
        "the tracked kernel's read-only data have changed; the kernel has overwritten them, or QEMU loaded a snapshot of another boot without notice, and nothing is tracked since; start QEMU with -loadvm to track that boot"
    )]
    ReadOnlyData,
    /// There were too many modules.
    #[error(
        "there were more than {0} modules and BPF programs, or one has an impossible size; functions of later ones have no names, and suppressions do not match them"
    )]
    Modules(usize),
    /// libleak panicked.
    #[error(
        "an internal error ended the tracking {0} s before; later allocations are unknown, and later frees are known from allocator metadata only"
    )]
    Halted(u64),
    /// There was too little memory.
    #[error("{why}; objects after the first {allocations} allocations are unknown")]
    NoMemory {
        /// What was exhausted.
        why: &'static str,
        /// Number of allocations until then.
        allocations: u64,
    },
}

/// Reasons, in the order in which they were found.
#[derive(Debug, Default)]
pub struct Troubles(Mutex<Vec<(Discriminant<Trouble>, String)>>);

impl Troubles {
    /// Adds a reason. Only the first of a kind is kept: a guest may cause any number. Returns
    /// whether it was the first.
    pub fn enter(&self, trouble: &Trouble) -> bool {
        let mut all = self.0.lock();
        let kind = discriminant(trouble);
        let is_new = all.iter().all(|(known, _)| *known != kind);
        if is_new {
            all.push((kind, trouble.to_string()));
        }
        is_new
    }

    /// Adds a reason, and writes a warning if it is the first of its kind.
    pub fn warn(&self, trouble: &Trouble) {
        if self.enter(trouble) {
            diagnostics::warning(&trouble.to_string());
        }
    }

    /// Drops what a loaded snapshot repairs.
    pub fn forget_this_time(&self) {
        let gone = [Trouble::TimeWentBack, Trouble::Image, Trouble::ReadOnlyData].map(|trouble| discriminant(&trouble));
        self.0.lock().retain(|(kind, _)| !gone.contains(kind));
    }

    /// All reasons as text.
    pub fn all(&self) -> Vec<String> {
        self.0.lock().iter().map(|(_, why)| why.clone()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_of_a_kind() {
        let troubles = Troubles::default();
        let first = Trouble::NoHook(vec!["slab", "vmalloc"]);
        assert!(troubles.enter(&first) && !troubles.enter(&Trouble::NoHook(vec!["bulk"])));
        assert_eq!(troubles.all(), [first.to_string()]);
    }

    #[test]
    fn a_snapshot_makes_whole_what_the_guest_had_spoilt() {
        let troubles = Troubles::default();
        let lasting = Trouble::Objects(1000);
        assert!(troubles.enter(&Trouble::ReadOnlyData) && troubles.enter(&lasting));
        troubles.forget_this_time();
        assert_eq!(troubles.all(), [lasting.to_string()]);
        assert!(troubles.enter(&Trouble::ReadOnlyData));
    }
}
