//! What speaks against the reports of a kernel, as far as the plugin itself knows: each is a line of every report from then
//! on, and in snapshots. What a check finds out is in [`checker::Outcome::troubles`].

use parking_lot::Mutex;
use std::mem::{Discriminant, discriminant};

/// Why reports are not to be trusted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Trouble {
    /// Functions that are to be hooked have other names.
    #[error("this kernel has no known function of the families {}: such allocations or frees are not seen", .0.join(", "))]
    NoHook(Vec<&'static str>),
}

/// Troubles, in the order in which they came.
#[derive(Debug, Default)]
pub struct Troubles(Mutex<Vec<(Discriminant<Trouble>, String)>>);

impl Troubles {
    /// Enters one. The first of a kind is enough, since one makes the report as doubtful as many, and guests may make many.
    /// Says whether it is that.
    pub fn enter(&self, trouble: &Trouble) -> bool {
        let mut all = self.0.lock();
        let kind = discriminant(trouble);
        let is_new = all.iter().all(|(known, _)| *known != kind);
        if is_new {
            all.push((kind, trouble.to_string()));
        }
        is_new
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
}
