//! Which addresses of vmalloc space are stacks. Stacks are recognized by the stack pointer, and are
//! kept until vfree().

use parking_lot::RwLock;
use std::collections::HashSet;
use std::sync::atomic::{AtomicU64, Ordering};

/// Bytes of a stack, and its alignment: THREAD_SIZE (arch/x86/include/asm/page_64_types.h, 5.10 to
/// 7.3). With KASAN it is twice as much, which counts as two stacks here.
const SIZE: u64 = 16 << 10;
/// Most stacks that are known.
const MAX: usize = 1 << 18;
/// Stacks that are found without a lock.
const RECENT: usize = 1 << 8;

/// The stacks that were used, by their lowest address.
pub(super) struct Stacks {
    all: RwLock<HashSet<u64>>,
    /// Some of them, each at a place by its address.
    recent: [AtomicU64; RECENT],
}

impl Default for Stacks {
    fn default() -> Stacks {
        Stacks { all: RwLock::default(), recent: [const { AtomicU64::new(0) }; RECENT] }
    }
}

/// The lowest address of the stack that an address is on, if it is on one.
#[inline]
fn base(at: u64) -> u64 {
    at & !(SIZE - 1)
}

impl Stacks {
    #[inline]
    fn recent(&self, base: u64) -> &AtomicU64 {
        &self.recent[(base / SIZE) as usize % RECENT]
    }

    /// Whether an address is on a stack that was used lately.
    #[inline]
    pub fn is_known(&self, at: u64) -> bool {
        self.recent(base(at)).load(Ordering::Relaxed) == base(at)
    }

    /// If `at` is on the stack that the stack pointer `sp` is on, the distance from the stack's
    /// lowest address in words, from 1 on.
    #[inline]
    pub fn depth(&self, at: u64, sp: u64) -> Option<u32> {
        // The stack pointer may be at the stack's very end.
        if base(at) != base(sp.wrapping_sub(1)) {
            return None;
        }
        if !self.is_known(at) {
            self.enter(base(at));
        }
        Some((at % SIZE / 8) as u32 + 1)
    }

    #[cold]
    fn enter(&self, base: u64) {
        self.recent(base).store(base, Ordering::Relaxed);
        if !self.all.read().contains(&base) {
            let mut stacks = self.all.write();
            if stacks.len() < MAX {
                stacks.insert(base);
            }
        }
    }

    /// Whether an address is on a stack.
    pub fn contain(&self, at: u64) -> bool {
        self.is_known(at) || self.all.read().contains(&base(at))
    }

    /// The block at an address is freed.
    pub fn remove(&self, at: u64) {
        let base = base(at);
        let _ = self.recent(base).compare_exchange(base, 0, Ordering::Relaxed, Ordering::Relaxed);
        let is_stack = self.all.read().contains(&base);
        if is_stack {
            self.all.write().remove(&base);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stack_is_known_until_it_is_freed() {
        const BASE: u64 = 0xffff_c900_0000_4000;
        let stacks = Stacks::default();
        assert_eq!(stacks.depth(BASE + 8, BASE - 8), None);
        assert!(!stacks.contain(BASE));
        assert_eq!(stacks.depth(BASE + SIZE - 8, BASE + SIZE), Some(2048));
        assert!(stacks.contain(BASE + 100) && !stacks.contain(BASE + SIZE));
        assert_eq!(stacks.depth(BASE, BASE + 64), Some(1));
        // Another stack takes its place among the recent ones.
        let other = BASE + RECENT as u64 * SIZE;
        assert_eq!(stacks.depth(other, other + 64), Some(1));
        assert!(stacks.contain(BASE) && !stacks.is_known(BASE) && stacks.is_known(other));
        stacks.remove(BASE);
        stacks.remove(other);
        assert!(!stacks.contain(BASE) && !stacks.contain(other));
    }
}
