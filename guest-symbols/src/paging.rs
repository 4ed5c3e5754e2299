//! Address translation with x86-64 page tables of four or five levels (Intel SDM vol. 3A, 5.5).

use crate::memory::{GuestMemory, MemoryError, PhysAddr, VirtAddr};

const PRESENT: u64 = 1;
const WRITABLE: u64 = 1 << 1;
const USER: u64 = 1 << 2;
const DIRTY: u64 = 1 << 6;
const HUGE: u64 = 1 << 7;
/// Bits 51 to 12 of an entry.
const FRAME: u64 = 0x000f_ffff_ffff_f000;

/// A kernel page table root.
#[derive(Debug, Clone, Copy)]
pub struct PageTables {
    /// Physical address of the top-level table.
    pub root: PhysAddr,
    /// 4, or 5 with CR4.LA57.
    pub levels: u32,
}

/// The physical address of a virtual address, and what follows it in the same page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Translation {
    /// Physical address of the translated byte.
    pub phys: PhysAddr,
    /// Bytes from there to the end of the page, which is 4 KiB, 2 MiB or 1 GiB large.
    pub len: u64,
}

impl PageTables {
    /// Walks the tables for `at`. It reads one entry per level, with any content of the tables.
    ///
    /// # Errors
    /// [`MemoryError::NotMapped`] if an entry is not present. [`MemoryError::NoRam`] if a table is
    /// not in RAM.
    #[inline]
    pub fn translate(&self, memory: &impl GuestMemory, at: VirtAddr) -> Result<Translation, MemoryError> {
        self.walk(memory, at, PRESENT, 0)
    }

    /// As [`PageTables::translate`], for a page that a process may write to and has written to. A
    /// page without the dirty bit may be one that the kernel shares or has in a file.
    ///
    /// # Errors
    /// As for [`PageTables::translate`]. Other pages count as not mapped.
    pub fn translate_dirty(&self, memory: &impl GuestMemory, at: VirtAddr) -> Result<Translation, MemoryError> {
        self.walk(memory, at, PRESENT | WRITABLE | USER, DIRTY)
    }

    /// Walks the tables. Each entry must have all bits of `each`, the last one also those of `last`.
    #[inline]
    fn walk(&self, memory: &impl GuestMemory, at: VirtAddr, each: u64, last: u64) -> Result<Translation, MemoryError> {
        let mut table = self.root.0 & FRAME;
        for level in (0..self.levels).rev() {
            let shift = 12 + 9 * level;
            let index = (at.0 >> shift) & 0x1ff;
            let entry = memory.read_u64(PhysAddr(table + 8 * index))?;
            if entry & each != each {
                return Err(MemoryError::NotMapped(at));
            }
            // Only the three lowest levels map pages. Bit 7 of a PGD or P4D entry is reserved.
            if level == 0 || (level <= 2 && entry & HUGE != 0) {
                if entry & last != last {
                    return Err(MemoryError::NotMapped(at));
                }
                let size = 1u64 << shift;
                let within = at.0 & (size - 1);
                let frame = entry & FRAME & !(size - 1);
                return Ok(Translation { phys: PhysAddr(frame + within), len: size - within });
            }
            table = entry & FRAME;
        }
        Err(MemoryError::NotMapped(at))
    }
}

