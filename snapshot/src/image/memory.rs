//! The RAM of an image. Its pages are read from the file when they are first used.

use guest_symbols::memory::{GuestMemory, MemoryError, PAGE_SIZE, PhysAddr, StoppedMemory};
use std::ops::Range;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

/// Pages that are read from the file together. A slab has at most 8 by default.
pub(crate) const PAGES: usize = 16;
/// Bytes of these.
pub(crate) const CHUNK: usize = PAGES * PAGE_SIZE as usize;
/// Chunks that get their place in memory together.
const CHUNKS: usize = 1024;
/// Bytes of RAM in these.
const BLOCK: u64 = (CHUNKS * CHUNK) as u64;
/// One past the highest physical address that an image may have: 1 TiB, or this many times the
/// file's size. Tables of the check have an entry for each page frame.
const MOST: u64 = 1 << 40;
const PER_BYTE: u64 = 1 << 14;
/// Most ranges of RAM. Machines have a few dozen.
const MAX_RANGES: usize = 1 << 16;

/// What is there of some pages. Bit n is of page n.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Have {
    /// Pages that were read.
    pub read: u16,
    /// Pages that are in the file and cannot be read.
    pub damaged: u16,
}

/// Where pages come from.
pub(crate) trait PageSource: Send + Sync {
    /// Fills `chunk` with the pages from frame `first` on. `first` is a multiple of [`PAGES`].
    fn load(&self, first: u64, chunk: &mut [u8; CHUNK]) -> Have;
}

struct Chunk {
    bytes: Box<[u8; CHUNK]>,
    have: Have,
    /// Pages that were wanted and are not there.
    missed: AtomicU64,
}

type Block = Box<[OnceLock<Chunk>]>;

/// Guest RAM that is in a file, perhaps in part.
pub struct ImageMemory {
    ranges: Vec<Range<u64>>,
    source: Box<dyn PageSource>,
    blocks: Vec<OnceLock<Block>>,
    lost: [AtomicU64; 2],
}

/// Pages that a check wanted and that an image lacks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Missed {
    /// Pages that are not in the file.
    pub absent: u64,
    /// Pages that are in the file and cannot be decompressed or read.
    pub damaged: u64,
}

/// Why there is no memory.
pub(crate) enum RangeError {
    /// There is no RAM.
    Empty,
    /// RAM has this many ranges, or bytes of it.
    TooMany(u64),
}

impl ImageMemory {
    /// `ranges` are the physical addresses of RAM, in any order. `size` is the file's in bytes.
    pub(crate) fn new(
        mut ranges: Vec<Range<u64>>,
        source: Box<dyn PageSource>,
        size: u64,
    ) -> Result<ImageMemory, RangeError> {
        ranges.retain(|range| range.start < range.end);
        ranges.sort_unstable_by_key(|range| range.start);
        let mut joined: Vec<Range<u64>> = Vec::new();
        for range in ranges {
            // Firmware may take a part of a page.
            let range = range.start & !(PAGE_SIZE - 1)..range.end.checked_next_multiple_of(PAGE_SIZE).unwrap_or(0);
            match joined.last_mut() {
                Some(last) if last.end >= range.start => last.end = last.end.max(range.end),
                _ => joined.push(range),
            }
        }
        let end = joined.last().ok_or(RangeError::Empty)?.end;
        if joined.len() > MAX_RANGES || end > MOST.max(size.saturating_mul(PER_BYTE)) || end > 1 << 52 {
            return Err(RangeError::TooMany(end));
        }
        let blocks = (0..end.div_ceil(BLOCK)).map(|_| OnceLock::new()).collect();
        Ok(ImageMemory { ranges: joined, source, blocks, lost: Default::default() })
    }

    /// Bytes of RAM.
    pub fn size(&self) -> u64 {
        self.ranges.iter().map(|range| range.end - range.start).sum()
    }

