//! Parses what the kernel's samples/kmemleak/kmemleak-test.c prints.

use std::collections::BTreeSet;

/// The allocations of the sample.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Sample {
    /// Objects that are lost at once.
    pub lost: BTreeSet<u64>,
    /// Objects that the module's data holds until it is unloaded: a list, and one pointer per CPU.
    pub held: BTreeSet<u64>,
}

impl Sample {
    /// Parses lines like `kmemleak: kmalloc(32) = ffff8880043a7e40`. The kernel command line must
    /// contain `no_hash_pointers`.
    ///
    /// # Panics
    /// If a line has no address, or an address occurs twice.
    pub fn parse(console: &str) -> Sample {
        let mut sample = Sample::default();
        for line in console.lines() {
            let Some((_, text)) = line.split_once("kmemleak: ") else { continue };
            let Some((what, address)) = text.split_once(" = ") else { continue };
            let address = address.trim().trim_start_matches("0x");
            let address = u64::from_str_radix(address, 16).unwrap_or_else(|_| panic!("no address: {line}"));
            assert!(address != 0, "the guest had no memory: {line}");
            let held = matches!(what, "kzalloc(sizeof(*elem))" | "kmalloc(129)");
            let new = if held { sample.held.insert(address) } else { sample.lost.insert(address) };
            assert!(new, "twice: {line}");
        }
        sample
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read() {
        let sample = Sample::parse(
            "[    2.1] kmemleak: Kmemleak testing
[    2.1] kmemleak: kmalloc(32) = ffff8880043a7e40
[    2.1] kmemleak: __alloc_percpu(64, 4) = 000000000003ca00
[    2.1] kmemleak: kzalloc(sizeof(*elem)) = ffff8880043a7c00
[    2.1] kmemleak: kmalloc(129) = ffff8880043a7d00
",
        );
        assert_eq!(sample.lost, [0x3ca00, 0xffff_8880_043a_7e40].into());
        assert_eq!(sample.held, [0xffff_8880_043a_7c00, 0xffff_8880_043a_7d00].into());
    }
}
