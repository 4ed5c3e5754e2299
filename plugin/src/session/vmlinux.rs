//! Finds the vmlinux of the running kernel near the file of QEMU's option -kernel. Kernels that the
//! user built have it there.
//!
//! The file provides source lines, and the types or symbols that the kernel's image lacks. It is
//! used only if it belongs to the running kernel.

use crate::ffi::signals;
use guest_symbols::elf::{Elf, ElfError};
use guest_symbols::identity::Identity;
use guest_symbols::kernel::KernelError;
use guest_symbols::memory::{PhysAddr, StoppedMemory, VirtAddr};
use guest_symbols::symbol_file::{SymbolFile, SymbolFileError};
use guest_symbols::types::{self, dwarf::DwarfError};
use guest_symbols::{GuestMemory, Kernel};
use lines::Lines;
use std::ffi::OsStr;
use std::fmt;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::Instant;

/// Why a vmlinux was not used.
#[derive(Debug, thiserror::Error)]
pub enum VmlinuxError {
    /// It is not an ELF file of a kernel.
    #[error("{path}: {why}")]
    Elf {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: ElfError,
    },
    /// It belongs to another kernel.
    #[error("{path} is not used: it is of {theirs}, and the guest runs {ours}")]
    OtherKernel {
        /// The file.
        path: PathBuf,
        /// The kernel of the file.
        theirs: Identity,
        /// The running kernel.
        ours: Identity,
    },
    /// Its debugging information cannot be read.
    #[error("{path}: {why}")]
    Types {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: DwarfError,
    },
    /// It describes no types.
    #[error("{path}: it has neither BTF nor debugging information")]
    NoTypes {
        /// The file.
        path: PathBuf,
    },
    /// Its symbols cannot be read.
    #[error(transparent)]
    Symbols(#[from] SymbolFileError),
    /// The running kernel was not found with its symbols.
    #[error(transparent)]
    Kernel(#[from] KernelError),
}

/// Why the running kernel cannot be tracked, and why no vmlinux helps.
#[derive(Debug)]
pub struct IncompleteKernel {
    /// What the kernel lacks.
    pub why: KernelError,
    /// One for each vmlinux that was tried.
    pub unused: Vec<VmlinuxError>,
}

impl fmt::Display for IncompleteKernel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.why)?;
        self.unused.iter().try_for_each(|why| write!(f, "; {why}"))
    }
}

/// Files and folders that may belong to the guest's kernel.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Beside {
    /// Paths that may be a vmlinux, the most likely first.
    vmlinux: Vec<PathBuf>,
    /// Folders that may contain modules at any depth.
    modules: Vec<PathBuf>,
    /// The working folder of QEMU, which may contain modules.
    here: Option<PathBuf>,
}

impl Beside {
    /// Reads the command line of this QEMU. Must be called before QEMU goes to the background,
    /// because that changes the working folder.
    pub fn this_qemu() -> Beside {
        let words = std::fs::read("/proc/self/cmdline").unwrap_or_default();
        let here = std::env::current_dir().ok();
        kernel_file(&words).map_or_else(Beside::default, |kernel| Beside { here, ..Beside::of(&kernel) })
    }

    /// The candidates for the image at the path `kernel`.
    fn of(kernel: &Path) -> Beside {
        let mut beside = Beside::default();
        let absolute = std::path::absolute(kernel).unwrap_or_else(|_| kernel.to_owned());
        // It may be a link into another tree.
        let target = absolute.canonicalize().unwrap_or_else(|_| absolute.clone());
        for path in [&absolute, &target] {
            let Some((folder, name)) = path.parent().zip(path.file_name()) else { continue };
            if let Some(tree) = build_tree(folder) {
                beside.add(tree.join("vmlinux"));
                beside.modules.push(tree.to_owned());
            }
            if let Some(release) = release(folder, name) {
                let debug = Path::new("/usr/lib/debug");
                let (modules, file) = (Path::new("lib/modules").join(&release), vmlinux(&release));
                beside.add(folder.join(&file));
                beside.add(debug.join("boot").join(&file));
                beside.add(debug.join(&modules).join("vmlinux"));
                beside.add(Path::new("/boot").join(&file));
                beside.add(Path::new("/").join(&modules).join("build/vmlinux"));
                beside.modules.push(debug.join(&modules));
            }
            beside.add(folder.join("vmlinux"));
        }
        beside.modules.dedup();
        beside
    }

