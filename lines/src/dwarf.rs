//! From addresses to places, by DWARF 4 or 5.

use crate::Place;
use crate::paths;
use addr2line::Context;
use gimli::{Dwarf, EndianArcSlice, LittleEndian, Reader, SectionId, UnitRef};
use guest_symbols::elf::Elf;
use std::borrow::Cow;
use std::cell::OnceCell;
use std::sync::Arc;

type Bytes = EndianArcSlice<LittleEndian>;

/// More inlined functions in one another than this are nonsense.
const MAX_PLACES: usize = 64;

/// Units that are searched for the root of the kernel's tree; the first few of a kernel are assembly, and name it not.
const MAX_SEARCHED: usize = 256;

/// The debugging information of one file. Units are parsed when something in them is asked for.
pub struct Debug {
    dwarf: Arc<Dwarf<Bytes>>,
    context: Context<Bytes>,
    /// The root of the kernel's tree, once it was asked for.
    root: OnceCell<Option<String>>,
}

impl Debug {
    /// Reads the sections that tell where code comes from, and not those of variables' places, which are as large again.
    pub fn read(elf: &Elf) -> Result<Debug, String> {
        let section = |id: SectionId| -> Result<Bytes, String> {
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
        let context = Context::from_arc_dwarf(dwarf.clone()).map_err(|e| e.to_string())?;
        Ok(Debug { dwarf, context, root: OnceCell::new() })
    }

    /// The places of the instruction at `at`, an address in the file, innermost first.
    pub fn places(&self, at: u64) -> Result<Vec<Place>, gimli::Error> {
        // What CONFIG_DEBUG_INFO_SPLIT puts into files of its own is not looked for.
        let Some(unit) = self.context.find_dwarf_and_unit(at).skip_all_loads() else { return Ok(Vec::new()) };
        // A kernel may be built in a folder of its own, and that inside or outside of its tree.
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

    /// The root that the first unit names that does.
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

/// Where the compiler was called for a unit.
fn build_folder(unit: &UnitRef<'_, Bytes>) -> Result<String, gimli::Error> {
    let Some(folder) = &unit.comp_dir else { return Ok(String::new()) };
    Ok(paths::normal(&folder.to_string_lossy()?))
}

/// The folders that the files of a unit lie in.
fn folders(unit: &UnitRef<'_, Bytes>, build: &str) -> Result<Vec<String>, gimli::Error> {
    let Some(program) = &unit.line_program else { return Ok(Vec::new()) };
    let folders = program.header().include_directories().iter();
    folders.map(|f| Ok(paths::join(build, &unit.attr_string(f.clone())?.to_string_lossy()?))).collect()
}
