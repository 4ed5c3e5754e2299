//! Kernel images on disk: unpacks them and lays them out as in memory.
//!
//! The format is described in Documentation/arch/x86/boot.rst: a header that contains `HdrS`, and
//! the compressed vmlinux at `payload_offset` behind the sectors of set-up code.

use object::read::elf::{ElfFile64, ProgramHeader};
use object::{Endianness, Object};
use std::io::Read;

/// Most bytes of an unpacked kernel. The largest kernels of distributions have a tenth of it.
pub const MOST: u64 = 1 << 30;
/// Most memory for unpacking xz, in KiB. The header gives the size of the dictionary. The kernel's
/// makefile uses at most 128 MiB.
const XZ_MEMORY: u32 = 256 << 10;
/// The address at which the kernel is mapped (`__START_KERNEL_map`,
/// arch/x86/include/asm/page_64_types.h).
const START: u64 = 0xffff_ffff_8000_0000;
/// The size of the mapping (`KERNEL_IMAGE_SIZE`): 1 GiB.
const SIZE: u64 = 1 << 30;

/// Why an image cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// The header points outside of the file.
    #[error("its boot header names a payload that is not in it")]
    Payload,
    /// The compression is unknown. The field has the first bytes.
    #[error("its payload has an unknown compression (it starts with {0:02x?}); known are gzip, xz, LZ4 and zstd")]
    Packing(Vec<u8>),
    /// The payload cannot be decompressed.
    #[error("it does not unpack: {0}")]
    Unpack(std::io::Error),
    /// A block of the payload cannot be decompressed.
    #[error("it does not unpack: {0}")]
    Lz4(lz4_flex::block::DecompressError),
    /// The payload is not an ELF file for x86-64.
    #[error("it holds no x86-64 ELF file: {0}")]
    Elf(ImageFlaw),
}

/// What is wrong with an unpacked kernel.
#[derive(Debug, thiserror::Error)]
pub enum ImageFlaw {
    /// The headers are malformed.
    #[error(transparent)]
    Headers(#[from] object::read::Error),
    /// No segment is in the kernel's mapping.
    #[error("no part of it is loaded")]
    Empty,
    /// The segments are larger than the kernel's mapping.
    #[error("its segments exceed the mapping of a kernel")]
    TooLarge,
}

/// A kernel image as it lies in memory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Loaded {
    /// The virtual address that the first byte is linked for.
    pub start: u64,
    /// The bytes from there on.
    pub memory: Vec<u8>,
}

/// Whether the file is a compressed kernel.
pub fn is_boot_image(data: &[u8]) -> bool {
    data.get(0x202..0x206) == Some(b"HdrS")
}

/// Whether the file is an ELF file with a symbol table.
pub fn has_symbol_table(data: &[u8]) -> bool {
    data.starts_with(b"\x7fELF")
        && object::File::parse(data).is_ok_and(|elf| {
            elf.symbol_table().is_some_and(|t| object::ObjectSymbolTable::symbols(&t).next().is_some())
        })
}

/// The vmlinux in a compressed kernel.
///
/// # Errors
/// All but [`ImageError::Elf`].
pub fn unpack(data: &[u8]) -> Result<Vec<u8>, ImageError> {
    let field = |at: usize| data.get(at..at + 4).map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]]) as usize);
    // 0 stands for 4 sectors.
    let sectors = data.get(0x1f1).map(|&n| if n == 0 { 4 } else { usize::from(n) });
    let payload = (|| {
        let start = (sectors? + 1) * 512 + field(0x248)?;
        data.get(start..start.checked_add(field(0x24c)?)?)
    })();
    let payload = payload.filter(|p| !p.is_empty()).ok_or(ImageError::Payload)?;
    match payload {
        [0x1f, 0x8b, ..] => read(flate2::read::GzDecoder::new(payload)),
        [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => read(lzma_rust2::XzReader::new_mem_limit(payload, false, XZ_MEMORY)),
        [0x28, 0xb5, 0x2f, 0xfd, ..] => {
            let decoder = ruzstd::decoding::StreamingDecoder::new(payload);
            read(decoder.map_err(|why| ImageError::Unpack(std::io::Error::other(why)))?)
        }
        [0x02, 0x21, 0x4c, 0x18, ..] => lz4(&payload[4..]),
        other => Err(ImageError::Packing(other[..other.len().min(8)].to_vec())),
    }
}

fn read(from: impl Read) -> Result<Vec<u8>, ImageError> {
    let mut data = Vec::new();
    from.take(MOST).read_to_end(&mut data).map_err(ImageError::Unpack)?;
    Ok(data)
}

