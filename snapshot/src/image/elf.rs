//! ELF cores: of QEMU's dump-guest-memory and what uses it, of /proc/vmcore, and of makedumpfile
//! -E.

use super::Parts;
use super::error::Flaw;
use super::file::{Bytes, part, within};
use super::memory::{CHUNK, Have, PAGES, PageSource};
use guest_symbols::kernel::START_KERNEL_MAP;
use guest_symbols::memory::{PAGE_SIZE, PhysAddr, VirtAddr, u32_at, u64_at};
use std::ops::Range;

/// The first bytes of the format.
pub(crate) const MAGIC: &[u8] = b"\x7fELF";
/// Bytes of the file's header, of a program header and of a section header.
const HEADER: u64 = 64;
const PROGRAM_HEADER: u64 = 56;
const SECTION_HEADER: u64 = 64;
/// Little-endian files of 64 bits (e_ident), cores (e_type) and x86-64 (e_machine).
const IDENT: [u8; 2] = [2, 1];
const ET_CORE: u64 = 4;
const EM_X86_64: u64 = 62;
/// In e_phnum: the number is in sh_info of the first section.
const PN_XNUM: u64 = 0xffff;
/// Most program headers. `dump-guest-memory -p` writes one for each run of mapped pages.
const MAX_SEGMENTS: u64 = 1 << 22;
/// Most bytes of notes.
const MAX_NOTES: u64 = 1 << 26;
const PT_LOAD: u32 = 1;
const PT_NOTE: u32 = 4;
/// In e_flags: makedumpfile had no room to write all (DUMP_ELF_INCOMPLETE, makedumpfile.h).
const INCOMPLETE: u32 = 1;

/// Reads the headers.
pub(crate) fn open(file: Box<dyn Bytes>) -> Result<Parts, Flaw> {
    let header = part(&*file, "ELF header", 0, HEADER)?;
    let half = |at: usize| u64::from(u16::from_le_bytes([header[at], header[at + 1]]));
    if header[4..6] != IDENT {
        return Err(Flaw::Machine("ELF class", header[4].into()));
    }
    if half(16) != ET_CORE {
        return Err(Flaw::Field("ELF type", half(16)));
    }
    if half(18) != EM_X86_64 {
        return Err(Flaw::Machine("e_machine", half(18)));
    }
    let (table, size) = (u64_at(&header, 32).unwrap_or(0), half(54));
    if size != PROGRAM_HEADER {
        return Err(Flaw::Field("e_phentsize", size));
    }
    let count = match half(56) {
        PN_XNUM => {
            let section = part(&*file, "section header", u64_at(&header, 40).unwrap_or(0), SECTION_HEADER)?;
            u64::from(u32_at(&section, 44).unwrap_or(0))
        }
        count => count,
    };
    if count > MAX_SEGMENTS {
        return Err(Flaw::Field("e_phnum", count));
    }
    let table = part(&*file, "table of program headers", table, count * PROGRAM_HEADER)?;
    let (mut segments, mut ranges, mut notes, mut image) = (Vec::new(), Vec::new(), Vec::new(), None);
    let mut room = MAX_NOTES;
    for header in table.chunks_exact(PROGRAM_HEADER as usize) {
        let word = |at| u64_at(header, at).unwrap_or(0);
        let (at, virt, phys, in_file, in_memory) = (word(8), word(16), word(24), word(32), word(40));
        match u32_at(header, 0) {
            Some(PT_NOTE) => {
                room = room.checked_sub(in_file).ok_or(Flaw::Field("size of notes", in_file))?;
                notes.push(part(&*file, "note segment", at, in_file)?);
            }
            Some(PT_LOAD) if in_memory > 0 => {
                within(&*file, "memory", at, in_file)?;
                let end = phys.checked_add(in_memory.max(in_file)).ok_or(Flaw::Field("p_paddr", phys))?;
                ranges.push(phys..end);
                segments.push(Segment { phys: phys..phys + in_file, at });
                if (START_KERNEL_MAP..START_KERNEL_MAP + (1 << 30)).contains(&virt)
                    && image.is_none_or(|(found, _)| virt < found)
                {
                    image = Some((virt, phys));
                }
            }
            _ => {}
        }
    }
    let incomplete = u32_at(&header, 48).is_some_and(|flags| flags & INCOMPLETE != 0);
    let size = file.size();
    Ok(Parts {
        ranges,
        source: Box::new(Segments { file, segments: disjoint(segments) }),
        notes,
        vmcoreinfo: None,
        image: image.map(|(virt, phys)| (VirtAddr(virt), PhysAddr(phys))),
        incomplete,
        size,
    })
}

/// A part of memory, and its offset in the file.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Segment {
    phys: Range<u64>,
    at: u64,
}

