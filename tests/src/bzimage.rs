//! Changes the kernel in a bzImage, for kernels that nobody would have to build.

use flate2::Compression;
use flate2::bufread::GzDecoder;
use flate2::write::GzEncoder;
use std::io::{Read, Write};
use std::ops::Range;

fn u32_at(bytes: &[u8], at: usize) -> usize {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("4 bytes")) as usize
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("8 bytes"))
}

/// The compressed kernel in a bzImage: its place in the file
/// (Documentation/arch/x86/boot.rst: setup_sects, payload_offset, payload_length).
fn payload(image: &[u8]) -> Range<usize> {
    let setup = match image[0x1f1] {
        0 => 4,
        sectors => usize::from(sectors),
    };
    let start = (setup + 1) * 512 + u32_at(image, 0x248);
    start..start + u32_at(image, 0x24c)
}

/// A bzImage whose kernel, an ELF file without symbols, was changed. All else is the same.
///
/// The new compressed kernel may be shorter, and is padded. The kernel's decompressor knows the
/// length of its output from the build, and ignores what follows the compressed data
/// (arch/x86/boot/compressed/mkpiggy.c, lib/decompress_inflate.c).
///
/// # Panics
/// If gzip has not compressed the kernel, or if the changed one needs more room.
pub fn changed(mut image: Vec<u8>, change: impl FnOnce(&mut [u8])) -> Vec<u8> {
    let place = payload(&image);
    let mut kernel = Vec::new();
    GzDecoder::new(&image[place.clone()]).read_to_end(&mut kernel).expect("a kernel that gzip compressed");
    change(&mut kernel);
    let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
    encoder.write_all(&kernel).expect("memory");
    let mut new = encoder.finish().expect("memory");
    assert!(new.len() <= place.len(), "{} bytes do not fit into {}", new.len(), place.len());
    new.resize(place.len(), 0);
    image[place].copy_from_slice(&new);
    image
}

/// The offset in an ELF file of the byte that a virtual address is loaded from (elf(5), "Program
/// header").
///
/// # Panics
/// If the file does not load it.
pub fn offset_of(elf: &[u8], address: u64) -> usize {
    let (table, count) = (u64_at(elf, 32) as usize, usize::from(elf[56]));
    let headers = (0..count).map(|i| table + 56 * i).filter(|&at| u32_at(elf, at) == 1);
    let mut offsets = headers.filter_map(|at| {
        let (offset, start, len) = (u64_at(elf, at + 8), u64_at(elf, at + 16), u64_at(elf, at + 32));
        let within = address.checked_sub(start).filter(|within| *within < len)?;
        Some((offset + within) as usize)
    });
    offsets.next().unwrap_or_else(|| panic!("{address:#x} is not loaded"))
}
