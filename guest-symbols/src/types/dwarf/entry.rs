//! Debugging information entries, with the attributes that describe types.

use super::{DwarfError, Name, Sections};
use gimli::{
    Abbreviations, AttributeSpecification, AttributeValue, DebugAbbrev, DebugInfo, DebugStrOffsets,
    DebugStrOffsetsBase, DwTag, EndianSlice, EntriesRaw, LittleEndian, Reader, UnitHeader, UnitOffset, UnitType,
    constants as dw,
};

/// Bytes of a unit.
pub(super) type Bytes<'a> = EndianSlice<'a, LittleEndian>;

/// A unit, ready to be read.
pub(super) struct Unit<'a, 'b> {
    sections: &'b Sections<'a>,
    /// Offset of the unit in `.debug_info`.
    pub start: u64,
    pub header: UnitHeader<Bytes<'b>>,
    pub abbreviations: Abbreviations,
    string_offsets: DebugStrOffsetsBase<usize>,
}

/// A reference to another entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum To {
    /// An entry in the same unit. Its offset from the start of the unit.
    Here(usize),
    /// An entry in any unit. Its offset in `.debug_info`.
    Anywhere(u64),
}

/// An entry with its attributes.
pub(super) struct Entry<'a> {
    pub tag: DwTag,
    pub has_children: bool,
    pub name: Option<Name<'a>>,
    pub ty: Option<To>,
    pub sibling: Option<usize>,
    pub size: Option<u64>,
    pub is_float: bool,
    /// Bytes from the start of the struct.
    pub location: u64,
    pub bit_size: Option<u64>,
    /// Bits from the start of the struct.
    pub data_bit_offset: Option<u64>,
    /// Bits from the most significant one of the unit of storage (DWARF 2 and 3, and gcc up to 10).
    pub bit_offset: Option<u64>,
    /// Number of elements of an array. Each dimension has its own entry.
    pub count: Option<u64>,
    pub value: u64,
}

impl Entry<'_> {
    fn new(tag: DwTag, has_children: bool) -> Self {
        Entry {
            tag,
            has_children,
            name: None,
            ty: None,
            sibling: None,
            size: None,
            is_float: false,
            location: 0,
            bit_size: None,
            data_bit_offset: None,
            bit_offset: None,
            count: None,
            value: 0,
        }
    }
}

impl<'a, 'b> Unit<'a, 'b> {
    /// Opens the unit in these bytes, which begins at `start`. Returns it with the entries below
    /// its root. `None` if they are not needed.
    pub fn open(
        sections: &'b Sections<'a>,
        start: u64,
        bytes: &'b [u8],
    ) -> Result<Option<(Unit<'a, 'b>, usize)>, DwarfError> {
        Unit::of(sections, start, bytes).map_err(|why| match why {
            Some(why) => DwarfError::Unit(start, why),
            None => DwarfError::Split,
        })
    }

    fn of(
        sections: &'b Sections<'a>,
        start: u64,
        bytes: &'b [u8],
    ) -> Result<Option<(Unit<'a, 'b>, usize)>, Option<gimli::Error>> {
        let Some(header) = DebugInfo::new(bytes, LittleEndian).units().next()? else { return Ok(None) };
        match header.type_() {
            UnitType::Compilation | UnitType::Partial => {}
            UnitType::Type { .. } | UnitType::SplitType { .. } => return Ok(None),
            UnitType::Skeleton(_) | UnitType::SplitCompilation(_) => return Err(None),
        }
        let abbreviations = header.abbreviations(&DebugAbbrev::new(sections.abbrev, LittleEndian))?;
        let string_offsets =
            DebugStrOffsetsBase::default_for_encoding_and_file(header.encoding(), gimli::DwarfFileType::Main);
        let mut unit = Unit { sections, start, header, abbreviations, string_offsets };
        let (children, root) = {
            let mut raw = unit.header.entries_raw(&unit.abbreviations, None)?;
            let Some(abbreviation) = raw.read_abbreviation()? else { return Ok(None) };
            let mut base = None;
            let mut is_wanted = abbreviation.has_children();
            for spec in abbreviation.attributes() {
                let attribute = raw.read_attribute(*spec)?;
                match (attribute.name(), attribute.value()) {
                    (dw::DW_AT_dwo_name | dw::DW_AT_GNU_dwo_name, _) => return Err(None),
                    (dw::DW_AT_str_offsets_base, AttributeValue::DebugStrOffsetsBase(at)) => base = Some(at),
                    // BTF has no types of Rust either: pahole --lang_exclude=rust
                    // (scripts/Makefile.btf).
                    (dw::DW_AT_language, AttributeValue::Language(dw::DW_LANG_Rust)) => is_wanted = false,
                    _ => {}
                }
            }
            (is_wanted.then_some(raw.next_offset().0), base)
        };
        unit.string_offsets = root.unwrap_or(unit.string_offsets);
        Ok(children.map(|children| (unit, children)))
    }

    /// The entries from an offset in the unit on.
    pub fn entries(&self, at: usize) -> Result<EntriesRaw<'_, Bytes<'b>>, gimli::Error> {
        self.header.entries_raw(&self.abbreviations, Some(UnitOffset(at)))
    }

