//! Source lines of a guest kernel's code: what file and line an address comes from, from the debugging
//! information (DWARF) of files that the user gives.
//!
//! A crate of its own, since it is the one part that reads large files of the host and needs a DWARF reader;
//! `guest-symbols` knows a guest by its memory alone.
//!
//! - [`Lines`]: the files, and the questions to them
//! - `files`: which files lie below a path
//! - `dwarf`: from an address to places
//! - `paths`: file names as short as they are in the kernel's own tree
//!
//! A file is only opened when something in it is asked for, and then its sections are read, not mapped: of
//! Debian's 590 MB of vmlinux some 190 MB are needed. They stay in memory as long as the [`Lines`] do.
//! The files are untrusted input: lengths in them are held against the file's, and no function here panics
//! on any content.

#![forbid(unsafe_code)]

mod dwarf;
mod files;
mod paths;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;

use dwarf::Debug;
use files::Found;
use guest_symbols::elf::{Elf, ElfError, Functions};
use guest_symbols::identity::Identity;
use guest_symbols::{GuestMemory, Kernel};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

/// One source place; inlined functions come before the function they are in.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Place {
    /// The function, as its source names it.
    pub function: Option<String>,
    /// The file: relative to the kernel's tree where it lies in it, such as `mm/slub.c`.
    pub file: String,
    /// The line; 0 where the compiler made code that is of no line.
    pub line: u32,
}

/// Why debugging information cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum LinesError {
    /// Nothing there.
    #[error("debug={path}: there is no such file or folder")]
    Missing {
        /// The path given.
        path: PathBuf,
    },
    /// It cannot be read.
    #[error("cannot read debug={path}: {why}")]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// The system's word.
        why: std::io::Error,
    },
    /// A folder without any file of use.
    #[error(
        "debug={path}: neither a vmlinux with debugging information nor a module (*.ko, *.ko.debug) lies in or below this folder"
    )]
    NothingFound {
        /// The folder given.
        path: PathBuf,
    },
    /// It is something else.
    #[error("debug={path} is no vmlinux and no module of an x86-64 kernel: {why}")]
    NoElf {
        /// The file.
        path: PathBuf,
        /// What it is, or what was wrong with it.
        why: String,
    },
    /// It was built without, or it was stripped.
    #[error(
        "debug={path} has no debugging information; build the kernel with CONFIG_DEBUG_INFO, or give the vmlinux of the distribution's package of debugging symbols (Debian: linux-image-RELEASE-dbg)"
    )]
    NoDwarf {
        /// The file.
        path: PathBuf,
    },
    /// It has, and it makes no sense.
    #[error("the debugging information of debug={path} cannot be understood: {why}; build or fetch the file anew")]
    BadDwarf {
        /// The file.
        path: PathBuf,
        /// What was wrong with it.
        why: String,
    },
    /// A vmlinux of another kernel.
    #[error(
        "debug={path} does not belong to the running kernel: the file is of {theirs}, the guest runs {ours}; give the vmlinux of the guest's own kernel"
    )]
    OtherKernel {
        /// The file.
        path: PathBuf,
        /// Version or build id of the file.
        theirs: String,
        /// The same of the guest.
        ours: String,
    },
}

/// A file that may be opened when it is asked for.
struct File {
    path: PathBuf,
    opened: OnceLock<Option<Opened>>,
}

/// Where modules may lie.
struct Further {
    trees: Vec<PathBuf>,
    folder: Option<PathBuf>,
    modules: OnceLock<Vec<(String, File)>>,
}

impl Further {
    fn modules(&self) -> &[(String, File)] {
        self.modules.get_or_init(|| {
            let below = files::modules(&self.trees, self.folder.as_deref());
            below.into_iter().map(|(name, path)| (name, File::new(path))).collect()
        })
    }
}

struct Opened {
    debug: Mutex<Debug>,
    functions: Functions,
    /// Of a module, the release of the kernel that it was built for.
    release: Option<String>,
}

