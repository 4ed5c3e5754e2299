//! Source locations of addresses, from DWARF 4 or 5.

use crate::error::DwarfError;
use crate::paths;
use crate::place::Place;
use addr2line::Context;
use gimli::{Dwarf, EndianArcSlice, LittleEndian, Reader, SectionId, UnitRef};
use guest_symbols::elf::{Elf, SectionError};
use std::borrow::Cow;
use std::cell::OnceCell;
use std::sync::Arc;

type Bytes = EndianArcSlice<LittleEndian>;

/// Most nested inlined functions of one address. More are a sign of corrupt data.
const MAX_PLACES: usize = 64;

/// Units that are searched for the root of the kernel's tree. The first units of a kernel are
/// assembly and do not name it.
const MAX_SEARCHED: usize = 256;

/// The debugging information of one file. Units are parsed on demand.
pub struct Debug {
    dwarf: Arc<Dwarf<Bytes>>,
    context: Context<Bytes>,
    /// The root of the kernel's tree, found on demand.
    root: OnceCell<Option<String>>,
}

impl Debug {
    /// Reads the sections that map code to lines. Sections for the locations of variables, which
    /// are as large, are left out.
    pub fn read(elf: &Elf) -> Result<Debug, DwarfError> {
        let section = |id: SectionId| -> Result<Bytes, SectionError> {
            let bytes = match id {
                SectionId::DebugLoc
                | SectionId::DebugLocLists
                | SectionId::DebugMacinfo
                | SectionId::DebugMacro
                | SectionId::DebugNames
                | SectionId::DebugTypes => Arc::new([]),
                _ => elf.section(id.name())?,
            };
            Ok(Bytes::new(bytes, LittleEndian))
        };
        let dwarf = Arc::new(Dwarf::load(section)?);
        let context = Context::from_arc_dwarf(dwarf.clone())?;
        Ok(Debug { dwarf, context, root: OnceCell::new() })
    }

    /// The source locations of the instruction at `at`, an address in the file. Innermost first.
    pub fn places(&self, at: u64) -> Result<Vec<Place>, gimli::Error> {
        // Separate files of `CONFIG_DEBUG_INFO_SPLIT` are not searched.
        let Some(unit) = self.context.find_dwarf_and_unit(at).skip_all_loads() else { return Ok(Vec::new()) };
        // A kernel may be built in a folder inside or outside of its tree.
        let build = build_folder(&unit)?;
        let root = self.root.get_or_init(|| self.find_root()).as_deref().unwrap_or_default();
        let mut frames = self.context.find_frames(at).skip_all_loads()?;
        let mut places = Vec::new();
        while let Some(frame) = frames.next()?
            && places.len() < MAX_PLACES
        {
            let function = frame.function.as_ref().map(|f| f.raw_name().map(Cow::into_owned)).transpose()?;
            let (file, line) = frame.location.map_or((None, None), |l| (l.file, l.line));
            let file = paths::normal(file.unwrap_or("??"));
            let file = paths::shorten(&file, &[&build, root]).to_owned();
            places.push(Place { function, file, line: line.unwrap_or(0) });
        }
        Ok(places)
    }

    /// The root of the tree, from the first unit that names it.
    fn find_root(&self) -> Option<String> {
        let mut units = self.dwarf.units();
        for _ in 0..MAX_SEARCHED {
            let header = units.next().ok()??;
            let Ok(unit) = self.dwarf.unit(header) else { continue };
            let unit = unit.unit_ref(&self.dwarf);
            let folders = build_folder(&unit).and_then(|build| folders(&unit, &build)).unwrap_or_default();
            if let Some(root) = paths::root(folders.iter().map(String::as_str)) {
                return Some(root);
            }
        }
        None
    }
}

/// The folder in which the compiler was called for a unit.
fn build_folder(unit: &UnitRef<'_, Bytes>) -> Result<String, gimli::Error> {
    let Some(folder) = &unit.comp_dir else { return Ok(String::new()) };
    Ok(paths::normal(&folder.to_string_lossy()?))
}

/// The folders of a unit's source files.
fn folders(unit: &UnitRef<'_, Bytes>, build: &str) -> Result<Vec<String>, gimli::Error> {
    let Some(program) = &unit.line_program else { return Ok(Vec::new()) };
    let folders = program.header().include_directories().iter();
    folders.map(|f| Ok(paths::join(build, &unit.attr_string(f.clone())?.to_string_lossy()?))).collect()
}