    /// The next entry. `None` at the end of a list of children.
    pub fn entry(&self, raw: &mut EntriesRaw<'_, Bytes<'b>>) -> Result<Option<Entry<'a>>, gimli::Error> {
        let Some(abbreviation) = raw.read_abbreviation()? else { return Ok(None) };
        let mut entry = Entry::new(abbreviation.tag(), abbreviation.has_children());
        for spec in abbreviation.attributes() {
            self.attribute(raw, *spec, &mut entry)?;
        }
        Ok(Some(entry))
    }

    fn attribute(
        &self,
        raw: &mut EntriesRaw<'_, Bytes<'b>>,
        spec: AttributeSpecification,
        entry: &mut Entry<'a>,
    ) -> Result<(), gimli::Error> {
        let attribute = raw.read_attribute(spec)?;
        // No kernel has negative lengths, or lengths that are expressions.
        let number = || attribute.udata_value();
        match attribute.name() {
            dw::DW_AT_name => entry.name = self.name(attribute.raw_value())?,
            dw::DW_AT_type => entry.ty = self.to(attribute.raw_value()),
            dw::DW_AT_sibling => entry.sibling = self.sibling(attribute.raw_value()),
            dw::DW_AT_byte_size => entry.size = number(),
            dw::DW_AT_encoding => {
                entry.is_float =
                    matches!(attribute.value(), AttributeValue::Encoding(dw::DW_ATE_float | dw::DW_ATE_complex_float));
            }
            dw::DW_AT_data_member_location => {
                entry.location = match attribute.exprloc_value() {
                    // DW_OP_plus_uconst, which old compilers write.
                    Some(gimli::Expression(mut bytes)) => match bytes.read_u8() {
                        Ok(0x23) => bytes.read_uleb128().unwrap_or_default(),
                        _ => 0,
                    },
                    None => number().unwrap_or_default(),
                }
            }
            dw::DW_AT_bit_size => entry.bit_size = number(),
            dw::DW_AT_bit_offset => entry.bit_offset = number(),
            dw::DW_AT_data_bit_offset => entry.data_bit_offset = number(),
            dw::DW_AT_count => entry.count = number(),
            // Arrays without elements have -1, in any width.
            dw::DW_AT_upper_bound => {
                entry.count = number().map(|last| last.wrapping_add(1)).filter(|n| n & 0xffff_ffff != 0)
            }
            dw::DW_AT_const_value => {
                entry.value = number().or_else(|| attribute.sdata_value().map(|v| v as u64)).unwrap_or_default();
            }
            _ => {}
        }
        Ok(())
    }

    /// Skips the children of `entry`, which is the last read entry.
    pub fn skip_children<'c>(
        &'c self,
        raw: &mut EntriesRaw<'c, Bytes<'b>>,
        entry: &Entry<'_>,
    ) -> Result<(), gimli::Error> {
        if entry.has_children { self.skip(raw, entry.sibling) } else { Ok(()) }
    }

    /// Skips a list of children. The next entry is the first child.
    pub fn skip<'c>(&'c self, raw: &mut EntriesRaw<'c, Bytes<'b>>, sibling: Option<usize>) -> Result<(), gimli::Error> {
        // A sibling that lies before the entry would cause an endless loop.
        if let Some(sibling) = sibling.filter(|at| *at > raw.next_offset().0) {
            *raw = self.entries(sibling)?;
            return Ok(());
        }
        let depth = raw.next_depth();
        while raw.next_depth() >= depth {
            if let Some(abbreviation) = raw.read_abbreviation()? {
                raw.skip_attributes(abbreviation.attributes())?;
            }
        }
        Ok(())
    }

    /// The offset in the unit that an attribute contains.
    pub fn sibling(&self, value: AttributeValue<Bytes<'b>>) -> Option<usize> {
        match self.to(value)? {
            To::Here(at) => Some(at),
            To::Anywhere(_) => None,
        }
    }

    /// The reference that an attribute contains.
    pub fn to(&self, value: AttributeValue<Bytes<'b>>) -> Option<To> {
        match value {
            AttributeValue::UnitRef(at) => Some(To::Here(at.0)),
            AttributeValue::DebugInfoRef(at) => {
                let len = self.header.length_including_self() as u64;
                let here = (at.0 as u64).checked_sub(self.start).filter(|at| *at < len);
                Some(here.map_or(To::Anywhere(at.0 as u64), |at| To::Here(at as usize)))
            }
            _ => None,
        }
    }

    /// The offset in `.debug_info` of a reference.
    pub fn anywhere(&self, to: To) -> u64 {
        match to {
            To::Here(at) => self.start + at as u64,
            To::Anywhere(at) => at,
        }
    }

    /// The offset of a name in `.debug_str`. `None` if it is elsewhere.
    pub fn in_strings(&self, value: &AttributeValue<Bytes<'b>>) -> Result<Option<usize>, gimli::Error> {
        Ok(match value {
            AttributeValue::DebugStrRef(at) => Some(at.0),
            AttributeValue::DebugStrOffsetsIndex(index) => {
                let offsets = DebugStrOffsets::from(EndianSlice::new(self.sections.string_offsets, LittleEndian));
                Some(offsets.get_str_offset(self.header.format(), self.string_offsets, *index)?.0)
            }
            _ => None,
        })
    }

    /// A name.
    pub fn name(&self, value: AttributeValue<Bytes<'b>>) -> Result<Option<Name<'a>>, gimli::Error> {
        if let Some(at) = self.in_strings(&value)? {
            return Ok(string(self.sections.strings, at).map(Name::Borrowed));
        }
        Ok(match value {
            AttributeValue::DebugLineStrRef(at) => string(self.sections.line_strings, at.0).map(Name::Borrowed),
            AttributeValue::String(bytes) => Some(Name::Owned(bytes.slice().to_vec())),
            _ => None,
        })
    }
}

/// The NUL-terminated string at an offset.
pub(super) fn string(strings: &[u8], at: usize) -> Option<&[u8]> {
    let bytes = strings.get(at..)?;
    Some(&bytes[..memchr::memchr(0, bytes)?])
}
