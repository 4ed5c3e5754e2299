//! Reads text of the guest: from the memory of the running process, and from records of the
//! kernel's log.
//!
//! All of it is untrusted. The caller limits the length, and the text ends at the first byte that
//! cannot be read.

use super::arch;
use crate::ffi::ram::Ram;
use crate::ffi::regs;
use guest_symbols::Kernel;
use guest_symbols::memory::{GuestMemory, PhysAddr, VirtAddr};
use guest_symbols::paging::PageTables;

/// Most bytes of a log record: PRINTKRB_RECORD_MAX (kernel/printk/internal.h).
const MAX_RECORD: usize = 1024;
/// TTY_DRIVER_TYPE_PTY (include/linux/tty_driver.h); a short.
const TTY_DRIVER_TYPE_PTY: u32 = 4;
/// Most parts of a text written by writev().
const MAX_PARTS: u64 = 16;
/// Most bits of a ring's size, in records or in bytes.
const MAX_BITS: u32 = 30;

/// Offsets that locate text, resolved once.
pub struct GuestText {
    iter: Option<Iter>,
    log: Option<Log>,
    driver: Option<Driver>,
    /// Offset of `struct kiocb`'s file (include/linux/fs.h).
    file: Option<u64>,
}

/// Offsets of a terminal's driver (`struct tty_struct`, include/linux/tty.h), and of the driver's
/// type (`struct tty_driver`, include/linux/tty_driver.h).
struct Driver {
    driver: u64,
    kind: u64,
}

/// `struct iov_iter` (include/linux/uio.h).
struct Iter {
    /// Offset of the type.
    kind: u64,
    /// The type is one byte (since 5.14), not flags in a word.
    is_byte: bool,
    /// The values ITER_IOVEC, and ITER_UBUF (since 6.0).
    iovec: u64,
    ubuf: Option<u64>,
    /// Offsets.
    iov: u64,
    buffer: u64,
    skip: u64,
    count: u64,
}

/// The log's ring buffers (kernel/printk/printk_ringbuffer.h, 5.10 to 7.3).
struct Log {
    entry_rb: u64,
    entry_id: u64,
    count_bits: u64,
    descs: u64,
    infos: u64,
    size_bits: u64,
    data: u64,
    /// Size of `struct prb_desc` in bytes.
    desc_size: u64,
    /// Offsets in it of the logical positions where the text's block and the next block begin.
    begin: u64,
    next: u64,
    /// Size of `struct printk_info` in bytes.
    info_size: u64,
    /// Offset in it of the text's length in bytes.
    text_len: u64,
}

/// Text that was read.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Text {
    /// The bytes.
    pub bytes: Vec<u8>,
    /// All of it could be read.
    pub whole: bool,
}

impl GuestText {
    /// Resolves the offsets. Text is not read where the kernel lacks a type.
    pub fn new(kernel: &Kernel) -> GuestText {
        let driver = || {
            let driver = kernel.offset_of("tty_struct", "driver")?;
            Some(Driver { driver, kind: kernel.offset_of("tty_driver", "type")? })
        };
        let file = kernel.offset_of("kiocb", "ki_filp");
        GuestText { iter: Iter::new(kernel), log: Log::new(kernel), driver: driver(), file }
    }

    /// The address of the `struct file` that the `kiocb` at `iocb` is for.
    pub fn file(&self, kernel: &Kernel, ram: &Ram, iocb: VirtAddr) -> Option<VirtAddr> {
        kernel.read_u64(ram, iocb.offset(self.file?)).ok().map(VirtAddr)
    }

    /// Whether the `tty_struct` at `tty` is a pseudo-terminal.
    pub fn is_pty(&self, kernel: &Kernel, ram: &Ram, tty: VirtAddr) -> bool {
        let kind = |Driver { driver, kind }: &Driver| {
            let driver = kernel.read_u64(ram, tty.offset(*driver)).ok()?;
            kernel.read_u32(ram, VirtAddr(driver).offset(*kind)).ok()
        };
        self.driver.as_ref().and_then(kind).is_some_and(|kind| kind & 0xffff == TTY_DRIVER_TYPE_PTY)
    }

    /// Reads at most `max` bytes of the text that a process is about to write, from the `iov_iter`
    /// at `iter`.
    pub fn iter(&self, kernel: &Kernel, ram: &Ram, iter: VirtAddr, max: usize) -> Text {
        self.iter.as_ref().and_then(|i| i.read(kernel, ram, iter, max)).unwrap_or_default()
    }