/// Unpacks LZ4's legacy format: blocks of 8 MiB, each after its compressed size. The kernel's
/// makefile appends the unpacked size, which ends the loop.
fn lz4(mut packed: &[u8]) -> Result<Vec<u8>, ImageError> {
    const BLOCK: usize = 8 << 20;
    let mut data = Vec::new();
    while let Some((size, rest)) = packed.split_first_chunk::<4>()
        && let Some(block) = rest.get(..u32::from_le_bytes(*size) as usize)
        && !block.is_empty()
        && (data.len() as u64) < MOST
    {
        data.extend(lz4_flex::block::decompress(block, BLOCK).map_err(ImageError::Lz4)?);
        packed = &rest[block.len()..];
    }
    Ok(data)
}

/// The segments of a vmlinux that lie in the kernel's mapping, as one piece of memory.
///
/// # Errors
/// [`ImageError::Elf`].
pub fn load(vmlinux: &[u8]) -> Result<Loaded, ImageError> {
    let elf = ElfFile64::<Endianness>::parse(vmlinux).map_err(|why| ImageError::Elf(why.into()))?;
    let endian = elf.endian();
    let parts: Vec<(u64, &[u8])> = elf
        .elf_program_headers()
        .iter()
        .filter(|header| header.p_type(endian) == object::elf::PT_LOAD)
        .filter_map(|header| Some((header.p_vaddr(endian), header.data(endian, vmlinux).ok()?)))
        // The per-CPU segment of older kernels lies at 0.
        .filter(|(at, bytes)| *at >= START && (at - START).saturating_add(bytes.len() as u64) <= SIZE)
        .collect();
    let start = parts.iter().map(|(at, _)| *at).min().ok_or(ImageError::Elf(ImageFlaw::Empty))?;
    let end = parts.iter().map(|(at, bytes)| at + bytes.len() as u64).max().unwrap_or(start);
    if parts.iter().map(|(_, bytes)| bytes.len() as u64).sum::<u64>() > SIZE {
        return Err(ImageError::Elf(ImageFlaw::TooLarge));
    }
    let mut memory = vec![0; (end - start) as usize];
    for (at, bytes) in parts {
        memory[(at - start) as usize..][..bytes.len()].copy_from_slice(bytes);
    }
    Ok(Loaded { start, memory })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A boot image with one sector of set-up code.
    fn image(payload: &[u8]) -> Vec<u8> {
        let mut image = vec![0; 1024];
        image[0x1f1] = 1;
        image[0x202..0x206].copy_from_slice(b"HdrS");
        image[0x24c..0x250].copy_from_slice(&(payload.len() as u32).to_le_bytes());
        image.extend(payload);
        image
    }

    #[test]
    fn payloads_unpack() {
        // The output of gzip and lz4 -l.
        let gzip = b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\x03\xcbH\xcd\xc9\xc9\xe7\x02\x00 0:6\x06\x00\x00\x00";
        assert!(is_boot_image(&image(gzip)) && !is_boot_image(b"HdrS"));
        assert_eq!(unpack(&image(gzip)).unwrap(), b"hello\n");
        let lz4 = b"\x02\x21\x4c\x18\x07\x00\x00\x00\x60hello\n\x06\x00\x00\x00";
        assert_eq!(unpack(&image(lz4)).unwrap(), b"hello\n");
    }

    /// The header asks for a dictionary of 4 GiB.
    #[test]
    fn a_header_does_not_say_how_much_memory_is_taken() {
        let xz = b"\xfd\x37\x7a\x58\x5a\x00\x00\x01\x69\x22\xde\x36\x02\x00\x21\x01\x28\x00\x00\x00\xe6\xa0\x11\xb3\x01\x00\x05\x68\x65\x6c\x6c\x6f\x0a\x00\x00\x00\x20\x30\x3a\x36\x00\x01\x1a\x06\xc5\xea\xc8\x79\x90\x42\x99\x0d\x01\x00\x00\x00\x00\x01\x59\x5a";
        let error = unpack(&image(xz)).unwrap_err().to_string();
        assert!(error.contains("memory"), "{error}");
    }

    #[test]
    fn flaws_are_named() {
        let error = |image: &[u8]| unpack(image).unwrap_err().to_string();
        assert!(error(&image(b"BZh9")).contains("known are gzip"));
        assert!(error(&image(b"\x1f\x8b\x08")).contains("does not unpack"));
        assert!(error(&image(b"")).contains("not in it"));
        let mut far = image(b"x");
        far[0x24b] = 0xff;
        assert!(error(&far).contains("not in it"));
        assert!(load(b"no").unwrap_err().to_string().contains("no x86-64 ELF"));
    }
}
