//! kdump's compressed format: of makedumpfile and of QEMU's dump-guest-memory (IMPLEMENTATION in
//! makedumpfile's sources, diskdump_mod.h; dump/dump.c in QEMU).
//!
//! Blocks of 4096 bytes: a header, a sub header, a bitmap of RAM, a bitmap of the pages in the
//! file, a descriptor of each of these pages, and their data.

use super::Parts;
use super::error::Flaw;
use super::file::{Bytes, part, within};
use super::memory::{CHUNK, Have, PAGES, PageSource};
use guest_symbols::memory::{PAGE_SIZE, u32_at, u64_at};
use std::io::Read;

/// The first bytes of the format.
pub(crate) const MAGIC: &[u8] = b"KDUMP   ";
/// Bytes of the header, and of the sub header's fields.
const HEADER: u64 = 464;
const SUB_HEADER: u64 = 104;
/// Where the header's name of the machine is, and its length (`struct new_utsname`).
const MACHINE: std::ops::Range<usize> = 12 + 4 * 65..12 + 5 * 65;
/// Bytes of a page's descriptor.
const DESCRIPTOR: u64 = 24;
/// In the header's status: there was no room to write all (DUMP_DH_COMPRESSED_INCOMPLETE).
const INCOMPLETE: u32 = 8;
/// Most bytes of notes and of VMCOREINFO.
const MAX_NOTES: u64 = 1 << 26;

/// How a page is compressed (`page_desc.flags`).
const ZLIB: u32 = 1;
const LZO: u32 = 2;
const SNAPPY: u32 = 4;
const ZSTD: u32 = 0x20;

/// Reads headers and bitmaps.
pub(crate) fn open(file: Box<dyn Bytes>) -> Result<Parts, Flaw> {
    let header = part(&*file, "kdump header", 0, HEADER)?;
    let field = |at| u32_at(&header, at).unwrap_or(0);
    let (status, block, sub_blocks, bitmap_blocks) = (field(424), field(428), field(432), field(436));
    if u64::from(block) != PAGE_SIZE {
        return Err(Flaw::Machine("block size", block.into()));
    }
    let machine = header[MACHINE].split(|&b| b == 0).next().unwrap_or_default();
    // QEMU writes "Unknown" or nothing.
    if !machine.is_empty() && machine != b"x86_64" && machine != b"Unknown" {
        return Err(Flaw::Machine("machine's first letter", machine[0].into()));
    }
    let sub = part(&*file, "sub header", PAGE_SIZE, SUB_HEADER)?;
    let word = |at| u64_at(&sub, at).unwrap_or(0);
    if u32_at(&sub, 12).is_some_and(|split| split != 0) {
        return Err(Flaw::Part);
    }
    let bounded = |what, at, size: u64| match size {
        0 => Ok(None),
        size if size > MAX_NOTES => Err(Flaw::Field(what, size)),
        size => part(&*file, what, at, size).map(Some),
    };
    let vmcoreinfo = bounded("VMCOREINFO", word(32), word(40))?.map(|text| String::from_utf8_lossy(&text).into_owned());
    let notes = bounded("notes", word(48), word(56))?.into_iter().collect();
    let bitmaps = (1 + u64::from(sub_blocks)) * PAGE_SIZE;
    let half = u64::from(bitmap_blocks) * PAGE_SIZE / 2;
    let ram = Bitmap(part(&*file, "bitmap of RAM", bitmaps, half)?);
    let pages = Bitmap(part(&*file, "bitmap of pages", bitmaps + half, half)?);
    if let Some(byte) = ram.0.iter().zip(&pages.0).position(|(ram, page)| page & !ram != 0) {
        return Err(Flaw::Field("bitmap of pages outside of RAM, at page", 8 * byte as u64));
    }
    let descriptors = bitmaps + 2 * half;
    let pages = Ranked::new(pages);
    // A dump that is incomplete has no descriptors of its last pages.
    let incomplete = status & INCOMPLETE != 0;
    if !incomplete {
        within(&*file, "page descriptors", descriptors, pages.count() * DESCRIPTOR)?;
    }
    let size = file.size();
    Ok(Parts {
        ranges: ram.ranges(),
        source: Box::new(Pages { data: descriptors + pages.count() * DESCRIPTOR, file, pages, descriptors }),
        notes,
        vmcoreinfo,
        image: None,
        incomplete,
        size,
    })
}

/// A bit for each page frame.
struct Bitmap(Vec<u8>);

