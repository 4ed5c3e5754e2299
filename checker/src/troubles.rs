//! Reasons to doubt the result of a check, found by the check itself. Each is certain: a guest with
//! an intact kernel never has one.

use guest_symbols::corruption::{Corruption, Unreadable};

/// Why a result is unreliable.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Trouble {
    /// The kernel's own records are corrupted.
    #[error(
        "{0}, so the guest's kernel has corrupted its memory; objects referenced from there may be reported wrongly"
    )]
    Corruption(Corruption),
    /// Live objects that the kernel's allocator metadata shows as free.
    #[error(
        "{0} live objects are free in the kernel's allocator metadata: their frees were missed, or the guest's kernel has corrupted its slabs or page descriptors; objects referenced from them may be reported wrongly"
    )]
    Freed(u64),
    /// Blocks in memory that is used otherwise.
    #[error(
        "{0} live blocks lie in memory that is free, absent or used by slabs, according to the page descriptors; the guest's kernel has corrupted them, or calls of its allocators were forged"
    )]
    Misplaced(u64),
    /// Blocks that are not mapped.
    #[error(
        "{0} pages of live vmalloc blocks are not mapped: the guest's kernel has corrupted its page tables; objects referenced from there may be reported wrongly"
    )]
    Unmapped(u64),
    /// Blocks that are too far apart in the address space.
    #[error(
        "live blocks are too far apart in the address space to scan all of them; calls of the guest's allocators were forged"
    )]
    Spread,
}

/// The troubles of one check, without duplicates.
#[derive(Debug, Default)]
pub struct Troubles(Vec<Trouble>);

impl Troubles {
    /// Adds one.
    pub fn enter(&mut self, trouble: Trouble) {
        if !self.0.contains(&trouble) {
            self.0.push(trouble);
        }
    }

    /// Adds corruptions.
    pub fn extend(&mut self, all: impl IntoIterator<Item = Corruption>) {
        all.into_iter().for_each(|corruption| self.enter(Trouble::Corruption(corruption)));
    }

    /// Adds a trouble with a number, unless the number is zero.
    pub fn count(&mut self, number: u64, trouble: impl FnOnce(u64) -> Trouble) {
        if number > 0 {
            self.enter(trouble(number));
        }
    }

    /// Returns what was read. On failure, a corruption is added as a trouble. A warning is logged
    /// if the kernel's types do not describe it.
    pub fn read<T>(&mut self, what: &str, read: Result<T, Unreadable>) -> Option<T> {
        match read {
            Ok(read) => return Some(read),
            Err(Unreadable::Corruption(corruption)) => self.enter(Trouble::Corruption(corruption)),
            Err(Unreadable::NotDescribed) => log::warn!("the kernel's types do not describe its {what}"),
        }
        None
    }

    /// All troubles as text.
    pub fn told(&self) -> Vec<String> {
        self.0.iter().map(Trouble::to_string).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_once_and_nothing_of_nothing() {
        let mut troubles = Troubles::default();
        troubles.count(0, Trouble::Freed);
        troubles.count(2, Trouble::Freed);
        troubles.count(2, Trouble::Freed);
        troubles.extend([Corruption::Areas, Corruption::List("krc"), Corruption::Areas]);
        assert_eq!(troubles.read("tasks", Err::<(), _>(Unreadable::NotDescribed)), None);
        assert_eq!(troubles.read("tasks", Err::<(), _>(Unreadable::Corruption(Corruption::Tasks(3)))), None);
        assert_eq!(troubles.read("tasks", Ok(7)), Some(7));
        assert_eq!(troubles.told().len(), 4);
        assert!(troubles.told()[0].starts_with("2 live objects are free") && troubles.told()[2].contains("krc"));
    }
}