    fn add(&mut self, path: PathBuf) {
        if !self.vmlinux.contains(&path) {
            self.vmlinux.push(path);
        }
    }

    fn files(&self) -> impl Iterator<Item = &Path> {
        self.vmlinux.iter().map(PathBuf::as_path).filter(|path| path.is_file())
    }

    /// Adds the types or symbols that the running kernel lacks, from its own vmlinux. `found` is
    /// the result of reading guest memory alone. `at` and `phys` are the virtual and the physical
    /// address of an instruction of the kernel. The guest waits meanwhile. A large vmlinux takes
    /// half a second, once. A kernel with symbols and BTF is returned as it is.
    ///
    /// # Errors
    /// [`IncompleteKernel`].
    pub fn complete(
        &self,
        found: Result<Kernel, KernelError>,
        memory: &impl StoppedMemory,
        (at, phys): (VirtAddr, PhysAddr),
    ) -> Result<Kernel, IncompleteKernel> {
        let mut found = match found {
            Ok(kernel) if kernel.btf.is_some() => return Ok(kernel),
            Err(why @ (KernelError::NotLinux(_) | KernelError::File(_))) => {
                return Err(IncompleteKernel { why, unused: Vec::new() });
            }
            found => found,
        };
        let mut unused = Vec::new();
        for path in self.files() {
            let began = Instant::now();
            let tried = match found {
                Ok(ref mut kernel) => types_of(kernel, memory, path),
                Err(_) => match all_of(memory, path, (at, phys)) {
                    Ok(kernel) => {
                        let has_types = kernel.btf.is_some();
                        found = Ok(kernel);
                        if has_types { Ok(()) } else { Err(VmlinuxError::NoTypes { path: path.to_owned() }) }
                    }
                    Err(why) => Err(why),
                },
            };
            match tried {
                Ok(()) => {
                    log::info!("{} is the running kernel's, and was read in {:?}", path.display(), began.elapsed());
                    return found.map_err(|why| IncompleteKernel { why, unused });
                }
                Err(why) => unused.push(why),
            }
        }
        match found {
            Ok(kernel) => Err(IncompleteKernel { why: KernelError::NoTypes { release: kernel.release }, unused }),
            Err(why) => Err(IncompleteKernel { why, unused }),
        }
    }

    /// Source lines of the running kernel and its modules, if its vmlinux has them. Only headers
    /// are read here. The rest is read at the first lookup.
    pub fn lines(&self, kernel: &Kernel, memory: &impl GuestMemory) -> Option<Lines> {
        let ours = Identity::of_guest(kernel, memory);
        for path in self.files() {
            let Ok(elf) = Elf::open(path) else { continue };
            let theirs = Identity::of_file(&elf, &ours);
            if !theirs.is(&ours) {
                // Nothing depends on it: an older build may have left the file there.
                log::info!("{}", VmlinuxError::OtherKernel { path: path.to_owned(), theirs, ours: ours.clone() });
            } else if elf.has_dwarf() {
                log::info!("source lines are those of {}", path.display());
                return Some(Lines::of_running(path, &kernel.release, &self.modules, self.here.as_deref()));
            }
        }
        None
    }
}

/// Sets the types of the running kernel from its vmlinux.
fn types_of(kernel: &mut Kernel, memory: &impl StoppedMemory, path: &Path) -> Result<(), VmlinuxError> {
    let path = || path.to_owned();
    let elf = Elf::open(&path()).map_err(|why| VmlinuxError::Elf { path: path(), why })?;
    let ours = Identity::of_guest(kernel, memory);
    let theirs = Identity::of_file(&elf, &ours);
    if !theirs.is(&ours) {
        return Err(VmlinuxError::OtherKernel { path: path(), theirs, ours });
    }
    let btf = signals::while_blocked(|| types::of_file(&elf));
    let btf = btf.map_err(|why| VmlinuxError::Types { path: path(), why })?;
    kernel.take_types(memory, btf.ok_or_else(|| VmlinuxError::NoTypes { path: path() })?);
    Ok(())
}