    /// The id of a log record, given the address of its `prb_reserved_entry`. A record that is
    /// continued keeps its id.
    pub fn record_id(&self, kernel: &Kernel, ram: &Ram, entry: VirtAddr) -> Option<u64> {
        kernel.read_u64(ram, entry.offset(self.log.as_ref()?.entry_id)).ok()
    }

    /// Reads the text of a log record, given the address of its `prb_reserved_entry`.
    pub fn record(&self, kernel: &Kernel, ram: &Ram, entry: VirtAddr) -> Vec<u8> {
        self.log.as_ref().and_then(|log| log.read(kernel, ram, entry)).unwrap_or_default()
    }
}

/// Reads at most `max` bytes at `at`, an address of the process that runs on the current vCPU.
pub fn user_text(kernel: &Kernel, ram: &Ram, at: VirtAddr, max: usize) -> Text {
    let levels = kernel.page_tables(ram).levels;
    let tables = PageTables { root: PhysAddr(regs::read(arch::PAGE_TABLES)), levels };
    read_user(tables, ram, at, max)
}

fn read_user(tables: PageTables, memory: &impl GuestMemory, start: VirtAddr, max: usize) -> Text {
    let mut text = Text { bytes: Vec::new(), whole: true };
    while text.bytes.len() < max {
        let at = start.offset(text.bytes.len() as u64);
        let found = if at.is_kernel() { None } else { tables.translate(memory, at).ok() };
        let Some(found) = found else { return Text { whole: false, ..text } };
        let mut part = vec![0; (found.len as usize).min(max - text.bytes.len())];
        if memory.read(found.phys, &mut part).is_err() {
            return Text { whole: false, ..text };
        }
        text.bytes.append(&mut part);
    }
    text
}

/// Reads `max` bytes at `at`, an address of the kernel; empty if not all of them can be read.
pub fn kernel_text(kernel: &Kernel, ram: &Ram, at: VirtAddr, max: usize) -> Vec<u8> {
    let mut bytes = vec![0; max];
    let is_read = at.is_kernel() && kernel.read(ram, at, &mut bytes).is_ok();
    if is_read { bytes } else { Vec::new() }
}

impl Iter {
    fn new(kernel: &Kernel) -> Option<Iter> {
        let field = |name| kernel.offset_of("iov_iter", name);
        let btf = kernel.btf.as_ref()?;
        Some(Iter {
            kind: field("iter_type").or_else(|| field("type"))?,
            is_byte: field("iter_type").is_some(),
            iovec: btf.enumerator("iter_type", "ITER_IOVEC")?,
            ubuf: btf.enumerator("iter_type", "ITER_UBUF"),
            iov: field("__iov").or_else(|| field("iov"))?,
            buffer: field("ubuf").unwrap_or(0),
            skip: field("iov_offset")?,
            count: field("count")?,
        })
    }

    fn read(&self, kernel: &Kernel, ram: &Ram, iter: VirtAddr, max: usize) -> Option<Text> {
        let word = |at: VirtAddr| kernel.read_u64(ram, at).ok();
        let field = |offset: u64| word(iter.offset(offset));
        // The lowest bit of the flags is the direction.
        let kind = field(self.kind)? & if self.is_byte { 0xff } else { 0xfe };
        let (skip, count) = (field(self.skip)?, field(self.count)?.min(max as u64) as usize);
        if Some(kind) == self.ubuf {
            return Some(user_text(kernel, ram, VirtAddr(field(self.buffer)?).offset(skip), count));
        }
        if kind != self.iovec {
            return None;
        }
        let (array, mut skip) = (VirtAddr(field(self.iov)?), skip);
        let mut text = Text { bytes: Vec::new(), whole: true };
        for i in 0..MAX_PARTS {
            let part = array.offset(16 * i);
            let (base, len) = (VirtAddr(word(part)?), word(part.offset(8))?);
            let room = count.saturating_sub(text.bytes.len());
            if room == 0 {
                break;
            }
            let more =
                user_text(kernel, ram, base.offset(skip), room.min(len.saturating_sub(skip).min(max as u64) as usize));
            skip = 0;
            text.bytes.extend(more.bytes);
            if !more.whole {
                return Some(Text { whole: false, ..text });
            }
        }
        Some(text)
    }
}

