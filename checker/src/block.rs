//! A live object as a block of guest memory. There may be millions of them, so a block is small.

use detector::objects::{Kind, Object};

/// A live object whose address and size are known.
pub struct Block {
    /// Virtual address, or `__percpu` pointer.
    pub addr: u64,
    /// Size in bytes, as kmemleak counts it.
    pub size: u64,
    /// The allocator that it comes from.
    pub kind: Kind,
    /// Its index in the live map's snapshot, or [`UNSEEN`].
    pub(crate) object: u32,
}

impl Block {
    /// The index of blocks whose allocation was not seen.
    const UNSEEN: u32 = u32::MAX;

    /// A block for the live map's object number `object`.
    pub(crate) fn of(addr: u64, size: u64, kind: Kind, object: usize) -> Block {
        Block { addr, size, kind, object: u32::try_from(object).unwrap_or(Block::UNSEEN) }
    }

    /// A block that only the kernel's allocator metadata shows.
    pub(crate) fn unseen(addr: u64, size: u64, kind: Kind) -> Block {
        Block { addr, size, kind, object: Block::UNSEEN }
    }

    /// Whether its allocation was seen. An unseen block is never a leak by default.
    pub fn seen(&self) -> bool {
        self.object != Block::UNSEEN
    }

    /// Its entry in the live map. `objects` is the snapshot.
    pub(crate) fn object<'a>(&self, objects: &'a [(u64, Object)]) -> &'a Object {
        match objects.get(self.object as usize) {
            Some((_, object)) => object,
            None => &UNSEEN[self.kind as usize],
        }
    }
}

/// Entries for objects whose allocation was not seen, indexed by kind.
static UNSEEN: [Object; 5] = [
    Object::unseen(Kind::Slab),
    Object::unseen(Kind::Large),
    Object::unseen(Kind::Vmalloc),
    Object::unseen(Kind::Percpu),
    Object::unseen(Kind::Pages),
];
