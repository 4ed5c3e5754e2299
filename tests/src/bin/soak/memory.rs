//! QEMU's resident memory by purpose.

use std::path::Path;

/// Resident memory of a process in KiB.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Memory {
    /// All of it: VmRSS.
    pub all: u64,
    /// The guest's memory.
    pub guest: u64,
    /// QEMU's translation cache, which fills up to its limit.
    pub code: u64,
}

impl Memory {
    /// Reads the memory of a process whose guest has this much memory. `None` if it has ended.
    pub fn of(process: u32, guest_mib: u64) -> Option<Memory> {
        let maps = std::fs::read_to_string(Path::new("/proc").join(process.to_string()).join("smaps")).ok()?;
        Some(Memory::read(&maps, guest_mib)).filter(|m| m.all > 0)
    }

    /// Memory of QEMU and the plugin: neither guest memory nor translated code.
    pub fn rest(&self) -> u64 {
        self.all.saturating_sub(self.guest + self.code)
    }

    fn read(maps: &str, guest_mib: u64) -> Memory {
        let mut memory = Memory::default();
        let (mut executable, mut size) = (false, 0);
        for line in maps.lines() {
            let mut words = line.split_whitespace();
            let (Some(first), Some(second)) = (words.next(), words.next()) else { continue };
            match (first, second.parse::<u64>()) {
                ("Size:", Ok(kib)) => size = kib,
                ("Rss:", Ok(kib)) => {
                    memory.all += kib;
                    if executable {
                        memory.code += kib;
                    } else if size >= guest_mib << 10 {
                        memory.guest += kib;
                    }
                }
                // The first line of a mapping. Only translated code is both writable and
                // executable.
                (range, _) if range.contains('-') => executable = second.starts_with("rwx"),
                _ => {}
            }
        }
        memory
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mappings_are_told_apart() {
        let maps = "55d0-55d1 r--p 00000000 00:1f 17 /usr/bin/qemu\nSize: 400 kB\nKernelPageSize: 4 kB\nRss: 300 kB\nVmFlags: rd mr\n\
                    7f00-7f40 rw-p 00000000 00:00 0\nSize: 1048576 kB\nRss: 1048000 kB\n\
                    7f50-7f60 rwxp 00000000 00:00 0\nSize: 1048576 kB\nRss: 7000 kB\nRssx: 5 kB\n\
                    7f70-7f71 rw-p 00000000 00:00 0 [heap]\nSize: 9000 kB\nRss: 20 kB\n";
        let memory = Memory::read(maps, 1024);
        assert_eq!(memory, Memory { all: 1_055_320, guest: 1_048_000, code: 7000 });
        assert_eq!(memory.rest(), 320);
    }
}
