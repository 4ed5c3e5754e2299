//! The folder of one `leak run`: what QEMUs are to be started with, and what became of each.
//!
//! | path in it | |
//! |---|---|
//! | `setup.json` | [`Setup`], for the shims |
//! | `bin/` | the shims: links to this program under QEMU's names |
//! | `1/`, `2/`, ... | one for each QEMU: `started.json` ([`Started`]), `report.jsonl`, the sockets `qmp` and `control` |

use serde::{Deserialize, Serialize};
use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::{fs, io};

/// The environment variable that tells a shim the folder.
pub const VARIABLE: &str = "LIBLEAK_RUN";

/// Names under which QEMU for x86-64 is called.
pub const NAMES: [&str; 4] = ["qemu-system-x86_64", "qemu-kvm", "kvm", "qemu"];

/// How QEMUs are to be started.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Setup {
    /// The plugin.
    pub plugin: PathBuf,
    /// Its options, in QEMU's form: commas in values are doubled.
    pub options: Vec<String>,
    /// Whether KVM stays on the command line.
    pub keep_kvm: bool,
}

/// A QEMU that was started.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Started {
    /// Its process.
    pub pid: u32,
    /// Its file.
    pub program: PathBuf,
    /// What was changed about KVM.
    pub changed: Vec<String>,
    /// What was left about KVM.
    pub kept: Vec<String>,
    /// Whether it went on in the background.
    pub daemonized: bool,
    /// Whether it had libleak on its command line already.
    pub watched: bool,
}

/// What does not work in the folder.
#[derive(Debug, thiserror::Error)]
#[error("cannot use {path}: {why}; make room there, or set TMPDIR to a folder that can be written")]
pub struct FolderError {
    /// The file or folder.
    pub path: PathBuf,
    /// The system's word.
    pub why: io::Error,
}

/// Writes a value for another process of ours.
///
/// # Errors
/// [`FolderError`].
pub fn save(path: &Path, value: &impl Serialize) -> Result<(), FolderError> {
    let fail = |why| FolderError { path: path.into(), why };
    let text = serde_json::to_vec(value).map_err(|e| fail(e.into()))?;
    // Whoever reads it must not see half of it.
    let partial = path.with_extension("partial");
    fs::write(&partial, text).and_then(|()| fs::rename(&partial, path)).map_err(fail)
}

/// Reads it back.
///
/// # Errors
/// [`FolderError`].
pub fn load<T: for<'a> Deserialize<'a>>(path: &Path) -> Result<T, FolderError> {
    let fail = |why| FolderError { path: path.into(), why };
    let text = fs::read(path).map_err(fail)?;
    serde_json::from_slice(&text).map_err(|e| fail(e.into()))
}

/// The file of that name in the folders of `path`, as a shell finds it, but for `not` by whatever name.
pub fn find(name: &OsStr, path: &OsStr, not: Option<&Path>) -> Option<PathBuf> {
    use std::os::unix::fs::PermissionsExt;
    let runs = |file: &Path| file.metadata().is_ok_and(|m| m.is_file() && m.permissions().mode() & 0o111 != 0);
    let files = std::env::split_paths(path).map(|folder| folder.join(name));
    files.filter(|file| runs(file)).find(|file| fs::canonicalize(file).ok().as_deref() != not || not.is_none())
}

/// Makes the shims for all names that lead to a QEMU now, and returns PATH with them in front.
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
    // A script that asks which of them there are gets the answer that it would get.
    for name in NAMES.iter().filter(|name| find(name.as_ref(), path, Some(leak)).is_some()) {
        std::os::unix::fs::symlink(leak, bin.join(name)).map_err(fail(&bin))?;
    }
    let folders = [bin.clone()].into_iter().chain(std::env::split_paths(path));
    std::env::join_paths(folders).map_err(|e| FolderError { path: bin, why: io::Error::other(e) })
}

/// Makes the folder of one more QEMU.
///
/// # Errors
/// [`FolderError`].
pub fn next(folder: &Path) -> Result<PathBuf, FolderError> {
    for n in 1_u32.. {
        let path = folder.join(n.to_string());
        match fs::create_dir(&path) {
            Ok(()) => return Ok(path),
            // Another QEMU was as quick.
            Err(why) if why.kind() == io::ErrorKind::AlreadyExists => {}
            Err(why) => return Err(FolderError { path, why }),
        }
    }
    unreachable!("no file system holds as many folders")
}

/// The folders of QEMUs, in the order in which they were started.
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
