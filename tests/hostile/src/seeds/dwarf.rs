//! Debugging information of a few types.

use guest_symbols::types::cache;

/// Names by their offset in `.debug_str`.
const STRINGS: &[u8] = b"\0page\0flags\0next\0find\0color\0RED\0list\0";
const PAGE: u32 = 1;
const FLAGS: u32 = 6;
const NEXT: u32 = 12;
const FIND: u32 = 17;
const COLOR: u32 = 22;
const RED: u32 = 28;
const LIST: u32 = 32;

/// Sections for [`crate::types::check`], with DWARF of this version.
pub(super) fn sections(version: u16) -> Vec<u8> {
    let info = info(version);
    let mut out = vec![0];
    for section in [&info[..], &abbreviations(), STRINGS, &[], &[]] {
        out.extend((section.len() as u16).to_le_bytes());
        out.extend(section);
    }
    out
}

/// A file of the cache.
pub(super) fn kept() -> Vec<u8> {
    [vec![1], cache::encode(&[0xab; 20], &super::image::btf())].concat()
}

/// Code, tag, whether there are children, and pairs of attribute and form (DWARF 5, section 7.5).
fn abbreviations() -> Vec<u8> {
    let entries: [&[u8]; 13] = [
        // The unit.
        &[1, 0x11, 1],
        // A number: byte_size, encoding.
        &[2, 0x24, 0, 0x0b, 0x0b, 0x3e, 0x0b],
        // A struct: name, byte_size, sibling.
        &[3, 0x13, 1, 0x03, 0x0e, 0x0b, 0x0b, 0x01, 0x13],
        // A member: name, type, data_member_location.
        &[4, 0x0d, 0, 0x03, 0x0e, 0x49, 0x13, 0x38, 0x0b],
        // A bit field: name, type, bit_size, data_bit_offset.
        &[5, 0x0d, 0, 0x03, 0x08, 0x49, 0x13, 0x0d, 0x0b, 0x6b, 0x0b],
        // A pointer: byte_size, type.
        &[6, 0x0f, 0, 0x0b, 0x0b, 0x49, 0x13],
        // An array: type; and its range: upper_bound.
        &[7, 0x01, 1, 0x49, 0x13],
        &[8, 0x21, 0, 0x2f, 0x0b],
        // An enumeration: name, byte_size; and an enumerator: name, const_value.
        &[9, 0x04, 1, 0x03, 0x0e, 0x0b, 0x0b],
        &[10, 0x28, 0, 0x03, 0x0e, 0x1c, 0x0d],
        // A function: name, type, low_pc; and a parameter: name.
        &[11, 0x2e, 1, 0x03, 0x0e, 0x49, 0x13, 0x11, 0x01],
        &[12, 0x05, 0, 0x03, 0x08],
        // A union without a name: byte_size.
        &[13, 0x17, 1, 0x0b, 0x0b],
    ];
    let entries = entries.iter().flat_map(|entry| [entry, &[0, 0][..]].concat());
    entries.chain([0]).collect()
}

/// The entries of one unit.
struct Unit(Vec<u8>);

impl Unit {
    /// Adds an entry with this code, and returns its offset.
    fn entry(&mut self, code: u8, parts: &[&[u8]]) -> u32 {
        let at = self.0.len() as u32;
        self.0.push(code);
        parts.iter().for_each(|part| self.0.extend_from_slice(part));
        at
    }

    /// Ends the children of the last entry that has some.
    fn end(&mut self) {
        self.0.push(0);
    }

    fn patch(&mut self, at: u32, word: u32) {
        self.0[at as usize..at as usize + 4].copy_from_slice(&word.to_le_bytes());
    }
}

fn info(version: u16) -> Vec<u8> {
    let mut unit = Unit(vec![0; 4]);
    unit.0.extend(version.to_le_bytes());
    match version {
        // unit_type, address_size, debug_abbrev_offset; in 4 the last two are the other way round.
        5 => unit.0.extend([1, 8, 0, 0, 0, 0]),
        _ => unit.0.extend([0, 0, 0, 0, 8]),
    }
    let word = u32::to_le_bytes;
    unit.entry(1, &[]);
    let number = unit.entry(2, &[&[8, 7]]);
    let pointer = unit.entry(6, &[&[8], &word(0)]);
    let array = unit.entry(7, &[&word(number)]);
    unit.entry(8, &[&[3]]);
    unit.end();
    let union = unit.entry(13, &[&[8]]);
    unit.entry(4, &[&word(LIST), &word(array), &[0]]);
    unit.entry(5, &[b"bits\0", &word(number), &[3, 60]]);
    unit.end();
    let page = unit.entry(3, &[&word(PAGE), &[48], &word(0)]);
    unit.entry(4, &[&word(FLAGS), &word(number), &[0]]);
    unit.entry(4, &[&word(NEXT), &word(pointer), &[8]]);
    unit.entry(4, &[&word(0), &word(union), &[16]]);
    unit.end();
    let after = unit.0.len() as u32;
    unit.patch(page + 6, after);
    unit.patch(pointer + 2, page);
    unit.entry(9, &[&word(COLOR), &[4]]);
    unit.entry(10, &[&word(RED), &[7]]);
    unit.end();
    unit.entry(11, &[&word(FIND), &word(pointer), &[0; 8]]);
    unit.entry(12, &[b"count\0"]);
    unit.end();
    unit.end();
    let len = unit.0.len() as u32 - 4;
    unit.patch(0, len);
    unit.0
}

#[cfg(test)]
mod tests {
    use guest_symbols::btf::Btf;
    use guest_symbols::types::dwarf::{Info, Sections, translate};

    /// A seed that cannot be read would be useless.
    #[test]
    fn they_are_types() {
        for version in [4, 5] {
            let (info, abbrev) = (super::info(version), super::abbreviations());
            let sections = Sections {
                info: Info::Memory(&info),
                abbrev: &abbrev,
                strings: super::STRINGS,
                line_strings: &[],
                string_offsets: &[],
            };
            let btf = Btf::parse(&translate(&sections).unwrap()).unwrap();
            assert_eq!(btf.offset_of("page", "bits"), Some(16 + 7));
            assert_eq!(btf.member("page", "list").and_then(|m| btf.array_len(m.type_id)), Some(4));
            assert_eq!(btf.enumerator("color", "RED"), Some(7));
            assert_eq!(btf.parameters("find"), Some(vec!["count"]));
            assert_eq!(btf.returns_pointer_to("find"), Some(("page".to_owned(), 48)));
        }
    }
}