/// Files with debugging information.
///
/// Made to be asked from any thread; one lookup in a file happens at a time.
pub struct Lines {
    vmlinux: Vec<File>,
    modules: Vec<(String, File)>,
    /// Modules that nobody gave, and that are looked for when one is asked for.
    further: Option<Further>,
    /// The one of `vmlinux` that is the running kernel's, and its release.
    running: OnceLock<(Option<usize>, String)>,
    problems: Mutex<Vec<LinesError>>,
}

impl Lines {
    /// Looks at the paths: a vmlinux or module with debugging information, or a folder with any number of them
    /// in it or below it.
    ///
    /// # Errors
    /// All but [`LinesError::OtherKernel`] and [`LinesError::BadDwarf`]. Modules in folders are first read when
    /// something in them is asked for; what is wrong with them then is told by [`Lines::take_problems`].
    pub fn open(paths: &[PathBuf]) -> Result<Lines, LinesError> {
        let (mut vmlinux, mut modules) = (Vec::new(), Vec::new());
        for path in paths {
            let before = vmlinux.len() + modules.len();
            for found in files::find(path)? {
                match found {
                    Found::Vmlinux(path) => vmlinux.push(File::new(path)),
                    Found::Module(name, path) => modules.push((name, File::new(path))),
                }
            }
            if vmlinux.len() + modules.len() == before {
                return Err(LinesError::NothingFound { path: path.clone() });
            }
        }
        Ok(Lines { vmlinux, modules, further: None, running: OnceLock::new(), problems: Mutex::default() })
    }

    /// Of a vmlinux that is known to be that of the running kernel, of that release. Its modules are looked for below `trees` and in `folder`
    /// when one is asked for.
    pub fn of_running(vmlinux: &Path, release: &str, trees: &[PathBuf], folder: Option<&Path>) -> Lines {
        Lines {
            vmlinux: vec![File::new(vmlinux.to_owned())],
            modules: Vec::new(),
            further: Some(Further {
                trees: trees.to_owned(),
                folder: folder.map(Path::to_owned),
                modules: OnceLock::new(),
            }),
            running: OnceLock::from((Some(0), release.to_owned())),
            problems: Mutex::default(),
        }
    }

    /// Finds the vmlinux of the running kernel, of which [`Lines::kernel`] then speaks: by the build id in its notes
    /// (`.notes`, at `__start_notes`: include/asm-generic/vmlinux.lds.h), or by `linux_banner` where one of them has
    /// none. Without any vmlinux there is nothing to check. `memory` is the guest's, at any time after its boot began.
    ///
    /// # Errors
    /// [`LinesError::OtherKernel`] when all are of others; or why none can be read.
    pub fn check_kernel(&self, kernel: &Kernel, memory: &impl GuestMemory) -> Result<(), LinesError> {
        self.check(&Identity::of_guest(kernel, memory), &kernel.release)
    }

    fn check(&self, ours: &Identity, release: &str) -> Result<(), LinesError> {
        let mut refused = None;
        let mut found = None;
        for (i, file) in self.vmlinux.iter().enumerate() {
            match open(&file.path).map(|elf| Identity::of_file(&elf, ours)) {
                Ok(theirs) if theirs.is(ours) => {
                    found = Some(i);
                    break;
                }
                Ok(theirs) => {
                    let (path, theirs, ours) = (file.path.clone(), theirs.to_string(), ours.to_string());
                    refused.get_or_insert(LinesError::OtherKernel { path, theirs, ours });
                }
                Err(error) => drop(refused.get_or_insert(error)),
            }
        }
        match refused {
            Some(refused) if found.is_none() => Err(refused),
            _ => {
                // Who asks twice gets the same answer: a guest's kernel stays what it is.
                self.running.get_or_init(|| (found, release.to_owned()));
                Ok(())
            }
        }
    }

    /// The places of `at`, a return address in the kernel's image (virtual, slide included): those of the call before it.
    /// Nothing where no file says anything, and before [`Lines::check_kernel`] was content.
    pub fn kernel(&self, kernel: &Kernel, at: u64) -> Vec<Place> {
        let text = kernel.symbols.lookup("_text").or_else(|| kernel.symbols.lookup("_stext"));
        text.map_or(Vec::new(), |text| self.image(at.wrapping_sub(text)))
    }

