//! Keeps types that were read from DWARF, for the next boot of the same kernel.
//!
//! There is one file for each build ID, in `$XDG_CACHE_HOME/libleak/types`. The default of
//! XDG_CACHE_HOME is `~/.cache`. A file has these parts:
//!
//! | bytes | contents |
//! |---|---|
//! | 16 | magic, which ends with the version of the translation |
//! | 4 | length of the build id |
//! | 4 | CRC-32 of the blob |
//! | | build id |
//! | | BTF blob |
//!
//! The files are untrusted input. A file that does not fit is replaced.

use crate::memory::u32_at;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

/// The last byte is the version of the translation.
const MARK: &[u8; 16] = b"libleak types\0\0\x01";
const HEADER: usize = 24;
/// The largest file in bytes. Large kernels have about 5 MB.
const MAX_BYTES: u64 = 256 << 20;
/// The most kernels that are kept. The oldest file is removed.
const MAX_KEPT: usize = 16;

/// The folder of the cache. `None` if neither XDG_CACHE_HOME nor HOME is an absolute path.
pub fn folder() -> Option<PathBuf> {
    let absolute = |name| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let caches = absolute("XDG_CACHE_HOME").or_else(|| Some(absolute("HOME")?.join(".cache")))?;
    Some(caches.join("libleak/types"))
}

/// The BTF blob that is kept for a build ID. `None` if there is none, or if its file is damaged.
pub fn load(folder: &Path, id: &[u8]) -> Option<Vec<u8>> {
    let path = folder.join(name(id));
    // Reading a pipe might never return.
    let about = fs::metadata(&path).ok().filter(|about| about.is_file() && about.len() <= MAX_BYTES)?;
    let mut bytes = Vec::with_capacity(about.len() as usize);
    File::open(&path).ok()?.take(MAX_BYTES).read_to_end(&mut bytes).ok()?;
    decode(&bytes, id).map(<[u8]>::to_vec)
}

/// The BTF blob in the contents of a file. `None` unless the file is for this build ID and intact.
pub fn decode<'a>(bytes: &'a [u8], id: &[u8]) -> Option<&'a [u8]> {
    let (id_len, sum) = (u32_at(bytes, 16)? as usize, u32_at(bytes, 20)?);
    let rest = bytes.strip_prefix(MARK)?.get(HEADER - MARK.len()..)?;
    let (own, blob) = rest.split_at_checked(id_len)?;
    (own == id && crc32fast::hash(blob) == sum).then_some(blob)
}

/// The contents of a file that [`decode`] reads.
pub fn encode(id: &[u8], blob: &[u8]) -> Vec<u8> {
    let words = [(id.len() as u32).to_le_bytes(), crc32fast::hash(blob).to_le_bytes()];
    [&MARK[..], words.as_flattened(), id, blob].concat()
}

/// Keeps a blob for a build ID. Other processes never see an incomplete file.
///
/// # Errors
/// The error of the system.
pub fn store(folder: &Path, id: &[u8], blob: &[u8]) -> io::Result<()> {
    fs::create_dir_all(folder)?;
    let temporary = folder.join(format!(".{}.{}", name(id), std::process::id()));
    let written = File::create(&temporary).and_then(|mut file| file.write_all(&encode(id, blob)));
    let done = written.and_then(|()| fs::rename(&temporary, folder.join(name(id))));
    if done.is_err() {
        let _ = fs::remove_file(&temporary);
    } else {
        forget(folder);
    }
    done
}

/// Removes the oldest files beyond [`MAX_KEPT`].
fn forget(folder: &Path) {
    let Ok(entries) = fs::read_dir(folder) else { return };
    let mut files: Vec<(SystemTime, PathBuf)> =
        entries.flatten().filter_map(|entry| Some((entry.metadata().ok()?.modified().ok()?, entry.path()))).collect();
    files.sort();
    let beyond = files.len().saturating_sub(MAX_KEPT);
    files.iter().take(beyond).for_each(|(_, path)| drop(fs::remove_file(path)));
}

/// The name of a file: at most 64 bytes of the build ID, in hexadecimal. Build IDs have 20 bytes.
fn name(id: &[u8]) -> String {
    id.iter().take(64).map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_kept_is_found_again() {
        let folder = std::env::temp_dir().join(format!("libleak-types-{}", std::process::id()));
        let _ = fs::remove_dir_all(&folder);
        store(&folder, &[1, 0xab], b"the blob").unwrap();
        assert_eq!(load(&folder, &[1, 0xab]).as_deref(), Some(&b"the blob"[..]));
        assert_eq!(load(&folder, &[1]), None);
        // A file for another build ID.
        fs::rename(folder.join("01ab"), folder.join("01")).unwrap();
        assert_eq!(load(&folder, &[1]), None);
        for id in 2..40u8 {
            store(&folder, &[id], b"another").unwrap();
        }
        let left = fs::read_dir(&folder).unwrap().count();
        assert_eq!((left, load(&folder, &[39]).is_some()), (MAX_KEPT, true));
        fs::remove_dir_all(&folder).unwrap();
    }

    #[test]
    fn damage_is_seen() {
        let whole = encode(&[7; 20], b"a blob of types");
        assert_eq!(decode(&whole, &[7; 20]), Some(&b"a blob of types"[..]));
        for at in 0..whole.len() {
            let mut bad = whole.clone();
            bad[at] ^= 1;
            assert_eq!(decode(&bad, &[7; 20]), None, "{at}");
            assert_eq!(decode(&whole[..at], &[7; 20]), None, "{at}");
        }
    }
}
