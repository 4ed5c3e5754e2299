//! Task names, each stored once.

use dashmap::DashMap;
use parking_lot::RwLock;
use std::sync::atomic::{AtomicBool, Ordering};

/// Most names stored. Later names of a guest that has more are dropped.
pub const MAX: usize = 1 << 20;

/// The number of a name. 0 means that there is no name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct CommId(pub u32);

/// A task's comm, NUL-padded (`TASK_COMM_LEN`, include/linux/sched.h).
pub type Comm = [u8; 16];

/// All names seen so far.
#[derive(Default)]
pub struct Comms {
    ids: DashMap<Comm, CommId>,
    /// Indexed by number minus one.
    names: RwLock<Vec<Comm>>,
    is_cut: AtomicBool,
}

impl Comms {
    /// The number of a name.
    pub fn intern(&self, comm: Comm) -> CommId {
        if let Some(id) = self.ids.get(&comm) {
            return *id;
        }
        if self.names.read().len() >= MAX {
            self.is_cut.store(true, Ordering::Relaxed);
            return CommId::default();
        }
        // The shard stays locked while the number is assigned, so that no name gets two.
        *self.ids.entry(comm).or_insert_with(|| {
            let mut names = self.names.write();
            names.push(comm);
            CommId(names.len() as u32)
        })
    }

    /// Whether names were dropped because of [`MAX`].
    pub fn is_cut(&self) -> bool {
        self.is_cut.load(Ordering::Relaxed)
    }

    /// All names, indexed by number minus one.
    pub fn all(&self) -> Vec<Comm> {
        self.names.read().clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_number_each() {
        let comms = Comms::default();
        let (a, b) = (comms.intern(*b"kworker/u8:1\0\0\0\0"), comms.intern([0; 16]));
        assert!(a != b && a != CommId::default() && b != CommId::default());
        assert_eq!(comms.intern(*b"kworker/u8:1\0\0\0\0"), a);
        assert_eq!(comms.all().len(), 2);
    }

    #[test]
    fn threads_agree() {
        const NAMES: u8 = if cfg!(miri) { 10 } else { 200 };
        let comms = Comms::default();
        let work = || (0..NAMES).map(|n| comms.intern([n; 16])).collect::<Vec<_>>();
        let numbers: Vec<_> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..4).map(|_| scope.spawn(work)).collect();
            threads.into_iter().map(|t| t.join().unwrap()).collect()
        });
        assert!(numbers.windows(2).all(|pair| pair[0] == pair[1]));
        let all = comms.all();
        assert_eq!(all.len(), usize::from(NAMES));
        assert!((0..NAMES).zip(&numbers[0]).all(|(n, id)| all[id.0 as usize - 1] == [n; 16]));
    }
}
