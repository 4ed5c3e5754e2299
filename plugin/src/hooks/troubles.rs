//! What speaks against the reports of a kernel, as far as the plugin itself knows: each is a line
//! of every report from then on, and in snapshots. What a check finds out is in
//! [`checker::Outcome::troubles`].

use crate::diagnostics;
use parking_lot::Mutex;
use std::mem::{Discriminant, discriminant};

/// Why reports are not to be trusted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Trouble {
    /// Functions that are to be hooked have other names.
    #[error("this kernel has no known function of the families {}: such allocations or frees are not seen", .0.join(", "))]
    NoHook(Vec<&'static str>),
    /// The live map was full.
    #[error(
        "there were {0} live objects, as many as max-objects= allows: what was allocated while there was no room for more is searched for references, as far as the kernel's own books know of it, and never reported"
    )]
    Objects(usize),
    /// Calls that do not return.
    #[error(
        "more than {0} calls of allocators did not return, and the first of them are not waited for any more: what they return is not tracked"
    )]
    Calls(usize),
    /// Stacks are cut.
    #[error(
        "there were more than {0} different backtraces: further ones are cut, and rules and suppressions may not fit them"
    )]
    Stacks(usize),
    /// Names are not kept.
    #[error("there were more than {0} different names of tasks: further ones are not told")]
    Comms(usize),
    /// The clock went back, and no snapshot was loaded.
    #[error(
        "the guest's jiffies went back while it ran: its kernel has corrupted its memory, or was brought to another time in a way that is not known; what was allocated before is not reported"
    )]
    TimeWentBack,
    /// What the kernel was found by is spoilt.
    #[error(
        "the guest's kernel has overwritten its own symbols, types or unwind tables: this report was made with what they were before, but a check of a snapshot may fail or tell other names"
    )]
    Image,
    /// The kernel may be another.
    #[error(
        "the tracked kernel's read-only data are not what they were: it has overwritten them itself, or a snapshot of another boot was loaded and QEMU did not tell of it, so that nothing is tracked since; start QEMU with -loadvm to track that boot"
    )]
    ReadOnlyData,
    /// Modules are not kept.
    #[error(
        "there were more than {0} modules and BPF programs, or larger ones than there can be: the functions of further ones have no names, and suppressions do not fit them"
    )]
    Modules(usize),
    /// A panic of ours.
    #[error(
        "an internal error ended the tracking {0} s before: what was allocated since is not known, and of what was freed since only what the kernel's own books tell"
    )]
    Halted(u64),
    /// The live map could not grow, or memory failed.
    #[error("{why}, so of the objects allocated after the first {allocations} none is known")]
    NoMemory {
        /// What was short.
        why: &'static str,
        /// Allocations until then.
        allocations: u64,
    },
}

/// Troubles, in the order in which they came.
#[derive(Debug, Default)]
pub struct Troubles(Mutex<Vec<(Discriminant<Trouble>, String)>>);

impl Troubles {
    /// Enters one. The first of a kind is enough, since one makes the report as doubtful as many,
    /// and guests may make many. GuestText whether it is that.
    pub fn enter(&self, trouble: &Trouble) -> bool {
        let mut all = self.0.lock();
        let kind = discriminant(trouble);
        let is_new = all.iter().all(|(known, _)| *known != kind);
        if is_new {
            all.push((kind, trouble.to_string()));
        }
        is_new
    }

    /// Enters one, and says it on stderr if it is the first of its kind.
    pub fn warn(&self, trouble: &Trouble) {
        if self.enter(trouble) {
            diagnostics::warning(&trouble.to_string());
        }
    }

    /// The guest is loaded from a snapshot: what it had spoilt of itself is whole again.
    pub fn forget_this_time(&self) {
        let gone = [Trouble::TimeWentBack, Trouble::Image, Trouble::ReadOnlyData].map(|trouble| discriminant(&trouble));
        self.0.lock().retain(|(kind, _)| !gone.contains(kind));
    }

    /// All of them.
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
