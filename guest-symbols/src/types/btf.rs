//! BPF Type Format: the types and function prototypes in the kernel's own image
//! (Documentation/bpf/btf.rst). They are read in one pass into a table of offsets. Names are
//! compared in place.
//!
//! This is not a crate because the image is untrusted. The time to read it must be bounded by its
//! length. An unknown kind ends the table there, and what precedes it stays usable.

use crate::memory::u32_at;
use hashbrown::HashTable;
use std::hash::BuildHasher;

mod all;
mod numbers;

const MAGIC: u16 = 0xeb9f;
/// `sizeof(struct btf_header)` (include/uapi/linux/btf.h), which may grow.
const HEADER: usize = 24;
/// The most modifiers and typedefs that are followed. A longer chain is a loop.
const MAX_CHAIN: usize = 32;
/// The deepest nesting of anonymous structs in the search for a member, and of arrays of arrays.
const MAX_DEPTH: usize = 8;
/// The most members that one search examines. The largest structs of kernels have about 300.
const MAX_MEMBERS: usize = 1 << 16;

pub(super) mod kind {
    pub const INT: u32 = 1;
    pub const PTR: u32 = 2;
    pub const ARRAY: u32 = 3;
    pub const STRUCT: u32 = 4;
    pub const UNION: u32 = 5;
    pub const ENUM: u32 = 6;
    pub const FWD: u32 = 7;
    pub const TYPEDEF: u32 = 8;
    pub const VOLATILE: u32 = 9;
    pub const CONST: u32 = 10;
    pub const RESTRICT: u32 = 11;
    pub const FUNC: u32 = 12;
    pub const FUNC_PROTO: u32 = 13;
    pub const VAR: u32 = 14;
    pub const DATASEC: u32 = 15;
    pub const FLOAT: u32 = 16;
    pub const DECL_TAG: u32 = 17;
    pub const TYPE_TAG: u32 = 18;
    pub const ENUM64: u32 = 19;
}

/// Why a BTF blob was rejected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BtfError {
    /// It does not start with a BTF header of version 1.
    #[error("no BTF header")]
    Header,
    /// The header's sections are outside the blob, which has this many bytes.
    #[error("the BTF header points outside its {0} bytes")]
    Truncated(usize),
}

/// A struct member that was found by name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Member {
    /// Offset in bits from the start of the struct.
    pub bit_offset: u64,
    /// Width in bits, if the member is a bit field.
    pub bits: Option<u32>,
    /// The id of its type.
    pub type_id: u32,
}

impl Member {
    /// Offset in bytes from the start of the struct. For a bit field it is the first byte.
    pub fn offset(&self) -> u64 {
        self.bit_offset / 8
    }
}

#[derive(Clone, Copy)]
struct Type {
    /// Offset of the record in `data`.
    at: u32,
    name: u32,
    info: u32,
    /// Size in bytes, or the id of the type that it refers to.
    size_or_type: u32,
}

impl Type {
    fn kind(&self) -> u32 {
        (self.info >> 24) & 0x1f
    }
    fn vlen(&self) -> usize {
        (self.info & 0xffff) as usize
    }
    fn kind_flag(&self) -> bool {
        self.info >> 31 != 0
    }
    /// Bytes that follow the common record.
    fn tail(&self) -> Option<usize> {
        Some(match self.kind() {
            kind::INT | kind::VAR | kind::DECL_TAG => 4,
            kind::ARRAY => 12,
            kind::STRUCT | kind::UNION | kind::DATASEC | kind::ENUM64 => 12 * self.vlen(),
            kind::ENUM | kind::FUNC_PROTO => 8 * self.vlen(),
            kind::PTR
            | kind::FWD
            | kind::FLOAT
            | kind::FUNC
            | kind::TYPEDEF
            | kind::VOLATILE
            | kind::CONST
            | kind::RESTRICT
            | kind::TYPE_TAG => 0,
            _ => return None,
        })
    }
}

/// The kernel's types.
pub struct Btf {
    data: Vec<u8>,
    /// Start of the strings in `data`.
    strings: usize,
    types: Vec<Type>,
    by_name: HashTable<u32>,
    hasher: hashbrown::DefaultHashBuilder,
}

impl Btf {
    /// The length in bytes of the BTF blob at the start of `data`, from its header.
    ///
    /// # Errors
    /// [`BtfError::Header`], or [`BtfError::Truncated`] if `data` is shorter than the blob.
    pub fn blob_len(data: &[u8]) -> Result<usize, BtfError> {
        Ok(Self::sections(data)?.2)
    }

    /// Offsets of the types, of the strings, and of the end.
    fn sections(data: &[u8]) -> Result<(usize, usize, usize), BtfError> {
        if data.get(..2) != Some(&MAGIC.to_le_bytes()) || data.get(2) != Some(&1) {
            return Err(BtfError::Header);
        }
        let field = |at| u32_at(data, at).map(|v| v as usize).ok_or(BtfError::Header);
        let header = field(4).ok().filter(|len| *len >= HEADER).ok_or(BtfError::Header)?;
        let types = header + field(8)?;
        let strings = header + field(16)?;
        let end = strings + field(20)?;
        if types > strings || types + field(12)? > strings || end > data.len() {
            return Err(BtfError::Truncated(data.len()));
        }
        Ok((types, strings, end))
    }

