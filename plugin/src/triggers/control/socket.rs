//! The socket's file. Only this user may ever use it. It replaces a file that a killed process
//! left, and is removed at the end.

use crate::file::advice;
use std::fs::{self, DirBuilder};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

/// Why QEMU is to stop at start.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// Another process listens there.
    #[error(
        "control={path}: another process listens there, such as another QEMU with libleak; give each its own path, or end that one"
    )]
    InUse {
        /// The path given.
        path: PathBuf,
    },
    /// There is a file that is not a socket.
    #[error("control={path}: this file is not a socket; give another path, or remove that file")]
    NoSocket {
        /// The path given.
        path: PathBuf,
    },
    /// The system refused.
    #[error("control={path}: no socket can be made there: {why}; {advice}", advice = what_to_do(why))]
    System {
        /// The path given.
        path: PathBuf,
        /// The error of the system.
        why: io::Error,
    },
}

fn what_to_do(why: &io::Error) -> &'static str {
    match why.kind() {
        // The path is too long.
        ErrorKind::InvalidInput => "give a path of less than 90 bytes: paths of sockets are limited to 107",
        _ => advice(why),
    }
}

/// A listening socket. Dropping it removes its file, unless another process has replaced the file.
pub struct Socket {
    /// The listener.
    pub listener: UnixListener,
    file: SocketFile,
}

struct SocketFile {
    path: PathBuf,
    /// Device and inode.
    identity: (u64, u64),
}

impl Socket {
    /// Listens at `path`, for this user alone.
    ///
    /// # Errors
    /// [`SocketError`]; nothing is changed then.
    pub fn bind(path: &Path) -> Result<Socket, SocketError> {
        let system = |why| SocketError::System { path: path.into(), why };
        match fs::symlink_metadata(path) {
            Ok(found) if !found.file_type().is_socket() => return Err(SocketError::NoSocket { path: path.into() }),
            Ok(_) => match UnixStream::connect(path) {
                // A killed process left it.
                Err(why) if why.kind() == ErrorKind::ConnectionRefused => {}
                Ok(_) => return Err(SocketError::InUse { path: path.into() }),
                Err(why) => return Err(system(why)),
            },
            Err(why) if why.kind() == ErrorKind::NotFound => {}
            Err(why) => return Err(system(why)),
        }
        // The process's umask decides the mode of a new socket, and other threads need the umask.
        // So the socket is made in a private folder, gets its mode, and is then renamed.
        let folder = path.with_file_name(format!(".libleak-{}", std::process::id()));
        DirBuilder::new().mode(0o700).create(&folder).map_err(system)?;
        let socket = Socket::bind_in(&folder, path).map_err(system);
        // The folder is empty, unless that failed.
        let _ = fs::remove_dir_all(&folder);
        socket
    }

    fn bind_in(folder: &Path, path: &Path) -> io::Result<Socket> {
        let inside = folder.join("s");
        let listener = UnixListener::bind(&inside)?;
        fs::set_permissions(&inside, fs::Permissions::from_mode(0o600))?;
        let found = fs::symlink_metadata(&inside)?;
        fs::rename(&inside, path)?;
        let file = SocketFile { path: path.into(), identity: (found.dev(), found.ino()) };
        Ok(Socket { listener, file })
    }

    /// Removes the file.
    pub fn remove(&self) {
        let identity = fs::symlink_metadata(&self.file.path).map(|found| (found.dev(), found.ino()));
        if identity.is_ok_and(|identity| identity == self.file.identity) {
            let _ = fs::remove_file(&self.file.path);
        }
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        self.remove();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder(test: &str) -> PathBuf {
        let folder = std::env::temp_dir().join(format!("libleak-socket-{test}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&folder);
        fs::create_dir_all(&folder).unwrap();
        folder
    }

    #[test]
    fn it_is_the_users_own_and_goes_with_its_owner() {
        let folder = folder("own");
        let path = folder.join("s");
        let socket = Socket::bind(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, 0o600);
        UnixStream::connect(&path).unwrap();
        // Nothing else is left there.
        assert_eq!(fs::read_dir(&folder).unwrap().count(), 1);
        drop(socket);
        assert_eq!(fs::read_dir(&folder).unwrap().count(), 0);
        fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn a_live_socket_is_refused_and_a_stale_one_replaced() {
        let folder = folder("stale");
        let path = folder.join("s");
        let live = UnixListener::bind(&path).unwrap();
        assert!(Socket::bind(&path).err().unwrap().to_string().contains("another process listens"));
        drop(live);
        let socket = Socket::bind(&path).unwrap();
        UnixStream::connect(&path).unwrap();
        // Another process's file is not removed.
        fs::remove_file(&path).unwrap();
        let other = UnixListener::bind(&path).unwrap();
        drop(socket);
        UnixStream::connect(&path).unwrap();
        drop(other);
        fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn other_files_and_bad_paths_are_refused() {
        let folder = folder("bad");
        let path = folder.join("s");
        let error = |path: &Path| Socket::bind(path).err().unwrap().to_string();
        fs::write(&path, "mine").unwrap();
        assert!(error(&path).contains("not a socket"));
        assert_eq!(fs::read_to_string(&path).unwrap(), "mine");
        assert!(error(&folder).contains("not a socket"));
        assert!(error(&folder.join("nowhere/s")).contains("make the folder"));
        let long = folder.join("x".repeat(90));
        fs::create_dir(&long).unwrap();
        assert!(error(&long.join("s")).contains("less than 90 bytes"), "{}", error(&long.join("s")));
        // The folder of the socket is gone.
        assert_eq!(fs::read_dir(&long).unwrap().count(), 0);
        fs::remove_dir_all(folder).unwrap();
    }
}