impl Bitmap {
    /// Runs of frames, as physical addresses.
    fn ranges(&self) -> Vec<std::ops::Range<u64>> {
        let mut ranges: Vec<std::ops::Range<u64>> = Vec::new();
        let mut add = |first: u64, end: u64| match ranges.last_mut() {
            Some(last) if last.end == first * PAGE_SIZE => last.end = end * PAGE_SIZE,
            _ => ranges.push(first * PAGE_SIZE..end * PAGE_SIZE),
        };
        for (byte, first) in self.0.iter().zip((0..).step_by(8)) {
            match byte {
                0 => {}
                0xff => add(first, first + 8),
                byte => (0..8).filter(|bit| byte >> bit & 1 != 0).for_each(|bit| add(first + bit, first + bit + 1)),
            }
        }
        ranges
    }
}

/// A bitmap, with the number of bits before each group of [`PAGES`] frames.
struct Ranked {
    groups: Vec<(u64, u16)>,
}

impl Ranked {
    fn new(bitmap: Bitmap) -> Ranked {
        let mut before = 0;
        let group = |bytes: &[u8; 2]| {
            let bits = u16::from_le_bytes(*bytes);
            let group = (before, bits);
            before += u64::from(bits.count_ones());
            group
        };
        Ranked { groups: bitmap.0.as_chunks::<2>().0.iter().map(group).collect() }
    }

    /// The number of bits.
    fn count(&self) -> u64 {
        self.groups.last().map_or(0, |(before, bits)| before + u64::from(bits.count_ones()))
    }
}

struct Pages {
    file: Box<dyn Bytes>,
    pages: Ranked,
    /// Offset of the first descriptor.
    descriptors: u64,
    /// Offset of the first page's data, behind all descriptors.
    data: u64,
}

impl PageSource for Pages {
    fn load(&self, first: u64, chunk: &mut [u8; CHUNK]) -> Have {
        let mut have = Have::default();
        let Some(&(before, bits)) = self.pages.groups.get(first as usize / PAGES) else { return have };
        let mut descriptors = [0; PAGES * DESCRIPTOR as usize];
        let descriptors = &mut descriptors[..bits.count_ones() as usize * DESCRIPTOR as usize];
        if self.file.read_at(descriptors, self.descriptors + before * DESCRIPTOR).is_err() {
            have.damaged = bits;
            return have;
        }
        let in_file = (0..PAGES).filter(|page| bits >> page & 1 != 0);
        for (page, descriptor) in in_file.zip(descriptors.chunks_exact(DESCRIPTOR as usize)) {
            let (offset, size) = (u64_at(descriptor, 0).unwrap_or(0), u32_at(descriptor, 8).unwrap_or(0));
            let flags = u32_at(descriptor, 12).unwrap_or(0);
            // There was no room for this page and the following ones.
            if offset == 0 {
                continue;
            }
            let to = &mut chunk[page * PAGE_SIZE as usize..][..PAGE_SIZE as usize];
            let done = self.page(offset, size as usize, flags, to);
            if done.is_none() {
                to.fill(0);
            }
            *(if done.is_some() { &mut have.read } else { &mut have.damaged }) |= 1 << page;
        }
        have
    }
}

