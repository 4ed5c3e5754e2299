//! Writes types as BTF (Documentation/bpf/btf.rst), as `btf` reads it.

use super::convert::{Body, Converted, Definition, Struct, Type};
use super::{Name, What};
use crate::types::btf::kind;
use hashbrown::HashMap;
use std::collections::BTreeMap;

/// The most references between units that are followed, and the deepest nesting of structs.
const MAX_DEPTH: usize = 32;
/// Bits of a member's offset if the member also has a width.
const OFFSET_BITS: u32 = 24;

/// Writes the blob. It has one definition of each name. Functions whose definitions differ are left
/// out.
pub(super) fn blob(parts: Vec<Converted<'_>>) -> Vec<u8> {
    let mut foreign = HashMap::new();
    let mut types = BTreeMap::new();
    let mut functions: BTreeMap<Name<'_>, Option<Body<'_>>> = BTreeMap::new();
    for part in parts {
        foreign.extend(part.foreign);
        for Definition { name, body } in part.definitions {
            let what = match &body {
                Body::Struct(body) if body.is_union => What::Union,
                Body::Struct(_) => What::Struct,
                Body::Enum(..) => What::Enum,
                Body::Function(..) => {
                    let same = functions.entry(name).or_insert_with(|| Some(body.clone()));
                    if same.as_ref().is_some_and(|other| *other != body) {
                        *same = None;
                    }
                    continue;
                }
            };
            types.insert((what, name), body);
        }
    }
    let ids = types.keys().zip(1u32..).map(|((what, name), id)| ((*what, name.clone()), id)).collect();
    let mut encoder = Encoder {
        foreign,
        ids,
        records: vec![Vec::new(); types.len()],
        same: HashMap::new(),
        strings: vec![0],
        string_ids: HashMap::new(),
    };
    for (i, ((_, name), body)) in types.iter().enumerate() {
        encoder.records[i] = match body {
            Body::Struct(body) => encoder.structure(name, body, 0),
            Body::Enum(size, values) => encoder.enumeration(name, *size, values),
            Body::Function(..) => continue,
        };
    }
    for (name, body) in &functions {
        if let Some(Body::Function(returns, parameters)) = body {
            encoder.function(name, returns, parameters);
        }
    }
    encoder.finish()
}

struct Encoder<'a> {
    foreign: HashMap<u64, Type<'a>>,
    /// Ids of named types.
    ids: HashMap<(What, Name<'a>), u32>,
    /// The types. The id of the first is 1.
    records: Vec<Vec<u8>>,
    /// Ids of types without names.
    same: HashMap<Vec<u8>, u32>,
    strings: Vec<u8>,
    string_ids: HashMap<Vec<u8>, u32>,
}

impl<'a> Encoder<'a> {
    fn string(&mut self, text: &[u8]) -> u32 {
        if text.is_empty() {
            return 0;
        }
        if let Some(&at) = self.string_ids.get(text) {
            return at;
        }
        let at = self.strings.len() as u32;
        self.strings.extend_from_slice(text);
        self.strings.push(0);
        self.string_ids.insert(text.to_vec(), at);
        at
    }

    /// The id of a type without a name. Equal types share one id.
    fn add(&mut self, record: Vec<u8>) -> u32 {
        if let Some(&id) = self.same.get(&record) {
            return id;
        }
        self.records.push(record.clone());
        let id = self.records.len() as u32;
        self.same.insert(record, id);
        id
    }

    fn id(&mut self, ty: &Type<'a>, depth: usize) -> u32 {
        if depth > MAX_DEPTH {
            return 0;
        }
        match ty {
            Type::Void => 0,
            Type::Int(size) => self.add(words(&[0, info(kind::INT, 0), *size, size.saturating_mul(8) & 0xff])),
            Type::Float(size) => self.add(words(&[0, info(kind::FLOAT, 0), *size])),
            Type::Pointer(None) => self.add(words(&[0, info(kind::PTR, 0), 0])),
            Type::Pointer(Some((what, name))) => {
                let target = self.named(*what, name);
                self.add(words(&[0, info(kind::PTR, 0), target]))
            }
            Type::Array(element, count) => {
                let (element, index) = (self.id(element, depth + 1), self.id(&Type::Int(4), depth));
                self.add(words(&[0, info(kind::ARRAY, 0), 0, element, index, *count]))
            }
            Type::Named(what, name) => self.named(*what, name),
            Type::Anonymous(body) => {
                let record = self.structure(&Name::default(), body, depth + 1);
                self.add(record)
            }
            Type::Enum(size) => self.add(words(&[0, info(kind::ENUM, 0), *size])),
            Type::Foreign(at) => match self.foreign.get(at).cloned() {
                Some(ty) => self.id(&ty, depth + 1),
                None => 0,
            },
        }
    }

    fn named(&mut self, what: What, name: &Name<'a>) -> u32 {
        if let Some(&id) = self.ids.get(&(what, name.clone())) {
            return id;
        }
        let is_union = u32::from(what == What::Union) << 31;
        let name = self.string(name);
        self.add(words(&[name, info(kind::FWD, 0) | is_union, 0]))
    }

    fn structure(&mut self, name: &Name<'a>, body: &Struct<'a>, depth: usize) -> Vec<u8> {
        // If one member is a bit field, all offsets have the shorter form.
        let flag = body.members.iter().any(|m| m.bits.is_some());
        let fits = |bit_offset: u32| !flag || bit_offset >> OFFSET_BITS == 0;
        let members: Vec<_> = body.members.iter().filter(|m| fits(m.bit_offset)).collect();
        let kind = if body.is_union { kind::UNION } else { kind::STRUCT };
        let name = self.string(name);
        let mut record = words(&[name, info(kind, members.len()) | u32::from(flag) << 31, body.size]);
        for member in members {
            let (name, ty) = (self.string(&member.name), self.id(&member.ty, depth));
            let bits = u32::from(member.bits.unwrap_or(0)) << OFFSET_BITS;
            record.extend(words(&[name, ty, member.bit_offset | bits]));
        }
        record
    }

    fn enumeration(&mut self, name: &Name<'a>, size: u32, values: &[(Name<'a>, u64)]) -> Vec<u8> {
        let is_wide = size > 4;
        let kind = if is_wide { kind::ENUM64 } else { kind::ENUM };
        let name = self.string(name);
        let mut record = words(&[name, info(kind, values.len()), size]);
        for (name, value) in values {
            let name = self.string(name);
            record.extend(words(&[name, *value as u32]));
            if is_wide {
                record.extend(words(&[(*value >> 32) as u32]));
            }
        }
        record
    }

    fn function(&mut self, name: &Name<'a>, returns: &Type<'a>, parameters: &[Name<'a>]) {
        let returns = self.id(returns, 0);
        let mut record = words(&[0, info(kind::FUNC_PROTO, parameters.len()), returns]);
        for name in parameters {
            let name = self.string(name);
            record.extend(words(&[name, 0]));
        }
        let prototype = self.add(record);
        let name = self.string(name);
        self.records.push(words(&[name, info(kind::FUNC, 0), prototype]));
    }

    fn finish(self) -> Vec<u8> {
        let types: usize = self.records.iter().map(Vec::len).sum();
        let (types, strings) = (types as u32, self.strings.len() as u32);
        let mut blob = words(&[0x1_eb9f, 24, 0, types, types, strings]);
        self.records.iter().for_each(|record| blob.extend_from_slice(record));
        blob.extend_from_slice(&self.strings);
        blob
    }
}

fn info(kind: u32, len: usize) -> u32 {
    kind << 24 | (len as u32 & 0xffff)
}

fn words(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}