/// The segments without what lies in others as well, ascending. /proc/vmcore has the kernel's image
/// twice.
fn disjoint(mut segments: Vec<Segment>) -> Vec<Segment> {
    segments.sort_by_key(|segment| segment.phys.start);
    let (mut found, mut next) = (Vec::new(), 0);
    for Segment { phys, at } in segments {
        let cut = next.max(phys.start) - phys.start;
        if phys.start + cut < phys.end {
            next = phys.end;
            found.push(Segment { phys: phys.start + cut..phys.end, at: at + cut });
        }
    }
    found
}

struct Segments {
    file: Box<dyn Bytes>,
    segments: Vec<Segment>,
}

impl PageSource for Segments {
    fn load(&self, first: u64, chunk: &mut [u8; CHUNK]) -> Have {
        let start = first * PAGE_SIZE;
        let end = start + CHUNK as u64;
        let mut have = Have::default();
        let from = self.segments.partition_point(|segment| segment.phys.end <= start);
        for Segment { phys, at } in self.segments[from..].iter().take_while(|segment| segment.phys.start < end) {
            let (low, high) = (phys.start.max(start), phys.end.min(end));
            let bytes = &mut chunk[(low - start) as usize..(high - start) as usize];
            let read = self.file.read_at(bytes, at + (low - phys.start));
            for page in (low - start) / PAGE_SIZE..(high - start).div_ceil(PAGE_SIZE) {
                *(if read.is_ok() { &mut have.read } else { &mut have.damaged }) |= 1 << page;
            }
        }
        have
    }
}

const _: () = assert!(PAGES == u16::BITS as usize);

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A core with these segments: virtual and physical address, bytes in the file and in memory.
    pub(crate) fn core(segments: &[(u64, u64, &[u8], u64)], notes: &[u8]) -> Vec<u8> {
        let mut file = MAGIC.to_vec();
        file.extend(IDENT);
        file.resize(HEADER as usize, 0);
        file[16..20].copy_from_slice(&[ET_CORE as u8, 0, EM_X86_64 as u8, 0]);
        file[32] = HEADER as u8;
        file[54] = PROGRAM_HEADER as u8;
        file[56] = segments.len() as u8 + 1;
        let mut data = Vec::new();
        let start = HEADER + (segments.len() as u64 + 1) * PROGRAM_HEADER;
        let notes = [(PT_NOTE, 0, 0, notes, notes.len() as u64)];
        for (kind, virt, phys, bytes, in_memory) in
            notes.into_iter().chain(segments.iter().map(|&(virt, phys, bytes, n)| (PT_LOAD, virt, phys, bytes, n)))
        {
            file.extend(kind.to_le_bytes());
            file.extend([0; 4]);
            for word in [start + data.len() as u64, virt, phys, bytes.len() as u64, in_memory, 0] {
                file.extend(word.to_le_bytes());
            }
            data.extend(bytes);
        }
        [file, data].concat()
    }

    fn load(parts: &Parts) -> (Vec<u8>, Have) {
        let mut chunk = Box::new([0xee; CHUNK]);
        let have = parts.source.load(0, &mut chunk);
        (chunk.to_vec(), have)
    }

    #[test]
    fn segments_of_memory() {
        let (a, b) = ([1; 0x1800], [2; 0x2000]);
        let file = core(&[(0xffff_ffff_8100_0000, 0x3000, &b, 0x4000), (0, 0x2800, &a, 0x1800), (0, 0, &[], 0)], b"");
        let parts = open(Box::new(file)).unwrap();
        assert_eq!(parts.ranges, [0x3000..0x7000, 0x2800..0x4000]);
        assert_eq!(parts.image, Some((VirtAddr(0xffff_ffff_8100_0000), PhysAddr(0x3000))));
        let (bytes, have) = load(&parts);
        // The end of the first segment is not in the file.
        assert_eq!(have, Have { read: 0b11100, damaged: 0 });
        assert_eq!((bytes[0x27ff], bytes[0x2800], bytes[0x3fff], bytes[0x4000], bytes[0x5000]), (0xee, 1, 1, 2, 0xee));
    }

    #[test]
    fn cut_and_forged_headers_are_errors() {
        let whole = core(&[(0, 0x1000, &[1; 0x1000], 0x1000)], b"notes");
        assert!(open(Box::new(whole.clone())).is_ok());
        for cut in 0..whole.len() {
            assert!(matches!(open(Box::new(whole[..cut].to_vec())), Err(Flaw::Truncated(..))), "cut at {cut}");
        }
        for at in 0..whole.len().min(300) {
            for bit in 0..8 {
                let mut bad = whole.clone();
                bad[at] ^= 1 << bit;
                if let Ok(parts) = open(Box::new(bad)) {
                    load(&parts);
                }
            }
        }
    }
}
