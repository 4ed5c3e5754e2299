//! Compares the kernel of a vmlinux with the running one.

use crate::elf::Elf;
use crate::{GuestMemory, Kernel};
use std::fmt;

/// Most bytes of the notes. A kernel has a few hundred.
const MAX_NOTES: usize = 64 << 10;
/// Most bytes of `linux_banner`. A kernel has about 200.
const MAX_BANNER: usize = 1024;
/// `NT_GNU_BUILD_ID` (include/linux/elfnote-lto.h, lib/buildid.c).
const NT_GNU_BUILD_ID: u32 = 3;

/// The identity of a kernel build.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Identity {
    /// The build ID, which the linker computes over the whole file.
    pub build_id: Option<Vec<u8>>,
    /// `linux_banner`, without its end of line.
    pub banner: Option<String>,
}

impl Identity {
    /// The identity of the running kernel, from its image in guest memory.
    pub fn of_guest(kernel: &Kernel, memory: &impl GuestMemory) -> Identity {
        let read = |symbol: &str, max: usize| -> Option<Vec<u8>> {
            let mut bytes = vec![0; max];
            memory.read(kernel.image_phys(kernel.symbol(symbol)?), &mut bytes).ok()?;
            Some(bytes)
        };
        let start = kernel.symbol("__start_notes");
        let end = kernel.symbol("__stop_notes");
        let len = start.zip(end).and_then(|(s, e)| e.0.checked_sub(s.0)).map_or(0, |n| n.min(MAX_NOTES as u64));
        let banner = read("linux_banner", MAX_BANNER).map(|bytes| {
            let line = bytes.split(|&b| b == 0 || b == b'\n').next().unwrap_or_default();
            String::from_utf8_lossy(line).into_owned()
        });
        Identity { build_id: read("__start_notes", len as usize).and_then(|notes| build_id(&notes)), banner }
    }

    /// The identity of a file. If the build ID is that of `other`, the banner is left out, since
    /// finding its symbol takes time.
    pub fn of_file(elf: &Elf, other: &Identity) -> Identity {
        let build_id = elf.build_id();
        let decided = build_id.is_some() && build_id == other.build_id;
        Identity { build_id, banner: if decided { None } else { elf.banner() } }
    }

    /// Whether both are the same kernel. `false` if there is nothing to compare.
    pub fn is(&self, other: &Identity) -> bool {
        match (&self.build_id, &other.build_id) {
            (Some(one), Some(other)) => one == other,
            _ => self.banner.is_some() && self.banner == other.banner,
        }
    }
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let release = self.banner.as_ref().and_then(|b| b.strip_prefix("Linux version ")?.split(' ').next());
        match (release, &self.banner) {
            (Some(release), _) => write!(f, "Linux {release}")?,
            (None, Some(banner)) => write!(f, "{banner:?}")?,
            (None, None) => write!(f, "a kernel without linux_banner")?,
        }
        let Some(id) = &self.build_id else { return write!(f, " without build id") };
        write!(f, ", build id ")?;
        id.iter().try_for_each(|b| write!(f, "{b:02x}"))
    }
}

/// The build ID in the notes of an ELF file (elf(5), "Notes").
fn build_id(notes: &[u8]) -> Option<Vec<u8>> {
    let word = |at: usize| Some(u32::from_le_bytes(notes.get(at..at.checked_add(4)?)?.try_into().ok()?));
    let mut at = 0;
    loop {
        let (name_len, len) = (word(at)? as usize, word(at + 4)? as usize);
        let name = at + 12;
        let description = name.checked_add(name_len.checked_next_multiple_of(4)?)?;
        if word(at + 8)? == NT_GNU_BUILD_ID && notes.get(name..)?.starts_with(b"GNU\0") {
            return Some(notes.get(description..description.checked_add(len)?)?.to_vec()).filter(|id| !id.is_empty());
        }
        at = description.checked_add(len.checked_next_multiple_of(4)?)?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn note(name: &[u8], kind: u32, description: &[u8]) -> Vec<u8> {
        let mut note = Vec::new();
        for word in [name.len() as u32, description.len() as u32, kind] {
            note.extend(word.to_le_bytes());
        }
        for part in [name, description] {
            note.extend(part);
            note.resize(note.len().next_multiple_of(4), 0);
        }
        note
    }

    #[test]
    fn a_build_id_is_found_behind_other_notes() {
        let mut notes = note(b"Xen\0", 6, b"linux\0");
        notes.extend(note(b"Linux\0", 3, b"no id"));
        assert_eq!(build_id(&notes), None);
        notes.extend(note(b"GNU\0", 3, &[1, 2, 3, 4, 5]));
        assert_eq!(build_id(&notes), Some(vec![1, 2, 3, 4, 5]));
        assert_eq!(build_id(&notes[..notes.len() - 4]), None);
        assert_eq!(build_id(&[0xff; 64]), None);
    }

    #[test]
    fn kernels_are_told_apart() {
        let banner = Some("Linux version 6.1.0 (me@here) #1".to_owned());
        let one = Identity { build_id: Some(vec![0xab, 1]), banner: banner.clone() };
        let rebuilt = Identity { build_id: Some(vec![0xab, 2]), banner: banner.clone() };
        let nameless = Identity { build_id: None, banner };
        assert!(one.is(&one) && !one.is(&rebuilt));
        assert!(one.is(&nameless) && nameless.is(&one));
        assert!(!Identity::default().is(&Identity::default()));
        assert_eq!(one.to_string(), "Linux 6.1.0, build id ab01");
        assert_eq!(nameless.to_string(), "Linux 6.1.0 without build id");
    }
}
