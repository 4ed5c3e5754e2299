//! The kernel's own samples/kmemleak/kmemleak-test.c: what it prints of its allocations.

use std::collections::BTreeSet;

/// What the sample allocated, by what becomes of it.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Sample {
    /// Lost at once.
    pub lost: BTreeSet<u64>,
    /// Held by the module's own data, until it is unloaded: a list, and one pointer for each CPU.
    pub held: BTreeSet<u64>,
}

impl Sample {
    /// Reads lines like `kmemleak: kmalloc(32) = ffff8880043a7e40`, as they are with `no_hash_pointers` on the
    /// kernel command line.
    ///
    /// # Panics
    /// If a line names the same address as another, or none.
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