    /// The pages that were wanted until now and are not there.
    pub fn missed(&self) -> Missed {
        let [absent, damaged] = [&self.lost[0], &self.lost[1]].map(|n| n.load(Ordering::Relaxed));
        Missed { absent, damaged }
    }

    /// Copies memory from `start` on, of which only some may be there. The rest of `to` stays as it
    /// is and does not count as missed.
    pub(crate) fn copy(&self, start: u64, to: &mut [u8]) {
        let mut done = 0;
        while let Some(chunk) = self.chunk(PhysAddr(start + done as u64)).filter(|_| done < to.len()) {
            let within = ((start + done as u64) % CHUNK as u64) as usize;
            let n = (CHUNK - within).min(to.len() - done);
            to[done..done + n].copy_from_slice(&chunk.bytes[within..within + n]);
            done += n;
        }
    }

    /// Where the RAM around an address ends. `None` if there is none.
    pub(crate) fn end(&self, at: u64) -> Option<u64> {
        Some(self.range(PhysAddr(at))?.end)
    }

    fn range(&self, at: PhysAddr) -> Option<&Range<u64>> {
        self.ranges.get(self.ranges.partition_point(|range| range.end <= at.0)).filter(|range| range.contains(&at.0))
    }

    fn chunk(&self, at: PhysAddr) -> Option<&Chunk> {
        self.range(at)?;
        let block = self.blocks.get((at.0 / BLOCK) as usize)?;
        let block = block.get_or_init(|| (0..CHUNKS).map(|_| OnceLock::new()).collect());
        Some(block[(at.0 % BLOCK) as usize / CHUNK].get_or_init(|| {
            let mut bytes = vec![0; CHUNK].into_boxed_slice().try_into().unwrap_or_else(|_| Box::new([0; CHUNK]));
            let have = self.source.load(at.0 / CHUNK as u64 * PAGES as u64, &mut bytes);
            Chunk { bytes, have, missed: AtomicU64::new(0) }
        }))
    }

    /// The bytes from `at` on that are there and together, at most `max`. Counts the page at `at`
    /// if it is RAM and not there.
    fn some(&self, at: PhysAddr, max: usize) -> &[u8] {
        let (Some(range), Some(chunk)) = (self.range(at), self.chunk(at)) else { return &[] };
        let within = (at.0 % CHUNK as u64) as usize;
        let page = within / PAGE_SIZE as usize;
        // The pages from this one on, as the lowest bits.
        let pages = (chunk.have.read >> page).trailing_ones() as usize;
        if pages == 0 {
            self.miss(chunk, page);
            return &[];
        }
        let end = ((page + pages) * PAGE_SIZE as usize).min(CHUNK);
        let len = (end - within).min(max).min((range.end - at.0) as usize);
        &chunk.bytes[within..within + len]
    }

    fn miss(&self, chunk: &Chunk, page: usize) {
        let is_new = chunk.missed.fetch_or(1 << page, Ordering::Relaxed) >> page & 1 == 0;
        if is_new {
            let damaged = usize::from(chunk.have.damaged >> page & 1);
            self.lost[damaged].fetch_add(1, Ordering::Relaxed);
        }
    }
}

impl GuestMemory for ImageMemory {
    fn read(&self, at: PhysAddr, buf: &mut [u8]) -> Result<(), MemoryError> {
        let mut done = 0;
        while done < buf.len() {
            let next = PhysAddr(at.0.wrapping_add(done as u64));
            let some = self.some(next, buf.len() - done);
            if some.is_empty() {
                return Err(MemoryError::NoRam(next));
            }
            buf[done..done + some.len()].copy_from_slice(some);
            done += some.len();
        }
        Ok(())
    }

    fn ranges(&self) -> &[Range<u64>] {
        &self.ranges
    }

    fn contains(&self, at: PhysAddr) -> bool {
        self.range(at).is_some()
    }
}

impl StoppedMemory for ImageMemory {
    fn slice(&self, at: PhysAddr, len: usize) -> Option<&[u8]> {
        Some(self.some(at, len)).filter(|some| some.len() == len)
    }

