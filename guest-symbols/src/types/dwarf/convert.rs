//! Reads the types and prototypes of the chosen entries.

use super::entry::{Bytes, Entry, To, Unit};
use super::{DwarfError, Name, Sections, Wanted, What};
use gimli::{EntriesRaw, constants as dw};
use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU64, Ordering};

/// The most typedefs and qualifiers that are followed. A longer chain is a loop.
const MAX_CHAIN: usize = 32;
/// The deepest nesting of anonymous structs, and of arrays of arrays.
const MAX_DEPTH: usize = 12;
/// The most members of a struct, including those of its anonymous structs. Malformed anonymous
/// structs may contain each other many times.
const MAX_PARTS: usize = 1 << 14;
/// The most members, parameters or enumerators of one list. BTF counts them in 16 bits.
const MAX_LIST: usize = 0xffff;

/// A type.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Type<'a> {
    /// void, or an unknown type.
    Void,
    /// An integer. Its size in bytes.
    Int(u32),
    /// A floating-point number. Its size in bytes.
    Float(u32),
    /// A pointer to a named struct or union. `None` if it points to anything else.
    Pointer(Option<(What, Name<'a>)>),
    /// An array. The type of its elements, and their number in all dimensions.
    Array(Box<Type<'a>>, u32),
    /// A struct, union or enum with a name.
    Named(What, Name<'a>),
    /// A struct or union without a name.
    Anonymous(Box<Struct<'a>>),
    /// An enum without a name. Its size in bytes.
    Enum(u32),
    /// A type in another unit. Its offset in `.debug_info`.
    Foreign(u64),
}

/// A struct or union.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Struct<'a> {
    pub is_union: bool,
    pub size: u32,
    pub members: Vec<Member<'a>>,
}

/// A member.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Member<'a> {
    /// Empty if it is anonymous.
    pub name: Name<'a>,
    pub bit_offset: u32,
    /// Width in bits, if it is a bit field.
    pub bits: Option<u8>,
    pub ty: Type<'a>,
}

/// The content of a definition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Body<'a> {
    Struct(Struct<'a>),
    /// Size in bytes, and enumerators.
    Enum(u32, Vec<(Name<'a>, u64)>),
    /// The return type, and the names of the parameters.
    Function(Type<'a>, Vec<Name<'a>>),
}

/// A definition.
pub(super) struct Definition<'a> {
    pub name: Name<'a>,
    pub body: Body<'a>,
}

/// The output of one thread.
#[derive(Default)]
pub(super) struct Converted<'a> {
    /// A buffer for the bytes of units, reused for the next one.
    pub buffer: Vec<u8>,
    pub definitions: Vec<Definition<'a>>,
    /// Types that other units refer to, with their offsets in `.debug_info`.
    pub foreign: Vec<(u64, Type<'a>)>,
    /// Offsets of types in other units that these types refer to.
    pub missing: BTreeSet<u64>,
}

/// Reads the wanted entries of a unit.
pub(super) fn unit<'a>(
    sections: &Sections<'a>,
    start: u64,
    bytes: &[u8],
    wanted: &[Wanted],
    most: &AtomicU64,
    out: &mut Converted<'a>,
) -> Result<(), DwarfError> {
    let Some((unit, _)) = Unit::open(sections, start, bytes)? else { return Ok(()) };
    let mut reader = Reader { unit: &unit, missing: &mut out.missing, left: 0, most };
    for one in wanted {
        reader.left = MAX_PARTS;
        let at = one.at.saturating_sub(start) as usize;
        if one.what == What::Foreign {
            let ty = reader.type_of(To::Here(at), 0).map_err(|why| DwarfError::Unit(start, why))?;
            out.foreign.push((one.at, ty));
        } else if let Some(definition) = reader.definition(at, one.what).map_err(|why| DwarfError::Unit(start, why))? {
            out.definitions.push(definition);
        }
    }
    Ok(())
}

/// The types in other units that are referred to and are not read yet.
pub(super) fn foreign(parts: &mut [Converted<'_>]) -> Vec<Wanted> {
    let known: BTreeSet<u64> = parts.iter().flat_map(|part| part.foreign.iter().map(|(at, _)| *at)).collect();
    let missing = parts.iter_mut().flat_map(|part| std::mem::take(&mut part.missing));
    missing.filter(|at| !known.contains(at)).map(|at| Wanted { at, what: What::Foreign }).collect()
}

/// An entry, and the entries after it.
type Place<'a, 'b, 'c> = (EntriesRaw<'c, Bytes<'b>>, Entry<'a>);

struct Reader<'a, 'b, 'c> {
    unit: &'c Unit<'a, 'b>,
    missing: &'c mut BTreeSet<u64>,
    /// The number of parts that may still be read of this definition.
    left: usize,
    /// The same for all definitions of the file.
    most: &'c AtomicU64,
}

impl<'a, 'b, 'c> Reader<'a, 'b, 'c> {
    fn definition(&mut self, at: usize, what: What) -> Result<Option<Definition<'a>>, gimli::Error> {
        let mut raw = self.unit.entries(at)?;
        let Some(entry) = self.unit.entry(&mut raw)? else { return Ok(None) };
        let Some(name) = entry.name.clone().filter(|name| !name.is_empty()) else { return Ok(None) };
        let body = match (what, entry.tag) {
            (What::Struct, dw::DW_TAG_structure_type) | (What::Union, dw::DW_TAG_union_type) => {
                Body::Struct(self.members(raw, &entry, 0)?)
            }
            (What::Enum, dw::DW_TAG_enumeration_type) => Body::Enum(size(&entry), self.enumerators(raw, &entry)?),
            (What::Function, dw::DW_TAG_subprogram) => {
                let returns = entry.ty.map_or(Ok(Type::Void), |to| self.type_of(to, 0))?;
                Body::Function(returns, self.parameters(raw, &entry)?)
            }
            _ => return Ok(None),
        };
        Ok(Some(Definition { name, body }))
    }

    /// Calls `each` with the children of the last read entry, until it returns that there are
    /// enough.
    fn children(
        &mut self,
        mut raw: EntriesRaw<'c, Bytes<'b>>,
        entry: &Entry<'a>,
        mut each: impl FnMut(&mut Self, &Entry<'a>) -> Result<bool, gimli::Error>,
    ) -> Result<(), gimli::Error> {
        if !entry.has_children {
            return Ok(());
        }
        let unit = self.unit;
        while let Some(child) = unit.entry(&mut raw)? {
            if !each(self, &child)? {
                break;
            }
            unit.skip_children(&mut raw, &child)?;
        }
        Ok(())
    }

    fn members(
        &mut self,
        raw: EntriesRaw<'c, Bytes<'b>>,
        entry: &Entry<'a>,
        depth: usize,
    ) -> Result<Struct<'a>, gimli::Error> {
        let mut members = Vec::new();
        self.children(raw, entry, |reader, child| {
            if child.tag != dw::DW_TAG_member {
                return Ok(true);
            }
            let less = |left: u64| left.checked_sub(1);
            let is_spent = reader.most.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less).is_err();
            if is_spent || reader.left == 0 || members.len() >= MAX_LIST {
                return Ok(false);
            }
            reader.left -= 1;
            let (ty, bytes) = match child.ty {
                Some(to) => (reader.type_of(to, depth)?, reader.storage(child, to)?),
                None => (Type::Void, 0),
            };
            let bits = child.bit_size.and_then(|bits| u8::try_from(bits).ok()).filter(|bits| *bits != 0);
            let within = match (child.data_bit_offset, child.bit_offset) {
                (Some(at), _) => at,
                // DWARF 3 counts from the most significant bit of the storage unit.
                (None, Some(from_top)) => (bytes * 8).wrapping_sub(from_top).wrapping_sub(u64::from(bits.unwrap_or(0))),
                (None, None) => 0,
            };
            let bit_offset = child.location.wrapping_mul(8).wrapping_add(within);
            let Ok(bit_offset) = u32::try_from(bit_offset) else { return Ok(true) };
            members.push(Member { name: child.name.clone().unwrap_or_default(), bit_offset, bits, ty });
            Ok(true)
        })?;
        Ok(Struct { is_union: entry.tag == dw::DW_TAG_union_type, size: size(entry), members })
    }

    /// The size in bytes of a bit field's storage unit.
    fn storage(&self, member: &Entry<'_>, to: To) -> Result<u64, gimli::Error> {
        match (member.bit_offset, member.size) {
            (None, _) => Ok(0),
            (Some(_), Some(size)) => Ok(size.min(16)),
            (Some(_), None) => Ok(self.stripped(to)?.map_or(0, |(.., entry)| entry.size.unwrap_or(0).min(16))),
        }
    }

    fn enumerators(
        &mut self,
        raw: EntriesRaw<'c, Bytes<'b>>,
        entry: &Entry<'a>,
    ) -> Result<Vec<(Name<'a>, u64)>, gimli::Error> {
        let mut values = Vec::new();
        self.children(raw, entry, |_, child| {
            if let (dw::DW_TAG_enumerator, Some(name)) = (child.tag, &child.name) {
                values.push((name.clone(), child.value));
            }
            Ok(values.len() < MAX_LIST)
        })?;
        Ok(values)
    }

    fn parameters(&mut self, raw: EntriesRaw<'c, Bytes<'b>>, entry: &Entry<'a>) -> Result<Vec<Name<'a>>, gimli::Error> {
        let mut names = Vec::new();
        self.children(raw, entry, |_, child| {
            match child.tag {
                dw::DW_TAG_formal_parameter => names.push(child.name.clone().unwrap_or_default()),
                // BTF has an unnamed parameter for the three dots.
                dw::DW_TAG_unspecified_parameters => names.push(Name::default()),
                _ => {}
            }
            Ok(names.len() < MAX_LIST)
        })?;
        Ok(names)
    }

    /// Follows typedefs and qualifiers in this unit. Returns the offset of the type, the entries
    /// after it, and its entry. `Err` is the offset of a type in another unit.
    fn follow(&self, mut to: To) -> Result<Option<Result<Place<'a, 'b, 'c>, u64>>, gimli::Error> {
        for _ in 0..MAX_CHAIN {
            let at = match to {
                To::Here(at) => at,
                To::Anywhere(at) => return Ok(Some(Err(at))),
            };
            let mut raw = self.unit.entries(at)?;
            let Some(entry) = self.unit.entry(&mut raw)? else { return Ok(None) };
            match entry.tag {
                dw::DW_TAG_typedef
                | dw::DW_TAG_const_type
                | dw::DW_TAG_volatile_type
                | dw::DW_TAG_restrict_type
                | dw::DW_TAG_atomic_type => match entry.ty {
                    Some(next) => to = next,
                    None => return Ok(None),
                },
                _ => return Ok(Some(Ok((raw, entry)))),
            }
        }
        Ok(None)
    }

    fn stripped(&self, to: To) -> Result<Option<Place<'a, 'b, 'c>>, gimli::Error> {
        Ok(self.follow(to)?.and_then(Result::ok))
    }

    fn type_of(&mut self, to: To, depth: usize) -> Result<Type<'a>, gimli::Error> {
        let (raw, entry) = match self.follow(to)? {
            None => return Ok(Type::Void),
            Some(Err(at)) => {
                self.missing.insert(at);
                return Ok(Type::Foreign(at));
            }
            Some(Ok(found)) => found,
        };
        let name = entry.name.clone().filter(|name| !name.is_empty());
        Ok(match (entry.tag, name) {
            (dw::DW_TAG_base_type, _) if entry.is_float => Type::Float(size(&entry)),
            (dw::DW_TAG_base_type, _) => Type::Int(size(&entry)),
            (dw::DW_TAG_pointer_type, _) => Type::Pointer(match entry.ty {
                Some(to) => self.target(to)?,
                None => None,
            }),
            (dw::DW_TAG_structure_type, Some(name)) => Type::Named(What::Struct, name),
            (dw::DW_TAG_union_type, Some(name)) => Type::Named(What::Union, name),
            (dw::DW_TAG_enumeration_type, Some(name)) => Type::Named(What::Enum, name),
            (dw::DW_TAG_enumeration_type, None) => Type::Enum(size(&entry)),
            _ if depth >= MAX_DEPTH => Type::Void,
            (dw::DW_TAG_structure_type | dw::DW_TAG_union_type, None) => {
                Type::Anonymous(Box::new(self.members(raw, &entry, depth + 1)?))
            }
            (dw::DW_TAG_array_type, _) => {
                let element = entry.ty.map_or(Ok(Type::Void), |to| self.type_of(to, depth + 1))?;
                let mut count = 1u64;
                self.children(raw, &entry, |_, child| {
                    if child.tag == dw::DW_TAG_subrange_type {
                        count = count.saturating_mul(child.count.unwrap_or(0));
                    }
                    Ok(true)
                })?;
                Type::Array(Box::new(element), u32::try_from(count).unwrap_or(0))
            }
            _ => Type::Void,
        })
    }

    /// The struct or union that a pointer points to, if it has a name. Types in other units are
    /// left out.
    fn target(&self, to: To) -> Result<Option<(What, Name<'a>)>, gimli::Error> {
        let Some((_, entry)) = self.stripped(to)? else { return Ok(None) };
        let what = match entry.tag {
            dw::DW_TAG_structure_type => What::Struct,
            dw::DW_TAG_union_type => What::Union,
            _ => return Ok(None),
        };
        Ok(entry.name.filter(|name| !name.is_empty()).map(|name| (what, name)))
    }
}

/// Size in bytes. 0 if it is implausible.
fn size(entry: &Entry<'_>) -> u32 {
    entry.size.and_then(|size| u32::try_from(size).ok()).unwrap_or(0)
}
