//! The folder of one `leak run`. It says how to start QEMUs, and records each QEMU.
//!
//! | path | |
//! |---|---|
//! | `setup.json` | [`Setup`], for the shims |
//! | `bin/` | the shims: links to this program under QEMU's names |
//! | `1/`, `2/`, ... | one folder per QEMU: `started.json` ([`Started`]), `report.jsonl`, the sockets `qmp` and `control` |

use serde::{Deserialize, Serialize};
use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::{fs, io};

/// The environment variable that gives shims the folder.
pub const VARIABLE: &str = "LIBLEAK_RUN";

/// The names of QEMU for x86-64.
pub const NAMES: [&str; 4] = ["qemu-system-x86_64", "qemu-kvm", "kvm", "qemu"];

/// How QEMUs are started.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Setup {
    /// The plugin.
    pub plugin: PathBuf,
    /// Its options in QEMU's syntax: commas in values are doubled.
    pub options: Vec<String>,
    /// Whether KVM stays on the command line.
    pub keep_kvm: bool,
}

/// A QEMU that was started.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Started {
    /// The process ID.
    pub pid: u32,
    /// The executable.
    pub program: PathBuf,
    /// Changes concerning KVM.
    pub changed: Vec<String>,
    /// Options of KVM that were kept.
    pub kept: Vec<String>,
    /// Whether it continued in the background.
    pub daemonized: bool,
    /// Whether libleak was already on its command line.
    pub watched: bool,
}

/// A file or folder of the run cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("cannot use {path}: {why}; make room there, or set TMPDIR to a folder that can be written")]
pub struct FolderError {
    /// The file or folder.
    pub path: PathBuf,
    /// The error of the system.
    pub why: io::Error,
}

/// Writes a value for another process of this program.
///
/// # Errors
/// [`FolderError`].
pub fn save(path: &Path, value: &impl Serialize) -> Result<(), FolderError> {
    let fail = |why| FolderError { path: path.into(), why };
    let text = serde_json::to_vec(value).map_err(|e| fail(e.into()))?;
    // A reader must not see an incomplete file.
    let partial = path.with_extension("partial");
    fs::write(&partial, text).and_then(|()| fs::rename(&partial, path)).map_err(fail)
}

/// Reads a value that [`save`] wrote.
///
/// # Errors
/// [`FolderError`].
pub fn load<T: for<'a> Deserialize<'a>>(path: &Path) -> Result<T, FolderError> {
    let fail = |why| FolderError { path: path.into(), why };
    let text = fs::read(path).map_err(fail)?;
    serde_json::from_slice(&text).map_err(|e| fail(e.into()))
}

/// The executable of this name in the folders of `path`, as a shell finds it. Skips `not` under any
/// name.
pub fn find(name: &OsStr, path: &OsStr, not: Option<&Path>) -> Option<PathBuf> {
    use std::os::unix::fs::PermissionsExt;
    let runs = |file: &Path| file.metadata().is_ok_and(|m| m.is_file() && m.permissions().mode() & 0o111 != 0);
    let files = std::env::split_paths(path).map(|folder| folder.join(name));
    files.filter(|file| runs(file)).find(|file| fs::canonicalize(file).ok().as_deref() != not || not.is_none())
}

/// Creates shims for all names that lead to a QEMU now. Returns PATH with their folder in front.
///
/// # Errors
/// [`FolderError`].
pub fn make_shims(folder: &Path, leak: &Path, path: &OsStr) -> Result<OsString, FolderError> {
    let bin = folder.join("bin");
    let fail = |path: &Path| {
        let path = path.to_owned();
        move |why| FolderError { path, why }
    };
    fs::create_dir(&bin).map_err(fail(&bin))?;
    // Names without a QEMU get no shim, so that scripts that test for names still work.
    for name in NAMES.iter().filter(|name| find(name.as_ref(), path, Some(leak)).is_some()) {
        std::os::unix::fs::symlink(leak, bin.join(name)).map_err(fail(&bin))?;
    }
    let folders = [bin.clone()].into_iter().chain(std::env::split_paths(path));
    std::env::join_paths(folders).map_err(|e| FolderError { path: bin, why: io::Error::other(e) })
}

/// Creates the folder of the next QEMU.
///
/// # Errors
/// [`FolderError`].
pub fn next(folder: &Path) -> Result<PathBuf, FolderError> {
    for n in 1_u32.. {
        let path = folder.join(n.to_string());
        match fs::create_dir(&path) {
            Ok(()) => return Ok(path),
            // Another QEMU took the number.
            Err(why) if why.kind() == io::ErrorKind::AlreadyExists => {}
            Err(why) => return Err(FolderError { path, why }),
        }
    }
    unreachable!("no file system holds as many folders")
}

/// The folders of QEMUs, in the order of their start.
pub fn all(folder: &Path) -> Vec<PathBuf> {
    (1_u32..).map(|n| folder.join(n.to_string())).take_while(|path| path.is_dir()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shims_stand_before_what_they_stand_for() {
        let folder = tempfile::tempdir().unwrap();
        let (real, run) = (folder.path().join("real"), folder.path().join("run"));
        let leak = fs::canonicalize(std::env::current_exe().unwrap()).unwrap();
        for folder in [&real, &run] {
            fs::create_dir(folder).unwrap();
        }
        std::os::unix::fs::symlink("/bin/true", real.join("qemu-kvm")).unwrap();
        let path = make_shims(&run, &leak, real.as_os_str()).unwrap();
        assert_eq!(fs::read_dir(run.join("bin")).unwrap().count(), 1);
        assert_eq!(find("qemu-kvm".as_ref(), &path, None), Some(run.join("bin/qemu-kvm")));
        assert_eq!(find("qemu-kvm".as_ref(), &path, Some(&leak)), Some(real.join("qemu-kvm")));
        assert_eq!(find("kvm".as_ref(), &path, None), None);

        assert!(all(&run).is_empty());
        let one = next(&run).unwrap();
        assert_eq!((next(&run).unwrap(), all(&run)), (run.join("2"), vec![one, run.join("2")]));
        let setup = Setup { plugin: "p".into(), options: vec!["a=b,,c".into()], keep_kvm: true };
        save(&run.join("setup.json"), &setup).unwrap();
        assert_eq!(load::<Setup>(&run.join("setup.json")).unwrap(), setup);
        let error = load::<Setup>(&run.join("none")).unwrap_err().to_string();
        assert!(error.contains("/none") && error.contains("TMPDIR"), "{error}");
    }
}