    /// Reads a BTF blob. Bytes after its end are ignored.
    ///
    /// # Errors
    /// [`BtfError`] if the header is wrong. A record of an unknown kind ends the table there.
    pub fn parse(data: &[u8]) -> Result<Btf, BtfError> {
        let (types_at, strings, end) = Self::sections(data)?;
        let types_end = types_at + u32_at(data, 12).ok_or(BtfError::Header)? as usize;
        // Id 0 is void.
        let mut types = vec![Type { at: 0, name: 0, info: 0, size_or_type: 0 }];
        let mut at = types_at;
        while at + 12 <= types_end {
            let word = |i| u32_at(data, at + i).unwrap_or(0);
            let ty = Type { at: at as u32, name: word(0), info: word(4), size_or_type: word(8) };
            let Some(tail) = ty.tail().filter(|t| at + 12 + t <= types_end) else {
                log::warn!("BTF type {} is of unknown kind {}: types after it are not read", types.len(), ty.kind());
                break;
            };
            types.push(ty);
            at += 12 + tail;
        }
        let mut btf = Btf {
            data: data[..end].to_vec(),
            strings,
            by_name: HashTable::with_capacity(types.len() / 2),
            types,
            hasher: Default::default(),
        };
        btf.index();
        Ok(btf)
    }

    /// The blob that [`Btf::parse`] read.
    pub fn blob(&self) -> &[u8] {
        &self.data
    }

    fn index(&mut self) {
        let Btf { data, strings, types, by_name, hasher } = self;
        let name = |i: u32| string(data, *strings, types[i as usize].name);
        for (id, ty) in types.iter().enumerate() {
            let wanted = matches!(ty.kind(), kind::STRUCT | kind::UNION | kind::FUNC | kind::ENUM | kind::ENUM64);
            let id = id as u32;
            if wanted && ty.name != 0 {
                // The first of several types with the same name always wins.
                let same = |&j: &u32| types[j as usize].kind() == ty.kind() && name(j) == name(id);
                by_name.entry(hasher.hash_one(name(id)), same, |&j| hasher.hash_one(name(j))).or_insert(id);
            }
        }
    }

    fn name(&self, offset: u32) -> &[u8] {
        string(&self.data, self.strings, offset)
    }

    fn find(&self, wanted: &str, kinds: &[u32]) -> Option<&Type> {
        let fits = |&i: &u32| {
            let ty = &self.types[i as usize];
            kinds.contains(&ty.kind()) && self.name(ty.name) == wanted.as_bytes()
        };
        let id = self.by_name.find(self.hasher.hash_one(wanted.as_bytes()), fits)?;
        Some(&self.types[*id as usize])
    }

    /// Number of types.
    pub fn len(&self) -> usize {
        self.types.len()
    }

    /// Whether there are no types except void.
    pub fn is_empty(&self) -> bool {
        self.types.len() <= 1
    }

    /// Size in bytes of a struct or union.
    pub fn size_of(&self, name: &str) -> Option<u64> {
        Some(self.find(name, &[kind::STRUCT, kind::UNION])?.size_or_type.into())
    }

    /// Finds a member of a struct or union by a dotted path (`cpu_cache`, `pcp.lists`). Anonymous
    /// members are searched as in C.
    pub fn member(&self, name: &str, path: &str) -> Option<Member> {
        let mut ty = self.find(name, &[kind::STRUCT, kind::UNION])?;
        let mut found = Member { bit_offset: 0, bits: None, type_id: 0 };
        let mut left = MAX_MEMBERS;
        for (i, part) in path.split('.').enumerate() {
            if i > 0 {
                ty = self.strip(found.type_id)?;
            }
            let member = self.member_of(ty, part.as_bytes(), 0, &mut left)?;
            found = Member { bit_offset: found.bit_offset + member.bit_offset, ..member };
        }
        Some(found)
    }

    /// Byte offset of a member. See [`Btf::member`].
    pub fn offset_of(&self, name: &str, path: &str) -> Option<u64> {
        Some(self.member(name, path)?.offset())
    }

    /// Size in bytes of a type: integers, pointers, enums, structs, arrays.
    pub fn type_size(&self, id: u32) -> Option<u64> {
        self.size_within(id, 0)
    }

    fn size_within(&self, id: u32, depth: usize) -> Option<u64> {
        let ty = self.strip(id).filter(|_| depth <= MAX_DEPTH)?;
        match ty.kind() {
            kind::PTR => Some(8),
            kind::ARRAY => {
                let element = self.size_within(u32_at(&self.data, ty.at as usize + 12)?, depth + 1)?;
                element.checked_mul(u32_at(&self.data, ty.at as usize + 20)?.into())
            }
            kind::INT | kind::STRUCT | kind::UNION | kind::ENUM | kind::ENUM64 | kind::FLOAT => {
                Some(ty.size_or_type.into())
            }
            _ => None,
        }
    }

