//! Source locations of a guest kernel's code: the file and line of an address. They come from
//! debugging information (DWARF) in files that the user names, or in the running kernel's vmlinux.
//!
//! - [`Lines`]: the files, and lookups in them
//! - `files`: finds the files below a path
//! - `dwarf`: source locations of addresses
//! - `paths`: file names relative to the kernel's tree
//! - [`LinesError`] and [`Place`]
//!
//! A file is opened at the first lookup in it. Sections are read, not mapped. Of the 590 MB of
//! Debian's vmlinux, about 190 MB are needed. They stay in memory as long as the [`Lines`]. Files
//! are untrusted input: lengths are checked against the file, and no contents cause a panic.
//!
//! # Example
//!
//! Source locations in a module, from a folder with the debugging information of a kernel:
//!
//! ```no_run
//! use lines::Lines;
//!
//! let lines = Lines::open(&["/usr/lib/debug/lib/modules/6.1.0-56-amd64".into()])?;
//! // A return address at offset 0x42 of probe(), which kallsyms says has 0x80 bytes.
//! for place in lines.module("leaky", "probe", 0x42, 0x80) {
//!     println!("{}:{}", place.file, place.line);
//! }
//! # Ok::<(), lines::LinesError>(())
//! ```
//!
//! A path that does not exist is an error that names it:
//!
//! ```
//! use lines::{Lines, LinesError};
//!
//! let error = Lines::open(&["/no/such/vmlinux".into()]).err().unwrap();
//! assert!(matches!(error, LinesError::Missing { .. }));
//! assert_eq!(error.to_string(), "debug=/no/such/vmlinux: there is no such file or folder");
//! ```

#![forbid(unsafe_code)]

mod dwarf;
mod error;
mod files;
mod paths;
mod place;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;

pub use error::{DwarfError, LinesError};
pub use place::Place;

use dwarf::Debug;
use files::Found;
use guest_symbols::elf::Functions;
use guest_symbols::identity::Identity;
use guest_symbols::{GuestMemory, Kernel};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

/// A file that is opened on demand.
struct File {
    path: PathBuf,
    opened: OnceLock<Option<Opened>>,
}

/// Folders that may contain modules.
struct Further {
    /// Folders that are searched at any depth.
    trees: Vec<PathBuf>,
    /// A folder that is searched without its subfolders.
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
    /// The kernel release that a module was built for.
    release: Option<String>,
}

/// Files with debugging information.
///
/// Any thread may look up addresses. Lookups in one file are serialised.
pub struct Lines {
    vmlinux: Vec<File>,
    modules: Vec<(String, File)>,
    /// Modules of the running kernel that are searched at the first lookup in a module.
    further: Option<Further>,
    /// The running kernel's index in `vmlinux`, and its release.
    running: OnceLock<(Option<usize>, String)>,
    problems: Mutex<Vec<LinesError>>,
}

impl Lines {
    /// Finds files: each path is a vmlinux, a module, or a folder that contains such files at any
    /// depth.
    ///
    /// # Errors
    /// All but [`LinesError::OtherKernel`] and [`LinesError::BadDwarf`]. Modules in folders are
    /// read on demand. Errors of these are returned by [`Lines::take_problems`].
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

    /// Takes a vmlinux that belongs to the running kernel, whose release is `release`. Its modules
    /// are searched below `trees` and in `folder`, at the first lookup in a module.
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

    /// Finds the vmlinux of the running kernel, which [`Lines::kernel`] then uses.
    ///
    /// Build IDs are compared (`.notes`, at `__start_notes`: include/asm-generic/vmlinux.lds.h). If
    /// either side has none, `linux_banner` is compared. Without a vmlinux there is nothing to
    /// check. `memory` is guest memory at any time after the start of the boot.
    ///
    /// # Errors
    /// [`LinesError::OtherKernel`] if each vmlinux belongs to another kernel, or the error of
    /// reading one.
    pub fn check_kernel(&self, kernel: &Kernel, memory: &impl GuestMemory) -> Result<(), LinesError> {
        self.check(&Identity::of_guest(kernel, memory), &kernel.release)
    }

    fn check(&self, ours: &Identity, release: &str) -> Result<(), LinesError> {
        let mut refused = None;
        let mut found = None;
        for (i, file) in self.vmlinux.iter().enumerate() {
            match files::open(&file.path).map(|elf| Identity::of_file(&elf, ours)) {
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
                // A second call keeps the first result, since a guest's kernel does not change.
                self.running.get_or_init(|| (found, release.to_owned()));
                Ok(())
            }
        }
    }

    /// The source locations of the call that returns to `at`, a virtual address in the running
    /// kernel's image. Innermost first. Empty if no file covers it, or before
    /// [`Lines::check_kernel`] succeeded.
    pub fn kernel(&self, kernel: &Kernel, at: u64) -> Vec<Place> {
        let text = kernel.symbols.lookup("_text").or_else(|| kernel.symbols.lookup("_stext"));
        text.map_or(Vec::new(), |text| self.image(at.wrapping_sub(text)))
    }

    /// As [`Lines::kernel`], for an offset from `_text`, which is also the start of the section
    /// `.text` (arch/x86/kernel/vmlinux.lds.S).
    fn image(&self, offset: u64) -> Vec<Place> {
        let Some((Some(running), _)) = self.running.get() else { return Vec::new() };
        let Some(opened) = self.opened(&self.vmlinux[*running]) else { return Vec::new() };
        let Some(text) = opened.functions.text else { return Vec::new() };
        self.places(&self.vmlinux[*running], opened, text.wrapping_add(offset).wrapping_sub(1))
    }

    /// The source locations of a call in a module, innermost first.
    ///
    /// `module` and `function` are named as in the kernel. `offset` is that of the return address
    /// in the function. `size` is the size of the function in kallsyms, or 0 if it is unknown. It
    /// distinguishes functions of one name, and other builds of the module. Empty if no file
    /// matches.
    pub fn module(&self, module: &str, function: &str, offset: u64, size: u64) -> Vec<Place> {
        let release = self.running.get().map(|(_, release)| release.as_str());
        let further = self.further.as_ref().map_or(&[][..], Further::modules);
        for (_, file) in self.modules.iter().chain(further).filter(|(name, _)| name == module) {
            let Some(opened) = self.opened(file) else { continue };
            // A folder may hold modules of several kernels.
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

    /// The errors of files since the previous call.
    pub fn take_problems(&self) -> Vec<LinesError> {
        std::mem::take(&mut *lock(&self.problems))
    }

    fn opened<'a>(&self, file: &'a File) -> Option<&'a Opened> {
        let opened = file.opened.get_or_init(|| match Opened::new(&file.path) {
            Ok(opened) => Some(opened),
            // The user did not name the module, so it may lack debugging information.
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
            // One error per file, since a broken file may be asked repeatedly.
            if !problems.iter().any(|p| matches!(p, LinesError::BadDwarf { path, .. } if *path == file.path)) {
                problems.push(LinesError::BadDwarf { path: file.path.clone(), why: why.into() });
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
        let elf = files::open(path)?;
        let debug = Debug::read(&elf).map_err(|why| LinesError::BadDwarf { path: path.to_owned(), why })?;
        Ok(Opened { debug: Mutex::new(debug), functions: elf.functions(), release: elf.vermagic() })
    }
}

/// A panic leaves the data whole, since no update has several steps.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
