//! A file that grows by whole texts. A reader sees all of a text or nothing of it.
//!
//! The old content and the new text are written to another file, which then replaces the file. This
//! is not possible for pipes, terminals, and anything in /dev or /proc. There, text is appended.

use parking_lot::Mutex;
use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::path::{Path, PathBuf};

/// The file.
pub struct Grown {
    path: PathBuf,
    /// Held while a text is added: two writers at once would lose one of the texts.
    writing: Mutex<()>,
}

impl Grown {
    /// Creates or empties the file. If this fails, nothing is lost: [`Grown::append`] tries again.
    pub fn create(path: &Path) -> (Grown, io::Result<()>) {
        let file = Grown { path: path.into(), writing: Mutex::new(()) };
        let made = if file.is_special() { file.append("") } else { file.replace("", false) };
        (file, made)
    }

    /// The file's path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Appends a text.
    ///
    /// # Errors
    /// Errors of the system. The file is unchanged then.
    pub fn append(&self, text: &str) -> io::Result<()> {
        let _one = self.writing.lock();
        if self.is_special() {
            // Files are not created in a folder of devices.
            let mut file = OpenOptions::new().append(true).open(&self.path)?;
            return file.write_all(text.as_bytes());
        }
        self.replace(text, true)
    }

    fn is_special(&self) -> bool {
        let system = ["/dev", "/proc"].iter().any(|folder| self.path.starts_with(folder));
        system || fs::metadata(&self.path).is_ok_and(|m| !m.is_file() && !m.is_dir())
    }

    fn replace(&self, text: &str, keep: bool) -> io::Result<()> {
        // A symbolic link stays a link.
        let path = fs::canonicalize(&self.path).unwrap_or_else(|_| self.path.clone());
        let mut name = OsString::from(&path);
        name.push(".partial");
        let partial = PathBuf::from(name);
        let done = self.fill(&partial, &path, text, keep).and_then(|()| fs::rename(&partial, &path));
        if done.is_err() {
            // A partial file may fill the disk.
            let _ = fs::remove_file(&partial);
        }
        done
    }

    fn fill(&self, partial: &Path, path: &Path, text: &str, keep: bool) -> io::Result<()> {
        let mut file = File::create(partial)?;
        match File::open(path) {
            // The host's kernel copies the data, or shares the blocks where it can.
            Ok(mut before) if keep => io::copy(&mut before, &mut file).map(drop)?,
            // The file may have been moved by log rotation.
            Err(why) if keep && why.kind() != ErrorKind::NotFound => return Err(why),
            _ => {}
        }
        file.write_all(text.as_bytes())?;
        // A full disk may only be reported now.
        file.sync_data()
    }
}

/// What the user can do about an error.
pub fn advice(why: &io::Error) -> &'static str {
    match why.kind() {
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded | ErrorKind::FileTooLarge => "make room there",
        ErrorKind::NotFound | ErrorKind::NotADirectory => "make the folder, or give a path in one that is there",
        ErrorKind::IsADirectory => "give the path of a file",
        ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem => "give a path that QEMU's user may write to",
        _ => "give a path in a folder that exists and is writable",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;

    /// A folder of this test's own.
    fn folder(test: &str) -> PathBuf {
        let folder = std::env::temp_dir().join(format!("libleak-{test}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&folder);
        fs::create_dir_all(&folder).unwrap();
        folder
    }

    fn names(folder: &Path) -> Vec<OsString> {
        let mut names: Vec<_> = fs::read_dir(folder).unwrap().map(|e| e.unwrap().file_name()).collect();
        names.sort();
        names
    }

    #[test]
    fn it_is_emptied_and_grows_by_whole_texts() {
        let folder = folder("grows");
        let path = folder.join("report");
        fs::write(&path, "of yesterday").unwrap();
        let (file, made) = Grown::create(&path);
        made.unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "");
        file.append("one\n").unwrap();
        // A reader with the old file open keeps reading the old content.
        let mut old = File::open(&path).unwrap();
        file.append("two\n").unwrap();
        let mut text = String::new();
        old.read_to_string(&mut text).unwrap();
        assert_eq!((text.as_str(), fs::read_to_string(&path).unwrap().as_str()), ("one\n", "one\ntwo\n"));
        fs::remove_file(&path).unwrap();
        file.append("three\n").unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "three\n");
        assert_eq!(names(&folder), ["report"]);
        fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn of_many_at_once_none_is_lost() {
        let folder = folder("at-once");
        let path = folder.join("report");
        let (file, made) = Grown::create(&path);
        made.unwrap();
        let write = &|n: usize| (0..20).for_each(|_| file.append(&format!("{n}\n")).unwrap());
        std::thread::scope(|scope| (0..4).for_each(|n| drop(scope.spawn(move || write(n)))));
        assert_eq!(fs::read_to_string(&path).unwrap().lines().count(), 80);
        fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn a_link_stays_one() {
        let folder = folder("link");
        let (path, link) = (folder.join("report"), folder.join("latest"));
        fs::write(&path, "").unwrap();
        std::os::unix::fs::symlink(&path, &link).unwrap();
        let (file, made) = Grown::create(&link);
        made.unwrap();
        file.append("one\n").unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "one\n");
        assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
        fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn a_folder_may_come_later() {
        let folder = folder("later");
        let path = folder.join("nowhere/report");
        let (file, made) = Grown::create(&path);
        assert!(advice(&made.unwrap_err()).contains("make the folder"));
        assert!(file.append("one\n").is_err());
        fs::create_dir(folder.join("nowhere")).unwrap();
        file.append("two\n").unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "two\n");
        fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn a_full_disk_and_a_folder_are_told() {
        let (file, made) = Grown::create(Path::new("/dev/full"));
        made.unwrap();
        assert_eq!(advice(&file.append("one\n").unwrap_err()), "make room there");
        let folder = folder("is-one");
        let (_, made) = Grown::create(&folder.join("."));
        assert!(made.is_err());
        assert_eq!(names(&folder), [""; 0]);
        fs::remove_dir_all(folder).unwrap();
        // No file is created in /dev.
        let (_, made) = Grown::create(Path::new("/dev/libleak-no-such-device"));
        assert_eq!(made.unwrap_err().kind(), ErrorKind::NotFound);
    }
}
