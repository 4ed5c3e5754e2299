//! Lost objects that a scan does not see, and their limit.
//!
//! A scan treats words as pointers. A stale word in memory may equal the address of a lost object.
//! The object is then not reported. kmemleak has the same limit. Such a hidden object is printed
//! and counted, and the count has a limit. A leak that is missed for another reason is missed in
//! every boot, and exceeds the limit. An object that is reported and not lost always fails the
//! test.

use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError};

/// Most hidden structures in one boot.
pub const MOST_IN_A_BOOT: usize = 1;
/// Most hidden structures in all boots of one test program.
pub const MOST_IN_A_PROGRAM: usize = 2;

/// Reads from a console the lost objects that a module prints.
pub type Losses = fn(&str) -> Vec<Lost>;

/// A lost object.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Lost {
    /// Virtual address, or `__percpu` pointer.
    pub address: u64,
    /// The list or tree that it belongs to. One stale word hides all of it.
    pub structure: String,
}

impl Lost {
    /// An object that no other lost object refers to.
    pub fn alone(address: u64) -> Lost {
        Lost { address, structure: format!("{address:#x}") }
    }

    /// An object of a list or tree with this name.
    pub fn part_of(structure: &str, address: u64) -> Lost {
        Lost { address, structure: structure.to_owned() }
    }
}

/// Whether the zoo's objects of this kind refer to each other (tests/modules/zoo).
pub fn is_linked(kind: &str) -> bool {
    matches!(kind, "chain" | "ring" | "tree" | "page-chain")
}

/// Hidden structures so far, each with its boot.
static HIDDEN: Mutex<Vec<String>> = Mutex::new(Vec::new());

/// Prints and counts the hidden objects of one boot. `hint` names the folder of its output.
///
/// # Panics
/// If there are more than [`MOST_IN_A_BOOT`] in it, or more than [`MOST_IN_A_PROGRAM`] in all.
pub fn count(test: &str, hidden: &[Lost], hint: &str) {
    let structures: BTreeSet<&str> = hidden.iter().map(|lost| lost.structure.as_str()).collect();
    if structures.is_empty() {
        return;
    }
    println!("{test}: lost and not reported: {hidden:x?}");
    assert!(
        structures.len() <= MOST_IN_A_BOOT,
        "{test}: {} lost structures are not reported, {MOST_IN_A_BOOT} may be hidden: {hidden:x?}\n{hint}",
        structures.len()
    );
    let mut all = HIDDEN.lock().unwrap_or_else(PoisonError::into_inner);
    all.extend(structures.iter().map(|structure| format!("{test}: {structure}")));
    assert!(
        all.len() <= MOST_IN_A_PROGRAM,
        "{} lost structures are hidden in this test program, {MOST_IN_A_PROGRAM} may be: {all:?}\n{hint}",
        all.len()
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_counts_once_and_two_objects_are_too_many() {
        count("list", &[Lost::part_of("list", 1), Lost::part_of("list", 2)], "");
        let two = || count("two", &[Lost::alone(1), Lost::alone(2)], "");
        assert!(std::panic::catch_unwind(two).is_err(), "two objects in one boot");
        count("second", &[Lost::alone(3)], "");
        let third = || count("third", &[Lost::alone(4)], "");
        assert!(std::panic::catch_unwind(third).is_err(), "three objects in one program");
    }
}