impl Log {
    fn new(kernel: &Kernel) -> Option<Log> {
        let entry = |name| kernel.offset_of("prb_reserved_entry", name);
        let ring = |name| kernel.offset_of("printk_ringbuffer", name);
        let size = |name| kernel.btf.as_ref()?.size_of(name);
        let text = |name| kernel.offset_of("prb_desc", name);
        Some(Log {
            entry_rb: entry("rb")?,
            entry_id: entry("id")?,
            count_bits: ring("desc_ring.count_bits")?,
            descs: ring("desc_ring.descs")?,
            infos: ring("desc_ring.infos")?,
            size_bits: ring("text_data_ring.size_bits")?,
            data: ring("text_data_ring.data")?,
            desc_size: size("prb_desc")?,
            begin: text("text_blk_lpos.begin")?,
            next: text("text_blk_lpos.next")?,
            info_size: size("printk_info")?,
            text_len: kernel.offset_of("printk_info", "text_len")?,
        })
    }

    fn read(&self, kernel: &Kernel, ram: &Ram, entry: VirtAddr) -> Option<Vec<u8>> {
        let word = |at: VirtAddr| kernel.read_u64(ram, at).ok();
        let bits = |at: VirtAddr| {
            let bits = kernel.read_u32(ram, at).ok()?;
            Some(bits).filter(|bits| *bits <= MAX_BITS)
        };
        let (rb, id) = (VirtAddr(word(entry.offset(self.entry_rb))?), word(entry.offset(self.entry_id))?);
        let ring = |offset: u64| rb.offset(offset);
        let index = id & ((1 << bits(ring(self.count_bits))?) - 1);
        let desc = VirtAddr(word(ring(self.descs))?).offset(index * self.desc_size);
        let info = VirtAddr(word(ring(self.infos))?).offset(index * self.info_size);
        let len = kernel.read_u32(ram, info.offset(self.text_len)).ok()? & 0xffff;
        let (begin, next) = (word(desc.offset(self.begin))?, word(desc.offset(self.next))?);
        let size_bits = bits(ring(self.size_bits))?;
        let at = place(begin, next, size_bits)?;
        let text = VirtAddr(word(ring(self.data))?).offset(at);
        Some(kernel_text(kernel, ram, text, (len as usize).min(MAX_RECORD)))
    }
}

/// The offset of a text in a ring of `1 << size_bits` bytes. Its block lies between the logical
/// positions `begin` and `next`. A block that would wrap lies at the start of the ring. Each block
/// starts with a word that is not text.
fn place(begin: u64, next: u64, size_bits: u32) -> Option<u64> {
    // The record has no text.
    if begin & 1 != 0 {
        return None;
    }
    let is_wrapped = begin >> size_bits != next.wrapping_sub(1) >> size_bits;
    Some(if is_wrapped { 0 } else { begin & ((1 << size_bits) - 1) } + 8)
}

#[cfg(test)]
mod tests {
    use super::*;
    use guest_symbols::memory::OwnedMemory;

    /// Two pages of a process at 0x40_0000, which are not adjacent in physical memory, and no
    /// third.
    fn process() -> (OwnedMemory, PageTables) {
        let mut memory = OwnedMemory::zeroed(0, 0x1_0000);
        for (at, entry) in [(0x1000, 0x2001u64), (0x2000, 0x3001), (0x3010, 0x4001), (0x4000, 0x9001), (0x4008, 0x6001)]
        {
            memory.write(at, &entry.to_le_bytes());
        }
        memory.write(0x9ffc, b"leak");
        memory.write(0x6000, b":scan\n");
        (memory, PageTables { root: PhysAddr(0x1000), levels: 4 })
    }

    #[test]
    fn text_of_a_process_is_read_across_pages_and_to_where_there_are_none() {
        let (memory, tables) = process();
        let read = |at, max| read_user(tables, &memory, VirtAddr(at), max);
        assert_eq!(read(0x40_0ffc, 9), Text { bytes: b"leak:scan".to_vec(), whole: true });
        let cut = read(0x40_1ffe, 9);
        assert_eq!((cut.bytes.len(), cut.whole), (2, false));
        assert_eq!(read(0x40_2000, 9), Text { bytes: Vec::new(), whole: false });
        assert_eq!(read(0xffff_8000_0000_0000, 9).bytes, b"");
        assert_eq!(read(u64::MAX - 3, 9).bytes, b"");
        assert_eq!(read(0x40_0ffc, 0), Text { bytes: Vec::new(), whole: true });
    }

    #[test]
    fn records_lie_where_the_ring_has_them() {
        assert_eq!(place(0x120, 0x140, 8), Some(0x28));
        // The last block of the ring, and one that does not fit there.
        assert_eq!(place(0x1e0, 0x200, 8), Some(0xe8));
        assert_eq!(place(0x1e0, 0x230, 8), Some(8));
        assert_eq!(place(1, 1, 8), None);
    }
}
