//! From addresses to places, by DWARF 4 or 5.

use crate::Place;
use crate::elf::Elf;
use crate::paths;
use addr2line::Context;
use gimli::{EndianArcSlice, LittleEndian, Reader, SectionId, UnitRef};
use std::borrow::Cow;
use std::sync::Arc;

type Bytes = EndianArcSlice<LittleEndian>;

/// More inlined functions in one another than this are nonsense.
const MAX_PLACES: usize = 64;

/// The debugging information of one file. Units are parsed when something in them is asked for.
pub struct Debug {
    context: Context<Bytes>,
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
        let dwarf = gimli::Dwarf::load(section)?;
        Ok(Debug { context: Context::from_dwarf(dwarf).map_err(|e| e.to_string())? })
    }

    /// The places of the instruction at `at`, an address in the file, innermost first.
    pub fn places(&self, at: u64) -> Result<Vec<Place>, gimli::Error> {
        // What CONFIG_DEBUG_INFO_SPLIT puts into files of its own is not looked for.
        let Some(unit) = self.context.find_dwarf_and_unit(at).skip_all_loads() else { return Ok(Vec::new()) };
        let folders = Folders::of(&unit)?;
        let mut frames = self.context.find_frames(at).skip_all_loads()?;
        let mut places = Vec::new();
        while let Some(frame) = frames.next()?
            && places.len() < MAX_PLACES
        {
            let function = frame.function.as_ref().map(|f| f.raw_name().map(Cow::into_owned)).transpose()?;
            let (file, line) = frame.location.map_or((None, None), |l| (l.file, l.line));
            let file = file.map_or("??".to_owned(), |file| folders.shorten(file));
            places.push(Place { function, file, line: line.unwrap_or(0) });
        }
        Ok(places)
    }
}

/// The folders that are left out of a unit's file names.
struct Folders {
    /// Where the compiler was called: for a kernel built in a folder of its own, that.
    build: String,
    /// The root of the kernel's tree.
    root: Option<String>,
}

impl Folders {
    fn of(unit: &UnitRef<'_, Bytes>) -> Result<Folders, gimli::Error> {
        let build = unit.comp_dir.as_ref().map(|dir| dir.to_string_lossy().map(Cow::into_owned)).transpose()?;
        let build = paths::normal(&build.unwrap_or_default());
        let mut folders = Vec::new();
        if let Some(program) = &unit.line_program {
            for folder in program.header().include_directories() {
                let folder = unit.attr_string(folder.clone())?;
                folders.push(paths::join(&build, &folder.to_string_lossy()?));
            }
        }
        Ok(Folders { root: paths::root(folders.iter().map(String::as_str)), build })
    }

    fn shorten(&self, file: &str) -> String {
        let file = paths::normal(file);
        paths::shorten(&file, &[&self.build, self.root.as_deref().unwrap_or_default()]).to_owned()
    }
}
