//! A memo of stack walks.
//!
//! Most allocations come from a known call path. Their walks read the same words of the stack. If
//! all these words are unchanged, the walk leads to the same frames and can be skipped.
//!
//! A walk is a function of its start, of the words that it reads, and of the unwind rules. Words
//! and addresses on the current stack are kept relative to the stack pointer. The same path is thus
//! found on another task's stack. Others are kept as they are, for example after an interrupt stack
//! leads to the interrupted stack. Kernels move the stack pointer by a random number at each system
//! call (CONFIG_RANDOMIZE_KSTACK_OFFSET). A walk is therefore kept in parts, from one frame pointer
//! to the next.

/// The most words that one part of a walk may read.
const WORDS: usize = 24;
/// Number of sets. Parts that start from the same call share a set.
const SETS: usize = 256;
const WAYS: usize = 8;
/// Addresses within this many bytes of the stack pointer are on the same stack (THREAD_SIZE,
/// arch/x86/include/asm/page_64_types.h, doubled for KASAN).
///
/// An address is a word plus an offset of 16 bits, and both must be on the same side. A walk with
/// an address between [`NEAR`] and [`FAR`] is not kept.
const NEAR: u64 = 32 << 10;
const FAR: u64 = NEAR + (64 << 10);

/// Where a part of a walk starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Start {
    /// Virtual address of the called function, or any number that stands for the part before.
    pub function: u64,
    /// Its return address.
    pub ret: u64,
    /// The stack pointer at that time, or the frame pointer that the rest depends on.
    pub sp: u64,
}

impl Start {
    fn hash(&self) -> u64 {
        (self.function ^ self.ret.rotate_left(32)).wrapping_mul(0x9e37_79b9_7f4a_7c15)
    }
}

/// Whether a number is an address on the current stack.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    Near,
    Elsewhere,
    /// It is not certain.
    Between,
}

fn place(value: u64, sp: u64) -> Place {
    let distance = value.wrapping_sub(sp) as i64;
    match distance.unsigned_abs() {
        ..NEAR => Place::Near,
        NEAR..FAR => Place::Between,
        _ => Place::Elsewhere,
    }
}

/// The words that a walk has read.
#[derive(Clone)]
pub struct Log {
    sp: u64,
    count: usize,
    usable: bool,
    /// One bit for each word: whether its address, or its value, is relative to the stack pointer.
    near_addresses: u32,
    near_words: u32,
    addresses: [u64; WORDS],
    words: [u64; WORDS],
    /// The address of the frame pointer at which this part ends, and whether it is relative.
    end: Option<(bool, u64)>,
}

impl Log {
    /// Starts the log of a walk with the stack pointer at `sp`.
    pub fn new(sp: u64) -> Log {
        Log {
            sp,
            count: 0,
            usable: true,
            near_addresses: 0,
            near_words: 0,
            addresses: [0; WORDS],
            words: [0; WORDS],
            end: None,
        }
    }

    /// Records that `word` was read at `address`.
    #[inline]
    pub fn note(&mut self, address: u64, word: u64) {
        let n = self.count;
        let (at, value) = (place(address, self.sp), place(word, self.sp));
        if n == WORDS || at == Place::Between || value == Place::Between {
            self.usable = false;
            return;
        }
        let (near_address, near_word) = (at == Place::Near, value == Place::Near);
        self.near_addresses |= u32::from(near_address) << n;
        self.near_words |= u32::from(near_word) << n;
        self.addresses[n] = if near_address { address.wrapping_sub(self.sp) } else { address };
        self.words[n] = if near_word { word.wrapping_sub(self.sp) } else { word };
        self.count = n + 1;
    }

    /// Marks the log as unusable, because the walk depends on more than was recorded.
    pub fn spoil(&mut self) {
        self.usable = false;
    }

    /// Ends this part at the frame pointer that is saved at `address`. Its value does not matter.
    pub fn end_at(&mut self, address: u64) {
        match place(address, self.sp) {
            Place::Near => self.end = Some((true, address.wrapping_sub(self.sp))),
            Place::Elsewhere => self.end = Some((false, address)),
            Place::Between => self.usable = false,
        }
    }

    /// Whether all words are unchanged, on the stack at `sp`. The last word is compared first,
    /// because walks mostly differ in outer frames.
    #[inline]
    fn holds(&self, sp: u64, read: &mut impl FnMut(u64) -> Option<u64>) -> bool {
        (0..self.count).rev().all(|i| {
            let base = |near: u32| if near >> i & 1 != 0 { sp } else { 0 };
            let address = self.addresses[i].wrapping_add(base(self.near_addresses));
            let word = self.words[i].wrapping_add(base(self.near_words));
            read(address) == Some(word)
        })
    }
}

/// A part of a walk that was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Found<T> {
    /// Its result.
    pub result: T,
    /// The virtual address of the frame pointer at which it ends.
    pub frame_pointer_at: Option<u64>,
}

struct Entry<T> {
    function: u64,
    ret: u64,
    log: Log,
    result: T,
}

/// Parts of walks and their results, for one thread.
pub struct Memo<T> {
    /// Hashes of the entries. 0 if there is none.
    hashes: Box<[[u64; WAYS]]>,
    entries: Box<[Option<Entry<T>>]>,
    next: usize,
    generation: u64,
}

impl<T> Default for Memo<T> {
    fn default() -> Memo<T> {
        let entries = (0..SETS * WAYS).map(|_| None).collect();
        Memo { hashes: vec![[0; WAYS]; SETS].into(), entries, next: 0, generation: 0 }
    }
}

