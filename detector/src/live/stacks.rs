//! Allocation stacks, each stored once.
//!
//! Every vCPU thread writes here. Nearly all stacks are already known. Such a stack costs a read
//! lock of one shard and no memory.

use dashmap::DashMap;
use parking_lot::RwLock;
use std::hash::{BuildHasherDefault, Hasher};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Most stacks stored whole, about 0.5 GB. A boot has about 10,000.
///
/// Further stacks of a guest are cut to the callers of the allocator. At one and a half times this
/// number they are cut to the allocator itself.
pub const MAX: usize = 1 << 21;
/// Frames of a cut stack. Rules about "not a leak" look at the caller of an allocator.
const CUT: usize = 4;

/// The number of a stack.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct StackId(pub u32);

impl StackId {
    /// No stack, since the allocation was not seen.
    pub const NONE: StackId = StackId(0);
}

/// Hashes a stack with one multiplication per frame. Return addresses are not chosen by an
/// attacker.
#[derive(Default)]
pub struct StackHasher(u64);

impl Hasher for StackHasher {
    fn finish(&self) -> u64 {
        self.0 ^ (self.0 >> 32)
    }
    fn write(&mut self, bytes: &[u8]) {
        // `[u64]` is hashed as bytes.
        let (words, rest) = bytes.as_chunks::<8>();
        words.iter().for_each(|w| self.write_u64(u64::from_le_bytes(*w)));
        rest.iter().for_each(|b| self.write_u64((*b).into()));
    }
    fn write_u64(&mut self, n: u64) {
        self.0 = (self.0.rotate_left(5) ^ n).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }
    fn write_usize(&mut self, n: usize) {
        self.write_u64(n as u64);
    }
}

/// All stacks seen so far.
pub struct Stacks {
    ids: DashMap<Arc<[u64]>, StackId, BuildHasherDefault<StackHasher>>,
    /// Indexed by number minus one.
    frames: RwLock<Vec<Arc<[u64]>>>,
    most: usize,
    is_cut: AtomicBool,
}

impl Default for Stacks {
    fn default() -> Stacks {
        Stacks {
            ids: DashMap::with_capacity_and_hasher(1 << 15, Default::default()),
            frames: RwLock::default(),
            most: MAX,
            is_cut: AtomicBool::new(false),
        }
    }
}

impl Stacks {
    /// The number of a stack. `frames` are addresses, innermost first. Equal stacks get equal
    /// numbers.
    pub fn intern(&self, frames: &[u64]) -> StackId {
        if frames.is_empty() {
            return StackId::NONE;
        }
        if let Some(id) = self.ids.get(frames) {
            return *id;
        }
        self.add(frames)
    }

    #[cold]
    fn add(&self, frames: &[u64]) -> StackId {
        let kept = match self.len() {
            n if n < self.most => frames.len(),
            n if n < self.most + self.most / 2 => CUT,
            _ => 1,
        };
        if kept < frames.len() {
            self.is_cut.store(true, Ordering::Relaxed);
            return self.intern(&frames[..kept]);
        }
        let frames: Arc<[u64]> = frames.into();
        // The shard stays locked while the number is assigned, so that no stack gets two.
        *self.ids.entry(Arc::clone(&frames)).or_insert_with(|| {
            let mut all = self.frames.write();
            all.push(frames);
            StackId(all.len() as u32)
        })
    }

    /// Whether stacks were cut because of [`MAX`].
    pub fn is_cut(&self) -> bool {
        self.is_cut.load(Ordering::Relaxed)
    }

    /// The frames of a stack, innermost first. Empty for [`StackId::NONE`] and for unknown numbers.
    pub fn frames(&self, id: StackId) -> Arc<[u64]> {
        let index = (id.0 as usize).wrapping_sub(1);
        self.frames.read().get(index).cloned().unwrap_or_else(|| Arc::new([]))
    }

    /// The frames of all stacks, indexed by number minus one.
    pub fn all(&self) -> Vec<Arc<[u64]>> {
        self.frames.read().clone()
    }

    /// The number of different stacks.
    pub fn len(&self) -> usize {
        self.frames.read().len()
    }

    /// Whether there are no stacks.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_number_for_equal_stacks() {
        let stacks = Stacks::default();
        let a = stacks.intern(&[1, 2, 3]);
        let b = stacks.intern(&[1, 2]);
        assert_ne!(a, b);
        assert_eq!(stacks.intern(&[1, 2, 3]), a);
        assert_eq!(&*stacks.frames(b), [1, 2]);
        assert_eq!(stacks.intern(&[]), StackId::NONE);
        assert!(stacks.frames(StackId::NONE).is_empty() && stacks.frames(StackId(99)).is_empty());
        assert_eq!(stacks.len(), 2);
    }

    #[test]
    fn what_there_is_no_room_for_is_cut() {
        let stacks = Stacks { most: 100, ..Stacks::default() };
        let first: Vec<StackId> = (0..100).map(|i| stacks.intern(&[1, 2, 3, 4, 5, i])).collect();
        assert!(!stacks.is_cut());
        assert_eq!(stacks.intern(&[1, 2, 3, 4, 5, 7]), first[7]);
        assert_eq!(&*stacks.frames(stacks.intern(&[1, 2, 3, 4, 5, 1000])), [1, 2, 3, 4]);
        assert!(stacks.is_cut());
        assert!((0..1000).all(|i| stacks.intern(&[1, i, 3, 4, 5]) != StackId::NONE));
        assert_eq!(&*stacks.frames(stacks.intern(&[9, 1001, 3, 4, 5])), [9]);
        assert!(stacks.len() < 160);
    }

    #[test]
    fn threads_agree() {
        const COUNT: usize = if cfg!(miri) { 520 } else { 2000 };
        let stacks = Stacks::default();
        let numbers: Vec<Vec<StackId>> = std::thread::scope(|scope| {
            let work = || (0..COUNT as u64).map(|i| stacks.intern(&[i % 500, i % 7])).collect();
            let threads: Vec<_> = (0..4).map(|_| scope.spawn(work)).collect();
            threads.into_iter().map(|t| t.join().unwrap()).collect()
        });
        assert!(numbers.windows(2).all(|w| w[0] == w[1]));
        assert_eq!(stacks.len(), COUNT);
        assert_eq!(&*stacks.frames(numbers[0][501]), [1, 501 % 7]);
    }
}