impl PageTables {
    /// Walks all tables below the top-level entries that `wanted` picks by their lowest virtual
    /// address.
    ///
    /// Calls `each` with every run of frames: of tables without an address, and of mapped pages
    /// with their virtual address. `is_new` is asked once for each table, by its frame, whether to
    /// read it. It must return true at most once for a frame. The walk therefore ends on any
    /// content.
    pub fn frames(
        &self,
        memory: &impl GuestMemory,
        wanted: impl Fn(VirtAddr) -> bool,
        mut is_new: impl FnMut(u64) -> bool,
        each: &mut dyn FnMut(Option<VirtAddr>, std::ops::Range<u64>),
    ) {
        let top = self.levels - 1;
        let mut todo = vec![(self.root.0 & FRAME, top, 0u64)];
        while let Some((table, level, base)) = todo.pop() {
            let frame = PhysAddr(table).pfn();
            if !is_new(frame) {
                continue;
            }
            each(None, frame..frame + 1);
            for index in 0..512u64 {
                let shift = 12 + 9 * level;
                let at = base | index << shift;
                // Bits above the highest translated bit are copies of it.
                let unused = 64 - (12 + 9 * self.levels);
                let at = if level == top { ((at << unused) as i64 >> unused) as u64 } else { at };
                if level == top && !wanted(VirtAddr(at)) {
                    continue;
                }
                let Ok(entry) = memory.read_u64(PhysAddr(table + 8 * index)) else { continue };
                if entry & PRESENT == 0 {
                    continue;
                }
                if level == 0 || (level <= 2 && entry & HUGE != 0) {
                    let size = 1u64 << shift;
                    let frame = PhysAddr(entry & FRAME & !(size - 1)).pfn();
                    each(Some(VirtAddr(at)), frame..frame + (size >> 12));
                } else {
                    todo.push((entry & FRAME, level - 1, at));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::OwnedMemory;

    /// Tables at 0x1000, 0x2000 and so on, which map one page each of 4 KiB, 2 MiB and 1 GiB.
    fn tables(levels: u32) -> (OwnedMemory, PageTables) {
        let mut m = OwnedMemory::zeroed(0, 0x10000);
        let mut put = |at: u64, v: u64| m.write(at, &v.to_le_bytes());
        let mut root = 0x1000;
        if levels == 5 {
            root = 0x6000;
            put(0x6000 + 8 * 0x1ff, 0x1000 | PRESENT);
        }
        put(0x1000 + 8 * 0x1ff, 0x2000 | PRESENT);
        put(0x2000 + 8 * 0x1fe, 0x3000 | PRESENT);
        put(0x2000 + 8 * 0x1fd, 0x4000_0000 | PRESENT | HUGE);
        put(0x3000, 0x4000 | PRESENT);
        put(0x3000 + 8, 0x20_0000 | PRESENT | HUGE | 1 << 63);
        put(0x4000 + 8 * 3, 0x7000 | PRESENT | 1 << 63);
        (m, PageTables { root: PhysAddr(root), levels })
    }

    #[test]
    fn every_page_size_and_both_depths() {
        for levels in [4, 5] {
            let (m, t) = tables(levels);
            let base = 0xffff_ffff_8000_0000u64;
            let small = t.translate(&m, VirtAddr(base + 0x3123)).unwrap();
            assert_eq!(small, Translation { phys: PhysAddr(0x7123), len: 0xedd });
            let large = t.translate(&m, VirtAddr(base + 0x20_1000)).unwrap();
            assert_eq!(large, Translation { phys: PhysAddr(0x20_1000), len: 0x1f_f000 });
            let huge = t.translate(&m, VirtAddr(base - 0x4000_0000 + 5)).unwrap();
            assert_eq!(huge.phys, PhysAddr(0x4000_0005));
        }
    }

    #[test]
    fn frames_of_tables_and_of_what_they_map() {
        for levels in [4, 5] {
            let (m, t) = tables(levels);
            let mut frames = Vec::new();
            let mut seen = std::collections::HashSet::new();
            let wanted = |at: VirtAddr| at.0 == 0xffff_ff80_0000_0000 || at.0 == 0xffff_0000_0000_0000;
            t.frames(&m, wanted, |frame| seen.insert(frame), &mut |at, f| {
                frames.push((f.start, f.end - f.start));
                assert!(at.is_none() || t.translate(&m, at.unwrap()).unwrap().phys.pfn() == f.start);
            });
            frames.sort_unstable();
            let top = if levels == 5 {
                vec![(1, 1), (2, 1), (3, 1), (4, 1), (6, 1)]
            } else {
                vec![(1, 1), (2, 1), (3, 1), (4, 1)]
            };
            let mapped = [(7, 1), (0x200, 512), (0x4_0000, 1 << 18)];
            assert_eq!(frames, [&top[..], &mapped[..]].concat(), "{levels} levels");
            let mut none = 0;
            t.frames(&m, |_| false, |_| true, &mut |_, _| none += 1);
            assert_eq!(none, 1, "the top-level table alone");
        }
    }

    /// Every level takes part: one without the bit is enough.
    #[test]
    fn only_pages_that_a_process_wrote_to_are_dirty() {
        let (all, at) = (PRESENT | WRITABLE | USER, VirtAddr(0x40_0123));
        let entries = [(0x1000, 0x2000), (0x2000, 0x3000), (0x3010, 0x4000), (0x4000, 0x7000 | DIRTY)];
        let translate = |lacks: Option<(usize, u64)>| {
            let mut m = OwnedMemory::zeroed(0, 0x10000);
            for (i, (at, entry)) in entries.into_iter().enumerate() {
                let missing = lacks.filter(|(level, _)| *level == i).map_or(0, |(_, bit)| bit);
                m.write(at, &((entry | all) & !missing).to_le_bytes());
            }
            PageTables { root: PhysAddr(0x1000), levels: 4 }.translate_dirty(&m, at)
        };
        assert_eq!(translate(None).unwrap().phys, PhysAddr(0x7123));
        for bit in [PRESENT, WRITABLE, USER] {
            (0..4).for_each(|level| assert!(translate(Some((level, bit))).is_err(), "bit {bit:#x} of {level}"));
        }
        assert!(translate(Some((3, DIRTY))).is_err());
    }

    #[test]
    fn holes_are_errors_with_the_address() {
        let (m, t) = tables(4);
        let at = VirtAddr(0xffff_ffff_8000_0000);
        assert_eq!(t.translate(&m, at), Err(MemoryError::NotMapped(at)));
        let outside = PageTables { root: PhysAddr(0x100_0000), levels: 4 };
        assert!(matches!(outside.translate(&m, at), Err(MemoryError::NoRam(_))));
    }
}
