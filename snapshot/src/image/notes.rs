//! What the notes of an image tell: the CPUs' registers, their page tables, and VMCOREINFO.

use guest_symbols::memory::{PhysAddr, u32_at, u64_at};
use guest_symbols::paging::PageTables;

/// Most CPUs whose registers are read (`NR_CPUS`, arch/x86/Kconfig).
const MAX_CPUS: usize = 8192;
/// Words of each CPU in [`checker::Request::registers`].
const WORDS: usize = 17;

/// NT_PRSTATUS (include/uapi/linux/elf.h). Its registers follow this many bytes.
const PRSTATUS: u32 = 1;
const PRSTATUS_REGISTERS: usize = 112;
/// The registers in [`checker::Request::registers`], as places in `struct user_regs_struct`
/// (arch/x86/include/asm/user_64.h).
const USER_REGISTERS: [usize; WORDS] = [10, 5, 11, 12, 13, 14, 4, 19, 9, 8, 7, 6, 3, 2, 1, 0, 16];

/// QEMU's own note (`QEMUCPUState`, target/i386/arch_dump.c): version, size, then these registers:
/// rax rbx rcx rdx rsi rdi rsp rbp r8 to r15 rip.
const QEMU_SIZE: usize = 440;
const QEMU_REGISTERS: usize = 8;
const QEMU_PLACES: [usize; WORDS] = [0, 1, 2, 3, 4, 5, 7, 6, 8, 9, 10, 11, 12, 13, 14, 15, 16];
const QEMU_CR3: usize = 416;
const QEMU_CR4: usize = 424;
/// CR4.LA57: tables have five levels.
const LA57: u64 = 1 << 12;

/// Size of a note's header in bytes.
const HEADER: usize = 12;

/// What the notes tell.
#[derive(Debug, Default)]
pub(crate) struct Notes {
    /// Words of registers, as in [`checker::Request::registers`].
    pub registers: Vec<u64>,
    /// Page tables of each CPU.
    pub tables: Vec<PageTables>,
    /// The text of VMCOREINFO (Documentation/admin-guide/kdump/vmcoreinfo.rst).
    pub vmcoreinfo: Option<String>,
}

impl Notes {
    /// Reads the notes of one or more segments. Notes that are cut or unknown are passed over.
    pub(crate) fn read(areas: &[Vec<u8>]) -> Notes {
        let mut notes = Notes::default();
        let mut general = Vec::new();
        for (name, kind, desc) in areas.iter().flat_map(|area| each(area)) {
            match (name, kind) {
                (b"CORE", PRSTATUS) => general.extend(words(desc, PRSTATUS_REGISTERS, USER_REGISTERS)),
                (b"QEMU", 0) if desc.len() >= QEMU_SIZE && notes.tables.len() < MAX_CPUS => {
                    notes.registers.extend(words(desc, QEMU_REGISTERS, QEMU_PLACES).into_iter().flatten());
                    let (cr3, cr4) = (u64_at(desc, QEMU_CR3).unwrap_or(0), u64_at(desc, QEMU_CR4).unwrap_or(0));
                    let levels = if cr4 & LA57 == 0 { 4 } else { 5 };
                    notes.tables.push(PageTables { root: PhysAddr(cr3), levels });
                }
                (b"VMCOREINFO", 0) => notes.vmcoreinfo = Some(String::from_utf8_lossy(desc).into_owned()),
                _ => {}
            }
        }
        // QEMU writes both for each CPU.
        if notes.registers.is_empty() {
            notes.registers = general.into_iter().take(MAX_CPUS).flatten().collect();
        }
        notes
    }
}

fn words(desc: &[u8], at: usize, places: [usize; WORDS]) -> Option<[u64; WORDS]> {
    let mut words = [0; WORDS];
    for (word, place) in words.iter_mut().zip(places) {
        *word = u64_at(desc, at + 8 * place)?;
    }
    Some(words)
}

/// Name, type and contents of each note.
fn each(mut area: &[u8]) -> impl Iterator<Item = (&[u8], u32, &[u8])> {
    std::iter::from_fn(move || {
        let field = |at| u32_at(area, at).map(|n| n as usize);
        let (name_len, len, kind) = (field(0)?, field(4)?, u32_at(area, 8)?);
        let desc_at = HEADER.checked_add(name_len)?.checked_next_multiple_of(4)?;
        let end = desc_at.checked_add(len)?;
        let name = area.get(HEADER..HEADER + name_len)?;
        let desc = area.get(desc_at..end)?;
        area = area.get(end.next_multiple_of(4)..).unwrap_or(&[]);
        Some((name.split(|&b| b == 0).next().unwrap_or_default(), kind, desc))
    })
}

/// The value of a line of VMCOREINFO.
pub(crate) fn value<'a>(vmcoreinfo: &'a str, name: &str) -> Option<&'a str> {
    vmcoreinfo.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('='))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn note(name: &[u8], kind: u32, desc: &[u8]) -> Vec<u8> {
        let mut note = Vec::new();
        note.extend((name.len() as u32).to_le_bytes());
        note.extend((desc.len() as u32).to_le_bytes());
        note.extend(kind.to_le_bytes());
        for part in [name, desc] {
            note.extend(part);
            note.resize(note.len().next_multiple_of(4), 0);
        }
        note
    }

    #[test]
    fn registers_of_each_kind_of_note() {
        // Register n of user_regs_struct has the value n.
        let prstatus: Vec<u8> =
            [0; PRSTATUS_REGISTERS].into_iter().chain((0..27u64).flat_map(u64::to_le_bytes)).collect();
        let notes =
            Notes::read(&[[note(b"CORE\0", 1, &prstatus), note(b"VMCOREINFO\0", 0, b"A=1\nOSRELEASE=6\n")].concat()]);
        assert_eq!(notes.registers, [10, 5, 11, 12, 13, 14, 4, 19, 9, 8, 7, 6, 3, 2, 1, 0, 16]);
        assert_eq!(value(notes.vmcoreinfo.as_deref().unwrap(), "OSRELEASE"), Some("6"));
        let mut qemu: Vec<u8> = (0..55u64).flat_map(u64::to_le_bytes).collect();
        qemu[QEMU_CR4..][..8].copy_from_slice(&LA57.to_le_bytes());
        let both = Notes::read(&[note(b"CORE\0", 1, &prstatus), note(b"QEMU\0", 0, &qemu)]);
        assert_eq!(both.registers, [1, 2, 3, 4, 5, 6, 8, 7, 9, 10, 11, 12, 13, 14, 15, 16, 17]);
        assert_eq!((both.tables[0].root, both.tables[0].levels), (PhysAddr(52), 5));
    }

    #[test]
    fn cut_notes_end_the_list() {
        let whole = [note(b"X\0", 7, b"123"), note(b"VMCOREINFO\0", 0, b"A=1\n")].concat();
        assert!(Notes::read(std::slice::from_ref(&whole)).vmcoreinfo.is_some());
        for cut in 0..whole.len() {
            assert!(Notes::read(&[whole[..cut].to_vec()]).vmcoreinfo.is_none());
        }
        assert!(Notes::read(&[vec![0xff; 64]]).registers.is_empty());
    }
}
