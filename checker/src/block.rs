//! A live object as a block of guest memory. There may be millions.

use detector::objects::{Kind, Object};

/// A live object whose place and size are known.
pub struct Block {
    /// Virtual address, or `__percpu` pointer.
    pub addr: u64,
    /// Bytes, as kmemleak counts them.
    pub size: u64,
    /// What it is made of.
    pub kind: Kind,
    /// Its place in the live map's snapshot.
    pub(crate) object: u32,
}

impl Block {
    /// No place: what only the kernel's books know.
    const UNSEEN: u32 = u32::MAX;

    /// A block of the live map's object number `object`.
    pub(crate) fn of(addr: u64, size: u64, kind: Kind, object: usize) -> Block {
        Block { addr, size, kind, object: u32::try_from(object).unwrap_or(Block::UNSEEN) }
    }

    /// A block that only the kernel's books know.
    pub(crate) fn unseen(addr: u64, size: u64, kind: Kind) -> Block {
        Block { addr, size, kind, object: Block::UNSEEN }
    }

    /// Whether its allocation was seen: what only the kernel's books know is never a leak.
    pub fn seen(&self) -> bool {
        self.object != Block::UNSEEN
    }

    /// What the live map knows of it; `objects` is its snapshot.
    pub(crate) fn object<'a>(&self, objects: &'a [(u64, Object)]) -> &'a Object {
        match objects.get(self.object as usize) {
            Some((_, object)) => object,
            None => &UNSEEN[self.kind as usize],
        }
    }
}

/// By kind, what is known of an object whose allocation was not seen.
static UNSEEN: [Object; 5] = [
    Object::unseen(Kind::Slab),
    Object::unseen(Kind::Large),
    Object::unseen(Kind::Vmalloc),
    Object::unseen(Kind::Percpu),
    Object::unseen(Kind::Pages),
];
