//! Finds where each name is defined, from the outermost entries of all units.

use super::entry::{Unit, string};
use super::{DwarfError, Sections, Wanted, What};
use gimli::{AttributeValue, constants as dw};
use hashbrown::HashMap;
use hashbrown::hash_map::Entry;

/// The output of one thread.
#[derive(Default)]
pub(super) struct Found {
    /// A buffer for the bytes of units, reused for the next one.
    pub buffer: Vec<u8>,
    /// Definitions by name and size: the number of units that have one, and the first.
    types: HashMap<Key, Seen>,
    /// Functions that have code.
    functions: Vec<u64>,
}

/// The number of units that have a definition, and the offset of the first.
type Seen = (u32, u64);

/// A definition that units may repeat.
#[derive(Clone, PartialEq, Eq, Hash)]
struct Key {
    what: What,
    name: Named,
    size: u64,
}

/// A name. Names in `.debug_str` are not looked up.
#[derive(Clone, PartialEq, Eq, Hash)]
enum Named {
    Strings(usize),
    Own(Box<[u8]>),
}

/// Scans a unit.
pub(super) fn unit(sections: &Sections<'_>, start: u64, bytes: &[u8], out: &mut Found) -> Result<(), DwarfError> {
    let Some((unit, children)) = Unit::open(sections, start, bytes)? else { return Ok(()) };
    entries(&unit, children, out).map_err(|why| DwarfError::Unit(start, why))
}

fn entries(unit: &Unit<'_, '_>, children: usize, out: &mut Found) -> Result<(), gimli::Error> {
    let mut raw = unit.entries(children)?;
    while !raw.is_empty() {
        let at = raw.next_offset().0;
        // The end of the root's children.
        let Some(abbreviation) = raw.read_abbreviation()? else { break };
        let what = match abbreviation.tag() {
            dw::DW_TAG_structure_type => Some(What::Struct),
            dw::DW_TAG_union_type => Some(What::Union),
            dw::DW_TAG_enumeration_type => Some(What::Enum),
            dw::DW_TAG_subprogram => Some(What::Function),
            _ => None,
        };
        if what.is_none() && !abbreviation.has_children() {
            raw.skip_attributes(abbreviation.attributes())?;
            continue;
        }
        let (mut sibling, mut name, mut origin, mut size) = (None, None, None, 0);
        let (mut is_declaration, mut has_code, mut is_inline) = (false, false, false);
        for spec in abbreviation.attributes() {
            let attribute = raw.read_attribute_inline(*spec)?;
            match attribute.name() {
                dw::DW_AT_sibling => sibling = unit.sibling(attribute.raw_value()),
                dw::DW_AT_name => name = Some(attribute.raw_value()),
                dw::DW_AT_byte_size => size = attribute.udata_value().unwrap_or_default(),
                dw::DW_AT_declaration => is_declaration = true,
                dw::DW_AT_low_pc | dw::DW_AT_ranges => has_code = true,
                dw::DW_AT_inline => is_inline = true,
                dw::DW_AT_abstract_origin => origin = unit.to(attribute.raw_value()),
                _ => {}
            }
        }
        match (what, name) {
            _ if is_declaration => {}
            // A function that is also inlined has its name in its abstract entry. A function that
            // is not inlined and has no code shares the code of an equal function.
            (Some(What::Function), _) if has_code || (name.is_some() && !is_inline) => {
                out.functions.push(origin.map_or(unit.start + at as u64, |to| unit.anywhere(to)));
            }
            (Some(what @ (What::Struct | What::Union | What::Enum)), Some(name)) => {
                let name = match (unit.in_strings(&name)?, name) {
                    (Some(at), _) => Some(Named::Strings(at)),
                    (None, AttributeValue::String(bytes)) => Some(Named::Own(bytes.slice().into())),
                    _ => None,
                };
                if let Some(name) = name {
                    let seen = out.types.entry(Key { what, name, size }).or_insert((0, unit.start + at as u64));
                    *seen = (seen.0.saturating_add(1), seen.1.min(unit.start + at as u64));
                }
            }
            _ => {}
        }
        if abbreviation.has_children() {
            unit.skip(&mut raw, sibling)?;
        }
    }
    Ok(())
}

/// Chooses one definition of each name. If sizes differ, the size that most units have is taken,
/// and of that size the first definition.
pub(super) fn merge(found: Vec<Found>, sections: &Sections<'_>) -> Vec<Wanted> {
    let mut all: HashMap<Key, Seen> = HashMap::new();
    let mut wanted = Vec::new();
    for one in found {
        wanted.extend(one.functions.into_iter().map(|at| Wanted { at, what: What::Function }));
        for (mut key, (count, first)) in one.types {
            // The same name may be in one unit's own bytes and in another's strings.
            if let Named::Strings(at) = key.name {
                let Some(name) = string(sections.strings, at) else { continue };
                key.name = Named::Own(name.into());
            }
            let seen = all.entry(key).or_insert((0, first));
            *seen = (seen.0.saturating_add(count), seen.1.min(first));
        }
    }
    let mut chosen: HashMap<(What, Box<[u8]>), Seen> = HashMap::new();
    for (key, (count, first)) in all {
        let Named::Own(name) = key.name else { continue };
        match chosen.entry((key.what, name)) {
            Entry::Vacant(entry) => drop(entry.insert((count, first))),
            Entry::Occupied(mut entry) => {
                let best = entry.get_mut();
                if (count, std::cmp::Reverse(first)) > (best.0, std::cmp::Reverse(best.1)) {
                    *best = (count, first);
                }
            }
        }
    }
    wanted.extend(chosen.into_iter().map(|((what, _), (_, at))| Wanted { at, what }));
    wanted
}