impl<T: Copy> Memo<T> {
    /// The result of the same part, if it was kept since the rules last changed. `generation` is
    /// the number of the current rules. `read` returns the words that the walk would read.
    #[inline]
    pub fn find(
        &mut self,
        start: Start,
        generation: u64,
        mut read: impl FnMut(u64) -> Option<u64>,
    ) -> Option<Found<T>> {
        if self.generation != generation {
            self.hashes.fill([0; WAYS]);
            self.entries.fill_with(|| None);
            self.generation = generation;
        }
        let hash = start.hash();
        let set = set_of(hash);
        for way in (0..WAYS).filter(|way| self.hashes[set][*way] == hash) {
            let entry = self.entries[set * WAYS + way].as_ref()?;
            if (entry.function, entry.ret) == (start.function, start.ret) && entry.log.holds(start.sp, &mut read) {
                let end = entry.log.end.map(|(near, at)| if near { at.wrapping_add(start.sp) } else { at });
                return Some(Found { result: entry.result, frame_pointer_at: end });
            }
        }
        None
    }

    /// Keeps a part, and replaces another one.
    pub fn keep(&mut self, start: Start, log: Log, result: T) {
        if !log.usable {
            return;
        }
        let hash = start.hash();
        let (set, way) = (set_of(hash), self.next % WAYS);
        self.next += 1;
        self.hashes[set][way] = hash;
        self.entries[set * WAYS + way] = Some(Entry { function: start.function, ret: start.ret, log, result });
    }
}

fn set_of(hash: u64) -> usize {
    (hash >> 40) as usize % SETS
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashMap;

    fn result(found: Option<Found<i32>>) -> Option<i32> {
        found.map(|f| f.result)
    }

    const STACK: u64 = 0xffff_c900_0000_4000;

    fn start(sp: u64) -> Start {
        Start { function: 0x1000, ret: 0x2000, sp }
    }

    /// A stack whose words at 8 and 24 lead to a distant stack.
    fn stack(at: u64) -> HashMap<u64, u64> {
        [(at + 8, 0x1234), (at + 24, at + 64), (at + 64, 0xffff_c900_0100_0000), (0xffff_c900_0100_0000, 7)].into()
    }

    fn walk(memory: &HashMap<u64, u64>, sp: u64) -> Log {
        let mut log = Log::new(sp);
        let mut read = |at: u64| {
            log.note(at, memory[&at]);
            memory[&at]
        };
        read(sp + 8);
        let saved = read(sp + 24);
        let far = read(saved);
        read(far);
        log
    }

    #[test]
    fn the_same_path_on_another_stack() {
        let mut memo = Memo::default();
        let here = stack(STACK);
        memo.keep(start(STACK), walk(&here, STACK), 5);
        assert_eq!(result(memo.find(start(STACK), 0, |at| here.get(&at).copied())), Some(5));
        let other = STACK + (64 << 14);
        let there = stack(other);
        assert_eq!(result(memo.find(start(other), 0, |at| there.get(&at).copied())), Some(5));
    }

    #[test]
    fn any_word_that_differs_counts() {
        let mut memo = Memo::default();
        let here = stack(STACK);
        memo.keep(start(STACK), walk(&here, STACK), 5);
        for at in here.keys() {
            let mut changed = here.clone();
            *changed.get_mut(at).unwrap() += 8;
            assert_eq!(memo.find(start(STACK), 0, |at| changed.get(&at).copied()), None, "{at:#x}");
            changed.remove(at);
            assert_eq!(memo.find(start(STACK), 0, |at| changed.get(&at).copied()), None, "{at:#x}");
        }
        // The pointer to its own stack, on another stack.
        let other = STACK + (64 << 14);
        let mut there = stack(other);
        there.insert(other + 24, STACK + 64);
        there.insert(STACK + 64, 0xffff_c900_0100_0000);
        assert_eq!(result(memo.find(start(other), 0, |at| there.get(&at).copied())), None);
        let elsewhere = Start { ret: 0x2001, ..start(STACK) };
        assert_eq!(memo.find(elsewhere, 0, |at| here.get(&at).copied()), None);
    }

    #[test]
    fn a_part_ends_at_a_frame_pointer_whatever_it_is() {
        let mut memo = Memo::default();
        let mut log = Log::new(STACK);
        log.note(STACK + 8, 5);
        log.end_at(STACK + 16);
        memo.keep(start(STACK), log, 1);
        let other = STACK + (3 << 14);
        let found = memo.find(start(other), 0, |at| (at == other + 8).then_some(5));
        assert_eq!(found, Some(Found { result: 1, frame_pointer_at: Some(other + 16) }));
    }

    #[test]
    fn rules_that_change_and_walks_that_cannot_be_kept() {
        let mut memo = Memo::default();
        let here = stack(STACK);
        memo.keep(start(STACK), walk(&here, STACK), 5);
        assert_eq!(memo.find(start(STACK), 1, |at| here.get(&at).copied()), None, "a module was loaded");
        let mut spoilt = walk(&here, STACK);
        spoilt.spoil();
        memo.keep(start(STACK), spoilt, 6);
        let mut long = Log::new(STACK);
        (0..=WORDS as u64).for_each(|i| long.note(STACK + 8 * i, 0));
        memo.keep(start(STACK), long, 7);
        let mut between = Log::new(STACK);
        between.note(STACK + NEAR + 8, 0);
        memo.keep(start(STACK), between, 8);
        assert_eq!(memo.find(start(STACK), 1, |_| Some(0)), None);
    }
}