    /// Number of elements of array type `id`.
    pub fn array_len(&self, id: u32) -> Option<u64> {
        let ty = self.strip(id).filter(|t| t.kind() == kind::ARRAY)?;
        u32_at(&self.data, ty.at as usize + 20).map(u64::from)
    }

    fn members(&self, ty: &Type) -> impl Iterator<Item = (u32, Member)> + '_ {
        let (at, flag) = (ty.at as usize + 12, ty.kind_flag());
        (0..ty.vlen()).filter_map(move |i| {
            let word = |n: usize| u32_at(&self.data, at + 12 * i + 4 * n);
            let (name, type_id, offset) = (word(0)?, word(1)?, word(2)?);
            let (bit_offset, bits) =
                if flag { (offset & 0xff_ffff, Some(offset >> 24).filter(|&b| b != 0)) } else { (offset, None) };
            Some((name, Member { bit_offset: bit_offset.into(), bits, type_id }))
        })
    }

    /// Finds one name of a path, as in [`Btf::member`]. `left` is the number of members that may
    /// still be examined. Structs may contain each other many times.
    fn member_of(&self, ty: &Type, wanted: &[u8], depth: usize, left: &mut usize) -> Option<Member> {
        if depth > MAX_DEPTH || !matches!(ty.kind(), kind::STRUCT | kind::UNION) {
            return None;
        }
        self.members(ty).find_map(|(name, member)| {
            *left = left.checked_sub(1)?;
            if name != 0 {
                return (self.name(name) == wanted).then_some(member);
            }
            let inner = self.member_of(self.strip(member.type_id)?, wanted, depth + 1, left)?;
            Some(Member { bit_offset: member.bit_offset + inner.bit_offset, ..inner })
        })
    }

    /// Follows typedefs and qualifiers.
    fn strip(&self, mut id: u32) -> Option<&Type> {
        for _ in 0..MAX_CHAIN {
            let ty = self.types.get(id as usize)?;
            match ty.kind() {
                kind::TYPEDEF | kind::VOLATILE | kind::CONST | kind::RESTRICT | kind::TYPE_TAG => {
                    id = ty.size_or_type;
                }
                _ => return Some(ty),
            }
        }
        None
    }

    /// The parameter names of a kernel function, in order. Unnamed parameters are empty.
    pub fn parameters(&self, function: &str) -> Option<Vec<&str>> {
        let func = self.find(function, &[kind::FUNC])?;
        let proto = self.types.get(func.size_or_type as usize)?;
        if proto.kind() != kind::FUNC_PROTO {
            return None;
        }
        (0..proto.vlen())
            .map(|i| {
                let name = u32_at(&self.data, proto.at as usize + 12 + 8 * i)?;
                std::str::from_utf8(self.name(name)).ok()
            })
            .collect()
    }

    /// Size in bytes of a function's return type. 0 for void.
    pub fn return_size(&self, function: &str) -> Option<u64> {
        let func = self.find(function, &[kind::FUNC])?;
        let proto = self.types.get(func.size_or_type as usize)?;
        if proto.size_or_type == 0 { Some(0) } else { self.type_size(proto.size_or_type) }
    }

    /// The struct to which a function returns a pointer: its name, and its size in bytes.
    pub fn returns_pointer_to(&self, function: &str) -> Option<(String, u64)> {
        let func = self.find(function, &[kind::FUNC])?;
        let proto = self.types.get(func.size_or_type as usize)?;
        let pointer = self.strip(proto.size_or_type).filter(|t| t.kind() == kind::PTR)?;
        let target = self.strip(pointer.size_or_type).filter(|t| t.kind() == kind::STRUCT && t.name != 0)?;
        Some((crate::symbols::readable(self.name(target.name)), target.size_or_type.into()))
    }

    /// The value of an enumerator of a named enum.
    pub fn enumerator(&self, name: &str, wanted: &str) -> Option<u64> {
        let ty = self.find(name, &[kind::ENUM, kind::ENUM64])?;
        let (step, wide) = if ty.kind() == kind::ENUM { (8, false) } else { (12, true) };
        (0..ty.vlen()).find_map(|i| {
            let at = ty.at as usize + 12 + step * i;
            if self.name(u32_at(&self.data, at)?) != wanted.as_bytes() {
                return None;
            }
            let high = if wide { u64::from(u32_at(&self.data, at + 8)?) << 32 } else { 0 };
            Some(high | u64::from(u32_at(&self.data, at + 4)?))
        })
    }
}

fn string(data: &[u8], strings: usize, offset: u32) -> &[u8] {
    let bytes = data.get(strings + offset as usize..).unwrap_or(&[]);
    &bytes[..memchr::memchr(0, bytes).unwrap_or(bytes.len())]
}

#[cfg(test)]
mod tests;