    /// As [`Lines::kernel`], of an offset from `_text`, where the section `.text` begins too (arch/x86/kernel/vmlinux.lds.S).
    fn image(&self, offset: u64) -> Vec<Place> {
        let Some((Some(running), _)) = self.running.get() else { return Vec::new() };
        let Some(opened) = self.opened(&self.vmlinux[*running]) else { return Vec::new() };
        let Some(text) = opened.functions.text else { return Vec::new() };
        self.places(&self.vmlinux[*running], opened, text.wrapping_add(offset).wrapping_sub(1))
    }

    /// The places of a return address in a module: `module` and `function` as the kernel names them, `offset` in the function,
    /// and `size` of the function as kallsyms has it, which tells functions of equal names apart, and a module that was
    /// built otherwise; 0 if it is not known. Nothing where no file says anything.
    pub fn module(&self, module: &str, function: &str, offset: u64, size: u64) -> Vec<Place> {
        let release = self.running.get().map(|(_, release)| release.as_str());
        let further = self.further.as_ref().map_or(&[][..], Further::modules);
        for (_, file) in self.modules.iter().chain(further).filter(|(name, _)| name == module) {
            let Some(opened) = self.opened(file) else { continue };
            // A folder may hold the modules of several kernels.
            if release.is_some() && opened.release.is_some() && opened.release.as_deref() != release {
                continue;
            }
            let Some(start) = opened.functions.find(function, size) else { continue };
            let places = self.places(file, opened, start.wrapping_add(offset).wrapping_sub(1));
            if !places.is_empty() {
                return places;
            }
        }
        Vec::new()
    }

    /// What went wrong with files since this was asked last.
    pub fn take_problems(&self) -> Vec<LinesError> {
        std::mem::take(&mut *lock(&self.problems))
    }

    fn opened<'a>(&self, file: &'a File) -> Option<&'a Opened> {
        let opened = file.opened.get_or_init(|| match Opened::new(&file.path) {
            Ok(opened) => Some(opened),
            // A module that nobody gave may have been built without.
            Err(LinesError::NoDwarf { .. }) if self.further.is_some() => None,
            Err(why) => {
                lock(&self.problems).push(why);
                None
            }
        });
        opened.as_ref()
    }

    fn places(&self, file: &File, opened: &Opened, at: u64) -> Vec<Place> {
        lock(&opened.debug).places(at).unwrap_or_else(|why| {
            let mut problems = lock(&self.problems);
            // Once for each file: what is broken may be asked for again and again.
            if !problems.iter().any(|p| matches!(p, LinesError::BadDwarf { path, .. } if *path == file.path)) {
                problems.push(LinesError::BadDwarf { path: file.path.clone(), why: why.to_string() });
            }
            Vec::new()
        })
    }
}

impl File {
    fn new(path: PathBuf) -> File {
        File { path, opened: OnceLock::new() }
    }
}

impl Opened {
    fn new(path: &Path) -> Result<Opened, LinesError> {
        let elf = open(path)?;
        let debug = Debug::read(&elf).map_err(|why| LinesError::BadDwarf { path: path.to_owned(), why })?;
        Ok(Opened { debug: Mutex::new(debug), functions: elf.functions(), release: elf.vermagic() })
    }
}

/// Opens a file with debugging information.
fn open(path: &Path) -> Result<Elf, LinesError> {
    let path = || path.to_owned();
    let elf = Elf::open(&path()).map_err(|why| match why {
        ElfError::Unreadable(why) if why.kind() == ErrorKind::NotFound => LinesError::Missing { path: path() },
        ElfError::Unreadable(why) => LinesError::Unreadable { path: path(), why },
        ElfError::NoElf(why) => LinesError::NoElf { path: path(), why },
    })?;
    if elf.has_dwarf() { Ok(elf) } else { Err(LinesError::NoDwarf { path: path() }) }
}

/// What a thread that panicked left is whole: nothing here is changed in steps.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