impl Pages {
    /// Reads one page. `None` if it cannot be read or decompressed.
    fn page(&self, offset: u64, size: usize, flags: u32, to: &mut [u8]) -> Option<()> {
        let mut room = [0; PAGE_SIZE as usize];
        let packed = room.get_mut(..size).filter(|_| offset >= self.data)?;
        self.file.read_at(packed, offset).ok()?;
        let packed = &*packed;
        let whole = |n: usize| (n == PAGE_SIZE as usize).then_some(());
        match flags & (ZLIB | LZO | SNAPPY | ZSTD) {
            0 => {
                whole(size)?;
                to.copy_from_slice(packed);
                Some(())
            }
            ZLIB => {
                let mut zlib = flate2::Decompress::new(true);
                let done = zlib.decompress(packed, to, flate2::FlushDecompress::Finish).ok()?;
                whole(zlib.total_out() as usize).filter(|()| done == flate2::Status::StreamEnd)
            }
            LZO => whole(lzo::decompress_into(packed, to).ok()?),
            SNAPPY => {
                let len = snap::raw::decompress_len(packed).ok()?;
                whole(len)?;
                whole(snap::raw::Decoder::new().decompress(packed, to).ok()?)
            }
            ZSTD => {
                let mut zstd = ruzstd::decoding::StreamingDecoder::new(packed).ok()?;
                zstd.read_exact(to).ok()
            }
            _ => None,
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use std::io::Write;

    /// A file with these pages, each packed by its kind. A page without bytes is RAM that is left
    /// out.
    pub(crate) fn file(pages: &[(u32, Vec<u8>)]) -> Vec<u8> {
        let page = PAGE_SIZE as usize;
        let mut file = vec![0; 2 * page];
        file[..MAGIC.len()].copy_from_slice(MAGIC);
        for (at, value) in [(8, 6), (428, PAGE_SIZE as u32), (432, 1), (436, 2), (440, pages.len() as u32)] {
            file[at..at + 4].copy_from_slice(&u32::to_le_bytes(value));
        }
        let (mut ram, mut there) = (vec![0; page], vec![0; page]);
        let (mut descriptors, mut data) = (Vec::new(), Vec::new());
        let in_file = pages.iter().filter(|(_, bytes)| !bytes.is_empty()).count();
        let start = 4 * page + in_file * DESCRIPTOR as usize;
        for (i, (flags, bytes)) in pages.iter().enumerate() {
            ram[i / 8] |= 1 << (i % 8);
            if !bytes.is_empty() {
                there[i / 8] |= 1 << (i % 8);
                descriptors.extend((start as u64 + data.len() as u64).to_le_bytes());
                descriptors.extend((bytes.len() as u32).to_le_bytes());
                descriptors.extend(flags.to_le_bytes());
                descriptors.extend([0; 8]);
                data.extend(bytes);
            }
        }
        [file, ram, there, descriptors, data].concat()
    }

    /// Pages of each kind. Page n is full of n.
    fn pages() -> Vec<(u32, Vec<u8>)> {
        let page = |n| vec![n; PAGE_SIZE as usize];
        let mut zlib = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::default());
        zlib.write_all(&page(1)).unwrap();
        // Four bytes, a match of the other 4092 at distance 1, and the end.
        let lzo = [&[21, 2, 2, 2, 2, 0x20][..], &[0; 15], &[234, 0, 0, 0x11, 0, 0]].concat();
        let snappy = snap::raw::Encoder::new().compress_vec(&page(3)).unwrap();
        let zstd = ruzstd::encoding::compress_to_vec(&page(4)[..], ruzstd::encoding::CompressionLevel::Fastest);
        let kinds = [(0, page(0)), (ZLIB, zlib.finish().unwrap()), (LZO, lzo), (SNAPPY, snappy), (ZSTD, zstd)];
        kinds.into_iter().chain([(0, Vec::new()), (0, page(6)), (ZLIB, vec![1; 9])]).collect()
    }

    fn load(parts: &Parts) -> (Vec<u8>, Have) {
        let mut chunk = Box::new([0xee; CHUNK]);
        let have = parts.source.load(0, &mut chunk);
        (chunk.to_vec(), have)
    }

    #[test]
    fn pages_of_each_compression() {
        let parts = open(Box::new(file(&pages()))).unwrap();
        assert_eq!((parts.ranges.len(), &parts.ranges[0]), (1, &(0..8 * PAGE_SIZE)));
        let (bytes, have) = load(&parts);
        assert_eq!(have, Have { read: 0b0101_1111, damaged: 0b1000_0000 });
        for n in [0, 1, 2, 3, 4, 6] {
            let page = &bytes[n * PAGE_SIZE as usize..][..PAGE_SIZE as usize];
            assert!(page.iter().all(|&byte| usize::from(byte) == n), "page {n}");
        }
        // The next chunk is no RAM.
        let mut chunk = Box::new([0; CHUNK]);
        assert_eq!(parts.source.load(1 << 40, &mut chunk), Have::default());
    }

    #[test]
    fn cut_forged_and_incomplete_files() {
        let whole = file(&pages());
        let descriptors = 4 * PAGE_SIZE as usize + 7 * DESCRIPTOR as usize;
        for cut in (0..descriptors).step_by(7) {
            assert!(matches!(open(Box::new(whole[..cut].to_vec())), Err(Flaw::Truncated(..))), "cut at {cut}");
        }
        // Data that is cut is damaged pages.
        let (_, have) = load(&open(Box::new(whole[..descriptors].to_vec())).unwrap());
        assert_eq!((have.read, have.damaged), (0, 0b1101_1111));
        let mut incomplete = whole[..descriptors - DESCRIPTOR as usize].to_vec();
        incomplete[424] = INCOMPLETE as u8;
        assert!(open(Box::new(incomplete)).unwrap().incomplete);
        // A page that is no RAM, and one whose data would be among the descriptors.
        let mut outside = whole.clone();
        outside[3 * PAGE_SIZE as usize + 1] = 1;
        assert!(matches!(open(Box::new(outside)), Err(Flaw::Field(..))));
        let mut early = whole.clone();
        early[4 * PAGE_SIZE as usize..][..8].copy_from_slice(&4096u64.to_le_bytes());
        assert_eq!(load(&open(Box::new(early)).unwrap()).1.damaged, 0b1000_0001);
        let mut part = whole.clone();
        part[PAGE_SIZE as usize + 12] = 1;
        assert!(matches!(open(Box::new(part)), Err(Flaw::Part)));
        for at in (0..500).chain(4096..4200).chain(4 * 4096..whole.len()).step_by(3) {
            let mut bad = whole.clone();
            bad[at] ^= 0x81;
            if let Ok(parts) = open(Box::new(bad)) {
                load(&parts);
            }
        }
    }
}
