//! Kernel virtual memory with the mappings of one time, for several reads.

use crate::memory::{GuestMemory, MemoryError, PAGE_SIZE, PhysAddr, VirtAddr};
use crate::paging::{PageTables, Translation};

/// The direct map and the kernel's page tables.
///
/// The direct map's address is read once, when this is made. Early boot sets it. Page tables are
/// read each time, so that an old mapping is never used after it has changed.
#[derive(Debug, Clone, Copy)]
pub struct View<'a, M> {
    memory: &'a M,
    /// Virtual address of physical address 0 in the direct map.
    direct_map: Option<u64>,
    tables: PageTables,
}

impl<'a, M: GuestMemory> View<'a, M> {
    /// Makes a view. `direct_map` is the virtual address of the direct map, if known. `root` is the
    /// kernel's top-level page table.
    #[inline]
    pub(crate) fn new(memory: &'a M, direct_map: Option<u64>, root: PhysAddr) -> Self {
        // With LA57 the direct map is at 0xff11..., and without it at 0xffff88... or above.
        let levels = if direct_map.is_some_and(|b| b < 0xffff_8000_0000_0000) { 5 } else { 4 };
        View { memory, direct_map, tables: PageTables { root, levels } }
    }

    /// The kernel's page tables.
    #[inline]
    pub fn tables(&self) -> PageTables {
        self.tables
    }

    /// Translates `at`. The direct map is translated by offset, and other addresses by the kernel's
    /// page tables.
    ///
    /// # Errors
    /// As in [`PageTables::translate`].
    #[inline]
    pub fn translate(&self, at: VirtAddr) -> Result<Translation, MemoryError> {
        let phys = self.direct_map.and_then(|base| at.0.checked_sub(base)).map(PhysAddr);
        if let Some(phys) = phys.filter(|phys| self.memory.contains(*phys)) {
            return Ok(Translation { phys, len: PAGE_SIZE - at.0 % PAGE_SIZE });
        }
        self.tables.translate(self.memory, at)
    }

    /// Fills `buf` from kernel virtual memory. It may cross pages.
    ///
    /// # Errors
    /// As in [`PageTables::translate`] and [`GuestMemory::read`].
    pub fn read(&self, at: VirtAddr, buf: &mut [u8]) -> Result<(), MemoryError> {
        let mut done = 0;
        while done < buf.len() {
            let t = self.translate(at.offset(done as u64))?;
            let n = t.len.min((buf.len() - done) as u64) as usize;
            self.memory.read(t.phys, &mut buf[done..done + n])?;
            done += n;
        }
        Ok(())
    }

    /// The `u64` at an address of kernel virtual memory.
    ///
    /// # Errors
    /// As in [`View::read`].
    #[inline]
    pub fn read_u64(&self, at: VirtAddr) -> Result<u64, MemoryError> {
        let t = self.translate(at)?;
        if t.len >= 8 {
            return self.memory.read_u64(t.phys);
        }
        let mut buf = [0; 8];
        self.read(at, &mut buf)?;
        Ok(u64::from_le_bytes(buf))
    }

    /// The `u32` at an address of kernel virtual memory.
    ///
    /// # Errors
    /// As in [`View::read`].
    #[inline]
    pub fn read_u32(&self, at: VirtAddr) -> Result<u32, MemoryError> {
        let mut buf = [0; 4];
        self.read(at, &mut buf)?;
        Ok(u32::from_le_bytes(buf))
    }
}