/// The running kernel with the symbols of its vmlinux, and its types if it has none.
fn all_of(memory: &impl StoppedMemory, path: &Path, (at, phys): (VirtAddr, PhysAddr)) -> Result<Kernel, VmlinuxError> {
    let file = SymbolFile::open(path)?;
    Ok(signals::while_blocked(|| Kernel::find(memory, at, phys, Some(&file)))?)
}

/// The file of -kernel in a command line, whose words each end with a NUL. The last one counts, as
/// in QEMU.
fn kernel_file(words: &[u8]) -> Option<PathBuf> {
    let words: Vec<&[u8]> = words.split(|&byte| byte == 0).collect();
    let option = words.iter().rposition(|word| matches!(*word, b"-kernel" | b"--kernel"))?;
    words.get(option + 1).filter(|word| !word.is_empty()).map(|word| PathBuf::from(OsStr::from_bytes(word)))
}

/// The root of the tree that contains `arch/x86/boot`. `arch/x86_64/boot` has a link to the image.
fn build_tree(folder: &Path) -> Option<&Path> {
    let arch = folder.parent()?;
    let is_boot = folder.ends_with("arch/x86/boot") || folder.ends_with("arch/x86_64/boot");
    arch.parent()?.parent().filter(|_| is_boot)
}

/// The release in `vmlinuz-RELEASE`, or in `/lib/modules/RELEASE/vmlinuz`.
fn release(folder: &Path, name: &OsStr) -> Option<PathBuf> {
    let name = name.to_str()?;
    match name.strip_prefix("vmlinuz-") {
        Some(release) => Some(PathBuf::from(release)),
        None => folder
            .file_name()
            .filter(|_| name == "vmlinuz" && folder.parent().is_some_and(|p| p.ends_with("lib/modules")))
            .map(PathBuf::from),
    }
}

fn vmlinux(release: &Path) -> PathBuf {
    PathBuf::from(format!("vmlinux-{}", release.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_kernel_counts() {
        assert_eq!(kernel_file(b"qemu\0-kernel\0/a\0-S\0--kernel\0b/c\0"), Some("b/c".into()));
        assert_eq!(kernel_file(b"qemu\0-append\0-kernel=x\0-kernel\0"), None);
        assert_eq!(kernel_file(b""), None);
    }

    fn places(kernel: &str) -> Vec<String> {
        Beside::of(Path::new(kernel)).vmlinux.iter().map(|path| path.display().to_string()).collect()
    }

    #[test]
    fn places_of_a_vmlinux() {
        assert_eq!(places("/no/linux/arch/x86/boot/bzImage"), ["/no/linux/vmlinux", "/no/linux/arch/x86/boot/vmlinux"]);
        assert_eq!(places("/no/arch/x86_64/boot/bzImage")[0], "/no/vmlinux");
        assert_eq!(Beside::of(Path::new("/no/linux/arch/x86/boot/bzImage")).modules, [Path::new("/no/linux")]);
        assert_eq!(
            places("/no/boot/vmlinuz-6.1-a"),
            [
                "/no/boot/vmlinux-6.1-a",
                "/usr/lib/debug/boot/vmlinux-6.1-a",
                "/usr/lib/debug/lib/modules/6.1-a/vmlinux",
                "/boot/vmlinux-6.1-a",
                "/lib/modules/6.1-a/build/vmlinux",
                "/no/boot/vmlinux"
            ]
        );
        assert_eq!(places("/no/lib/modules/6.9/vmlinuz")[1], "/usr/lib/debug/boot/vmlinux-6.9");
        assert_eq!(places("/no/where/bzImage"), ["/no/where/vmlinux"]);
    }
}
