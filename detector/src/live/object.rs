//! One entry of the live map. It has 24 bytes, since a guest may have millions of objects.

use crate::live::comms::CommId;
use crate::live::stacks::StackId;
use serde::{Deserialize, Serialize};

/// The allocator that an object comes from. It decides where the object's size and memory are
/// found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// A slab object. Its size is that of its cache, which the slab itself names.
    Slab,
    /// A `kmalloc()` that is too large for the slab caches and consists of pages.
    Large,
    /// An area of vmalloc space.
    Vmalloc,
    /// A per-CPU area. Its address is the `__percpu` pointer, which is not an address in memory.
    Percpu,
    /// Pages from the page allocator. The address is that of the first page in the direct map.
    /// Another object may start at the same address, since slabs consist of pages.
    Pages,
}

const KINDS: [Kind; 5] = [Kind::Slab, Kind::Large, Kind::Vmalloc, Kind::Percpu, Kind::Pages];

/// A bit field of a word: its lowest bit and its width.
struct Field {
    at: u32,
    bits: u32,
}

impl Field {
    const fn get(&self, word: u64) -> u64 {
        word >> self.at & ((1 << self.bits) - 1)
    }

    const fn put(&self, value: u64) -> u64 {
        (value & ((1 << self.bits) - 1)) << self.at
    }
}

/// `PID_MAX_LIMIT` is 1 << 22 (include/linux/threads.h). `NR_CPUS` is at most 1 << 13
/// (arch/x86/Kconfig).
const PID: Field = Field { at: 0, bits: 22 };
const TGID: Field = Field { at: 22, bits: 22 };
const CPU: Field = Field { at: 44, bits: 13 };
const KIND: Field = Field { at: 57, bits: 3 };
const RCU_PENDING: Field = Field { at: 60, bits: 1 };
const REPORTED: Field = Field { at: 61, bits: 1 };
/// 40 bits last for 12 days at a million allocations a second.
const SEQUENCE: Field = Field { at: 0, bits: 40 };
const COMM: Field = Field { at: 40, bits: 24 };

/// An allocation before it is packed into an [`Object`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Allocation {
    /// The allocator that it comes from.
    pub kind: Kind,
    /// The allocation stack, innermost allocator first.
    pub stack: StackId,
    /// Rises with every allocation.
    pub sequence: u64,
    /// The guest's jiffies.
    pub jiffies: u64,
    /// The task's pid, 0 in interrupts.
    pub pid: u32,
    /// The pid of its process, 0 in interrupts.
    pub tgid: u32,
    /// The CPU, as the kernel numbers them.
    pub cpu: u32,
    /// The task's comm, or `hardirq` or `softirq`.
    pub comm: CommId,
}

/// A live object. Each number has as many bits as the kernel's own limit needs. Larger numbers,
/// which only a corrupted guest has, are cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Object {
    who: u64,
    entry: u64,
    stack: StackId,
    jiffies: u32,
}

impl From<Allocation> for Object {
    #[inline]
    fn from(a: Allocation) -> Object {
        Object {
            who: PID.put(a.pid.into()) | TGID.put(a.tgid.into()) | CPU.put(a.cpu.into()) | KIND.put(a.kind as u64),
            entry: SEQUENCE.put(a.sequence) | COMM.put(a.comm.0.into()),
            stack: a.stack,
            jiffies: a.jiffies as u32,
        }
    }
}

impl Object {
    /// An object whose allocation was not seen.
    pub const fn unseen(kind: Kind) -> Object {
        Object { who: KIND.put(kind as u64), entry: 0, stack: StackId::NONE, jiffies: 0 }
    }

    /// The allocator that it comes from.
    #[inline]
    pub fn kind(&self) -> Kind {
        KINDS.get(KIND.get(self.who) as usize).copied().unwrap_or(Kind::Slab)
    }

    /// Whether the object was passed to `kfree_rcu()`. It is no longer in use, but its memory is
    /// not free.
    #[inline]
    pub fn is_rcu_pending(&self) -> bool {
        RCU_PENDING.get(self.who) != 0
    }

    /// Whether the object was reported before.
    pub fn is_reported(&self) -> bool {
        REPORTED.get(self.who) != 0
    }

    pub(crate) fn set_rcu_pending(&mut self) {
        self.who |= RCU_PENDING.put(1);
    }

    pub(crate) fn set_reported(&mut self) {
        self.who |= REPORTED.put(1);
    }

    /// Its allocation's stack, from the innermost allocator on.
    pub fn stack(&self) -> StackId {
        self.stack
    }

    /// Rises with every allocation.
    #[inline]
    pub fn sequence(&self) -> u64 {
        SEQUENCE.get(self.entry)
    }

    /// The low 32 bits of the guest's jiffies at allocation.
    pub fn jiffies(&self) -> u32 {
        self.jiffies
    }

    /// The task's pid, 0 in interrupts.
    pub fn pid(&self) -> u32 {
        PID.get(self.who) as u32
    }

    /// The pid of its process, 0 in interrupts.
    pub fn tgid(&self) -> u32 {
        TGID.get(self.who) as u32
    }

    /// The CPU, as the kernel numbers them.
    pub fn cpu(&self) -> u32 {
        CPU.get(self.who) as u32
    }

    /// The task's comm, or `hardirq` or `softirq`.
    pub fn comm(&self) -> CommId {
        CommId(COMM.get(self.entry) as u32)
    }

    /// The packed form, for snapshot files.
    pub fn to_words(self) -> [u64; 3] {
        [self.who, self.entry, u64::from(self.stack.0) | u64::from(self.jiffies) << 32]
    }

    /// Reads the packed form. Returns `None` if the kind or a flag is unknown.
    pub fn from_words([who, entry, rest]: [u64; 3]) -> Option<Object> {
        let known = KIND.get(who) < KINDS.len() as u64 && who >> 62 == 0;
        known.then_some(Object { who, entry, stack: StackId(rest as u32), jiffies: (rest >> 32) as u32 })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_fields_come_back() {
        assert_eq!(size_of::<Object>(), 24);
        let a = Allocation {
            kind: Kind::Pages,
            stack: StackId(u32::MAX),
            sequence: (1 << 40) - 1,
            jiffies: 0x1_fffe_ffff,
            pid: (1 << 22) - 1,
            tgid: 1 << 21,
            cpu: 8191,
            comm: CommId((1 << 24) - 2),
        };
        let mut o = Object::from(a);
        assert_eq!((o.kind(), o.stack(), o.sequence(), o.jiffies()), (a.kind, a.stack, a.sequence, 0xfffe_ffff));
        assert_eq!((o.pid(), o.tgid(), o.cpu(), o.comm()), (a.pid, a.tgid, a.cpu, a.comm));
        assert!(!o.is_rcu_pending() && !o.is_reported());
        o.set_rcu_pending();
        o.set_reported();
        assert!(o.is_rcu_pending() && o.is_reported() && o.cpu() == 8191 && o.kind() == Kind::Pages);
        assert_eq!(Object::from_words(o.to_words()), Some(o));
        assert_eq!(Object::from_words([u64::MAX, 0, 0]), None);
        // A number that is cut leaves the other fields alone.
        let o = Object::from(Allocation { pid: u32::MAX, cpu: u32::MAX, tgid: 0, ..a });
        assert_eq!((o.tgid(), o.kind(), o.is_rcu_pending()), (0, Kind::Pages, false));
    }
}
