//! The words of a struct that are not pointers.

use super::{Btf, MAX_DEPTH, Type, kind};
use crate::memory::u32_at;
use std::ops::Range;

/// Bytes of a word, and of a pointer.
const WORD: u64 = 8;
/// Structs with more words, or with arrays of more structs, are not examined.
const MAX_WORDS: u64 = 1 << 16;
/// Structs with more members, including those of nested structs, are not examined.
const MAX_PARTS: usize = 1 << 20;

impl Btf {
    /// The words of a struct that hold only numbers, as byte ranges in ascending order.
    ///
    /// No part of such a word is a pointer, a union with a pointer, or of an unknown type. The type
    /// does not show how an integer is used. Some integers are pointers with flags in their low
    /// bits. `None` if there is no such struct.
    pub fn numbers(&self, name: &str) -> Option<Vec<Range<u64>>> {
        let ty = self.find(name, &[kind::STRUCT])?;
        let size = u64::from(ty.size_or_type);
        let mut is_number = vec![true; usize::try_from(size / WORD).ok().filter(|n| *n as u64 <= MAX_WORDS)?];
        let mut left = MAX_PARTS;
        self.pointers(ty, 0, 0, &mut left, &mut |bytes| {
            let last = bytes.end.div_ceil(WORD).min(is_number.len() as u64);
            for word in bytes.start / WORD..last {
                is_number[word as usize] = false;
            }
        });
        if left == 0 {
            return None;
        }
        let mut ranges: Vec<Range<u64>> = Vec::new();
        for word in (0..size / WORD).filter(|i| is_number[*i as usize]) {
            match ranges.last_mut().filter(|last| last.end == word * WORD) {
                Some(last) => last.end += WORD,
                None => ranges.push(word * WORD..(word + 1) * WORD),
            }
        }
        Some(ranges)
    }

    /// Calls `each` with the bytes that may be pointers, of a struct at offset `base`.
    fn pointers(&self, ty: &Type, base: u64, depth: usize, left: &mut usize, each: &mut impl FnMut(Range<u64>)) {
        for (_, member) in self.members(ty) {
            self.pointers_of_type(member.type_id, base.saturating_add(member.offset()), depth + 1, left, each);
        }
    }

    fn pointers_of_type(&self, id: u32, at: u64, depth: usize, left: &mut usize, each: &mut impl FnMut(Range<u64>)) {
        *left = left.saturating_sub(1);
        if *left == 0 {
            return;
        }
        // The whole member, if its type is not understood.
        let mut whole = || each(at..at.saturating_add(self.type_size(id).unwrap_or(WORD).max(1)));
        let Some(ty) = self.strip(id).filter(|_| depth <= MAX_DEPTH) else { return whole() };
        match ty.kind() {
            kind::INT | kind::ENUM | kind::ENUM64 | kind::FLOAT => {}
            kind::STRUCT => self.pointers(ty, at, depth, left, each),
            // All members of the union that contain pointers.
            kind::UNION => self.pointers(ty, at, depth, left, each),
            kind::ARRAY => {
                let element = u32_at(&self.data, ty.at as usize + 12).unwrap_or(0);
                let (count, size) = (self.array_len(id).unwrap_or(0), self.type_size(element).unwrap_or(0));
                if count > MAX_WORDS || size == 0 {
                    return whole();
                }
                (0..count).for_each(|i| {
                    let at = at.saturating_add(i.saturating_mul(size));
                    self.pointers_of_type(element, at, depth + 1, left, each);
                });
            }
            _ => whole(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `struct s { void *p; u32 a; u32 b; union { u64 n; void *q; }; struct list { void *next,
    /// *prev; } l[2]; u64 c[3]; u32 d; }`, and `struct t` with a member whose type does not exist.
    fn blob() -> Vec<u8> {
        let strings = b"\0s\0t\0";
        let mut t: Vec<u32> = Vec::new();
        let info = |kind: u32, vlen: u32| kind << 24 | vlen;
        t.extend([0, info(kind::INT, 0), 8, 64]); // 1: u64
        t.extend([0, info(kind::INT, 0), 4, 32]); // 2: u32
        t.extend([0, info(kind::PTR, 0), 0]); // 3
        t.extend([0, info(kind::UNION, 2), 8, 0, 1, 0, 0, 3, 0]); // 4
        t.extend([0, info(kind::STRUCT, 2), 16, 0, 3, 0, 0, 3, 64]); // 5: the list
        t.extend([0, info(kind::ARRAY, 0), 0, 5, 1, 2]); // 6
        t.extend([0, info(kind::ARRAY, 0), 0, 1, 1, 3]); // 7
        t.extend([1, info(kind::STRUCT, 7), 88]); // 8
        for (id, at) in [(3, 0), (2, 8), (2, 12), (4, 16), (6, 24), (7, 56), (2, 80)] {
            t.extend([0, id, 8 * at]);
        }
        t.extend([3, info(kind::STRUCT, 2), 16, 0, 1, 0, 0, 99, 64]); // 9
        let types: Vec<u8> = t.iter().flat_map(|w| w.to_le_bytes()).collect();
        let len = types.len() as u32;
        let head = [0x1_eb9f, 24, 0, len, len, strings.len() as u32];
        head.iter().flat_map(|w: &u32| w.to_le_bytes()).chain(types).chain(strings.iter().copied()).collect()
    }

    #[test]
    fn words_in_which_no_pointer_has_a_part() {
        let btf = Btf::parse(&blob()).unwrap();
        // The pointer, the union and the lists are not numbers. Unnamed members are examined by
        // their types as well.
        assert_eq!(btf.numbers("s"), Some(vec![8..16, 56..88]));
        assert_eq!(btf.numbers("t"), Some(std::iter::once(0..8).collect()));
        assert_eq!(btf.numbers("none"), None);
    }
}
