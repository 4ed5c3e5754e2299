//! Finds the files at and below a path.

use crate::error::LinesError;
use guest_symbols::elf::{Elf, ElfError, ElfFlaw};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

/// Most nested folders. Links to folders are not followed, so cycles are impossible.
const MAX_DEPTH: usize = 32;

/// A file with debugging information.
#[derive(Debug, PartialEq, Eq)]
pub enum Found {
    /// A vmlinux.
    Vmlinux(PathBuf),
    /// A module, with its name in the kernel.
    Module(String, PathBuf),
}

/// Opens a file with debugging information.
///
/// # Errors
/// `Missing`, `Unreadable`, `NoElf` or `NoDwarf`.
pub fn open(path: &Path) -> Result<Elf, LinesError> {
    let path = || path.to_owned();
    let elf = Elf::open(&path()).map_err(|why| match why {
        ElfError::Unreadable(why) if why.kind() == ErrorKind::NotFound => LinesError::Missing { path: path() },
        ElfError::Unreadable(why) => LinesError::Unreadable { path: path(), why },
        ElfError::NoElf(why) => LinesError::NoElf { path: path(), why },
    })?;
    if elf.has_dwarf() { Ok(elf) } else { Err(LinesError::NoDwarf { path: path() }) }
}

/// The file at `path`, or the files in this folder, in a fixed order. A vmlinux is checked for
/// debugging information. Modules in folders are found by name only.
pub fn find(path: &Path) -> Result<Vec<Found>, LinesError> {
    let unreadable = |why| LinesError::Unreadable { path: path.to_owned(), why };
    let about = std::fs::metadata(path).map_err(|why| match why.kind() {
        ErrorKind::NotFound => LinesError::Missing { path: path.to_owned() },
        _ => unreadable(why),
    })?;
    if !about.is_dir() {
        let elf = open(path)?;
        return match module_name(path) {
            Some(name) => Ok(vec![Found::Module(name, path.to_owned())]),
            None if elf.is_relocatable() => Err(LinesError::NoElf { path: path.to_owned(), why: ElfFlaw::ObjectFile }),
            None => Ok(vec![Found::Vmlinux(path.to_owned())]),
        };
    }
    let mut found = Vec::new();
    // An unreadable folder is an error only if the user named it.
    std::fs::read_dir(path).map_err(unreadable)?;
    walk(path, 0, &mut found);
    Ok(found)
}

/// The modules below `trees` at any depth and directly in `folder`, by name. Unreadable folders are
/// left out.
pub fn modules(trees: &[PathBuf], folder: Option<&Path>) -> Vec<(String, PathBuf)> {
    let mut found = Vec::new();
    trees.iter().for_each(|tree| walk(tree, 0, &mut found));
    if let Some(folder) = folder {
        walk(folder, MAX_DEPTH, &mut found);
    }
    let module = |found| match found {
        Found::Module(name, path) => Some((name, path)),
        Found::Vmlinux(_) => None,
    };
    found.into_iter().filter_map(module).collect()
}

fn walk(folder: &Path, depth: usize, found: &mut Vec<Found>) {
    let Ok(entries) = std::fs::read_dir(folder) else { return };
    let mut entries: Vec<_> = entries.flatten().collect();
    entries.sort_by_key(std::fs::DirEntry::file_name);
    for entry in entries {
        let path = entry.path();
        if entry.file_type().is_ok_and(|t| t.is_dir()) {
            if depth < MAX_DEPTH {
                walk(&path, depth + 1, found);
            }
        } else if let Some(name) = module_name(&path) {
            found.push(Found::Module(name, path));
        } else if is_vmlinux(&path) && open(&path).is_ok_and(|elf| !elf.is_relocatable()) {
            // Distributions add links with other names.
            let same = |f: &Found| matches!(f, Found::Vmlinux(p) if p.canonicalize().ok() == path.canonicalize().ok());
            if !found.iter().any(same) {
                found.push(Found::Vmlinux(path));
            }
        }
    }
}

/// `vmlinux`, `vmlinux-RELEASE`, `vmlinux.debug`.
fn is_vmlinux(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    name.strip_prefix("vmlinux").is_some_and(|rest| rest.is_empty() || rest.starts_with(['-', '.']))
}

/// The name that kbuild derives from the file: `-` becomes `_` (scripts/Makefile.lib, name-fix).
fn module_name(path: &Path) -> Option<String> {
    let name = path.file_name()?.to_str()?;
    let stem = name.strip_suffix(".debug").unwrap_or(name).strip_suffix(".ko")?;
    Some(stem.replace('-', "_"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Scratch;

    #[test]
    fn names_of_modules() {
        assert_eq!(module_name(Path::new("/a/snd-hda-intel.ko")).as_deref(), Some("snd_hda_intel"));
        assert_eq!(module_name(Path::new("/a/x.ko.debug")).as_deref(), Some("x"));
        assert_eq!(module_name(Path::new("/a/x.ko.xz")), None);
        assert!(is_vmlinux(Path::new("/boot/vmlinux-6.1.0")) && is_vmlinux(Path::new("vmlinux")));
        assert!(!is_vmlinux(Path::new("vmlinuz")) && !is_vmlinux(Path::new("vmlinux_old")));
    }

    #[test]
    fn what_is_no_use_says_so() {
        let scratch = Scratch::new("files");
        let nothing = scratch.path().join("nothing");
        let error = find(&nothing).unwrap_err();
        assert!(matches!(error, LinesError::Missing { .. }), "{error}");
        let text = scratch.write("vmlinux", b"no ELF");
        assert!(matches!(find(&text).unwrap_err(), LinesError::NoElf { .. }));
        // In a folder, a file that only has the name of a vmlinux is skipped.
        assert_eq!(find(scratch.path()).unwrap(), []);
        let module = scratch.write("deep/er/snd-x.ko", b"");
        assert_eq!(find(scratch.path()).unwrap(), [Found::Module("snd_x".to_owned(), module)]);
    }
}