    fn run(&self, at: PhysAddr, max: usize) -> &[u8] {
        self.some(at, max)
    }

    fn pieces<'a>(&'a self, at: PhysAddr, len: usize, each: &mut dyn FnMut(PhysAddr, &'a [u8])) {
        let mut done = 0;
        while done < len {
            let at = PhysAddr(at.0.wrapping_add(done as u64));
            let some = self.some(at, len - done);
            if some.is_empty() {
                // The next page may be there.
                done += (PAGE_SIZE - at.0 % PAGE_SIZE) as usize;
            } else {
                each(at, some);
                done += some.len();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Page n has n in each byte. Every fifth page is absent, and page 7 is damaged.
    struct Numbers;

    impl PageSource for Numbers {
        fn load(&self, first: u64, chunk: &mut [u8; CHUNK]) -> Have {
            let mut have = Have::default();
            for (i, page) in chunk.chunks_exact_mut(PAGE_SIZE as usize).enumerate() {
                match first + i as u64 {
                    7 => have.damaged |= 1 << i,
                    pfn if pfn % 5 == 4 => {}
                    pfn => {
                        page.fill(pfn as u8);
                        have.read |= 1 << i;
                    }
                }
            }
            have
        }
    }

    #[test]
    fn pages_that_are_not_there_are_counted_once_and_not_read() {
        let memory = ImageMemory::new(vec![0x2_3000..0x4_0000, 0..0xa000], Box::new(Numbers), 0).ok().unwrap();
        let page = PAGE_SIZE as usize;
        assert_eq!(memory.slice(PhysAddr(0x1ffe), 4).unwrap(), [1, 1, 2, 2]);
        assert!(
            memory.slice(PhysAddr(0x3ffe), 4).is_none() && memory.run(PhysAddr(0x2000), 9 * page).len() == 2 * page
        );
        assert_eq!(memory.missed(), Missed::default());
        let mut found = Vec::new();
        memory.pieces(PhysAddr(0x2800), 8 * page, &mut |at, bytes| found.push((at.0, bytes.len(), bytes[0])));
        assert_eq!(found, [(0x2800, 0x1800, 2), (0x5000, 0x2000, 5), (0x8000, 0x1000, 8)]);
        for _ in 0..2 {
            assert_eq!(memory.read_u64(PhysAddr(0x4008)), Err(MemoryError::NoRam(PhysAddr(0x4008))));
            assert_eq!(memory.missed(), Missed { absent: 2, damaged: 1 });
        }
        // Outside of RAM nothing is missed. A chunk has an end.
        assert!(memory.run(PhysAddr(0xb000), 8).is_empty() && memory.run(PhysAddr(u64::MAX), 8).is_empty());
        assert_eq!(memory.run(PhysAddr(0x2_f000), 2 * page).len(), page);
        let mut buf = [0; 16];
        memory.read(PhysAddr(0x2_fff8), &mut buf).unwrap();
        assert_eq!(buf, [[0x2f; 8], [0x30; 8]].concat()[..]);
        assert_eq!((memory.missed().absent, memory.size()), (2, 0x2_7000));
        let mut copy = vec![9; 0x2001];
        memory.copy(0x3000, &mut copy);
        assert_eq!(copy[0xfff..0x1001], [3, 0]);
    }

    #[test]
    fn ranges_are_bounded() {
        let new = |ranges| ImageMemory::new(ranges, Box::new(Numbers), 1 << 20);
        assert!(matches!(new(vec![]), Err(RangeError::Empty)));
        assert!(matches!(new(vec![0..1, 1 << 41..1 << 42]), Err(RangeError::TooMany(_))));
        assert!(matches!(new((0..1 << 17).map(|i| i << 13..(i << 13) + 1).collect()), Err(RangeError::TooMany(_))));
        let joined = new(vec![0x1800..0x2001, 0x3000..0x3001]).ok().unwrap();
        assert_eq!((joined.ranges().len(), &joined.ranges()[0]), (1, &(0x1000..0x4000)));
    }
}
