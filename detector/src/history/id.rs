//! Numbers of objects.
//!
//! The number of an object consists of the place of its record and of a generation, which differs
//! from that of the place's earlier objects. A word that still refers to an earlier object is thus
//! not taken for a reference to the new one. Generations come back after 511 objects.

/// Bits of the place.
pub(super) const PLACE: u32 = 22;
/// Most objects with a record.
pub const MAX: usize = 1 << PLACE;
/// In a record: the object is gone. The place may be used again.
pub(super) const GONE: u32 = 1 << 31;
/// Generations, with [`GONE`] excluded. Generation 0 is that of no object.
pub(super) const GENERATIONS: u32 = 1 << (31 - PLACE);

/// The number of an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Id(pub u32);

impl Id {
    /// No object, or none that is known.
    pub const NONE: Id = Id(0);

    /// Whether it is the number of an object.
    #[inline]
    pub fn is_object(self) -> bool {
        self.0 >> PLACE != 0 && self.0 & GONE == 0
    }

    /// Index of its record.
    #[inline]
    pub(super) fn place(self) -> usize {
        (self.0 & ((1 << PLACE) - 1)) as usize
    }
}
