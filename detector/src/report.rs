//! Reports in kmemleak's own words: the text of `print_unreferenced()` in mm/kmemleak.c of Linux 6.12.

use std::fmt;

/// Bytes shown: HEX_MAX_LINES lines of HEX_ROW_SIZE.
const DUMP: usize = 32;

/// One unreferenced object, ready to print.
#[derive(Debug, Clone, Default)]
pub struct Leak {
    /// Virtual address, or `__percpu` pointer.
    pub addr: u64,
    /// Size in bytes as kmemleak knows it: the cache's object size, or what was requested.
    pub size: u64,
    /// Task at allocation.
    pub comm: String,
    /// Its pid; 0 in interrupts.
    pub pid: u32,
    /// Jiffies at allocation.
    pub jiffies: u64,
    /// The first bytes of the object; at least 32 where it has as many.
    pub head: Vec<u8>,
    /// The CPU whose copy of a per-CPU object is shown.
    pub cpu: Option<u32>,
    /// [`checksum`] of its contents.
    pub crc: u32,
    /// Stack frames, innermost first, as `%pS` prints them.
    pub frames: Vec<String>,
}

impl fmt::Display for Leak {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "unreferenced object {:#018x} (size {}):", self.addr, self.size)?;
        writeln!(f, "  comm \"{}\", pid {}, jiffies {}", self.comm, self.pid, self.jiffies)?;
        let len = self.head.len().min(DUMP).min(self.size as usize);
        match self.cpu {
            Some(cpu) => writeln!(f, "  hex dump (first {len} bytes on cpu {cpu}):")?,
            None => writeln!(f, "  hex dump (first {len} bytes):")?,
        }
        for row in self.head[..len].chunks(16) {
            let hex: String = row.iter().map(|b| format!("{b:02x} ")).collect();
            let ascii: String = row.iter().map(|&b| if (0x20..0x7f).contains(&b) { b as char } else { '.' }).collect();
            writeln!(f, "    {hex:<48} {ascii}")?;
        }
        writeln!(f, "  backtrace (crc {:x}):", self.crc)?;
        for frame in &self.frames {
            writeln!(f, "    {frame}")?;
        }
        Ok(())
    }
}

/// The kernel's `crc32(0, ...)`, continued over several runs of bytes: CRC-32 without the inversions
/// before and after.
#[derive(Default)]
pub struct Checksum(u32);

impl Checksum {
    /// Adds bytes.
    pub fn add(&mut self, bytes: &[u8]) {
        // The crate's value is inverted on the way in and out, the kernel's is not.
        let mut h = crc32fast::Hasher::new_with_initial(!self.0);
        h.update(bytes);
        self.0 = !h.finalize();
    }

    /// The checksum of what was added.
    pub fn value(&self) -> u32 {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_kmemleaks() {
        let leak = Leak {
            addr: 0xffff_8881_03a4_c1e0,
            size: 20,
            comm: "insmod".into(),
            pid: 412,
            jiffies: 4294953210,
            head: b"hello\0\0\0\0\0\0\0\0\0\0\x7f~abc".to_vec(),
            cpu: None,
            crc: 0xbeef,
            frames: vec!["kmalloc+0x0/0x2b0".into(), "init+0x4a/0xff0 [leaky]".into()],
        };
        let want = "unreferenced object 0xffff888103a4c1e0 (size 20):
  comm \"insmod\", pid 412, jiffies 4294953210
  hex dump (first 20 bytes):
    68 65 6c 6c 6f 00 00 00 00 00 00 00 00 00 00 7f  hello...........
    7e 61 62 63                                      ~abc
  backtrace (crc beef):
    kmalloc+0x0/0x2b0
    init+0x4a/0xff0 [leaky]
";
        assert_eq!(leak.to_string(), want);
    }

    /// Bit by bit, as lib/crc32.c defines it.
    fn crc32_le(mut crc: u32, bytes: &[u8]) -> u32 {
        for b in bytes {
            crc ^= u32::from(*b);
            for _ in 0..8 {
                crc = (crc >> 1) ^ (0xedb8_8320 * (crc & 1));
            }
        }
        crc
    }

    #[test]
    fn checksum_is_the_kernels() {
        let mut c = Checksum::default();
        c.add(b"0123");
        c.add(b"456789");
        assert_eq!(c.value(), crc32_le(0, b"0123456789"));
        assert_eq!(Checksum::default().value(), 0);
    }
}
