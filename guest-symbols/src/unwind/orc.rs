//! ORC, the kernel's unwind table. It shows where the caller's frame starts at each instruction
//! (arch/x86/include/asm/orc_types.h, 4.14 to 7.3; Documentation/arch/x86/orc-unwinder.rst).
//!
//! It consists of two arrays: ascending addresses, relative to themselves, and the rule from each
//! address on. The struct has six bytes and is in BTF. The numbers of registers are macros and
//! changed once. They are learnt from the table: nearly all functions start with their return
//! address at the stack pointer.

use crate::btf::Btf;
use crate::memory::{StoppedMemory, VirtAddr};
use crate::symbols::SymbolTable;
use std::collections::HashMap;
use std::ops::Range;

/// Bytes of a `struct orc_entry`.
const ENTRY: usize = 6;
/// The most entries that are accepted. Stock kernels have about 700,000.
const MAX_ENTRIES: u64 = 16 << 20;
/// Functions that are examined to learn the register numbers.
const SAMPLE: usize = 2000;

/// The base of a frame's address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Base {
    /// The stack pointer.
    Sp,
    /// The frame pointer.
    Bp,
    /// The word at the stack pointer plus the offset.
    SpIndirect,
    /// The word at the frame pointer plus the offset.
    BpIndirect,
    /// Another register, by its offset in `struct pt_regs`.
    Register(u8),
    /// A register that is not known.
    Unknown,
    /// The table has no information here.
    Undefined,
}

/// The type of a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// A call. The return address is below the caller's frame.
    Call,
    /// An interrupt or exception. A `struct pt_regs` is there.
    Regs,
    /// An interrupt or exception of which only the part that the CPU pushes is there.
    PartialRegs,
    /// The last frame of a stack.
    End,
    /// The table has no information.
    Undefined,
}

/// The unwind rule from an address on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rule {
    /// The base of the caller's stack pointer.
    pub sp: Base,
    /// Bytes to add.
    pub sp_offset: i16,
    /// Where the caller's frame pointer was saved.
    pub bp: Saved,
    /// Bytes to add.
    pub bp_offset: i16,
    /// The type of the frame.
    pub kind: Kind,
    /// Whether the caller was interrupted. Its instruction pointer is then the next instruction and
    /// not a return address.
    pub signal: bool,
}

impl Rule {
    /// Whether everything about the caller depends on the frame pointer.
    #[inline]
    pub fn starts_from_frame_pointer(&self) -> bool {
        self.sp == Base::Bp && self.kind == Kind::Call && self.bp != Saved::Register
    }
}

/// Where the caller's frame pointer is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Saved {
    /// In the register.
    Register,
    /// At the caller's stack pointer plus the offset.
    FromCaller,
    /// At the frame pointer plus the offset.
    FromBp,
}

/// The register numbers of a kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Numbers {
    prev_sp: u8,
    bp: u8,
    sp: u8,
    bp_indirect: u8,
    sp_indirect: u8,
    /// The other registers, with their offsets in `struct pt_regs`.
    others: &'static [(u8, u8)],
}

/// Up to about 6.19, and after.
const NUMBERS: [Numbers; 2] = [
    Numbers {
        prev_sp: 1,
        bp: 4,
        sp: 5,
        bp_indirect: 8,
        sp_indirect: 9,
        others: &[(2, pt_regs::DX), (3, pt_regs::DI), (6, pt_regs::R10), (7, pt_regs::R13)],
    },
    Numbers {
        prev_sp: 8,
        bp: 4,
        sp: 3,
        bp_indirect: 10,
        sp_indirect: 9,
        others: &[(1, pt_regs::AX), (2, pt_regs::DX), (5, pt_regs::DI), (6, pt_regs::R10), (7, pt_regs::R13)],
    },
];

/// Byte offsets in `struct pt_regs` (arch/x86/include/asm/ptrace.h, all versions).
pub mod pt_regs {
    #![allow(missing_docs)]
    pub const R13: u8 = 16;
    pub const BP: u8 = 32;
    pub const R10: u8 = 56;
    pub const AX: u8 = 80;
    pub const DX: u8 = 96;
    pub const DI: u8 = 112;
    pub const IP: u8 = 128;
    pub const CS: u8 = 136;
    pub const SP: u8 = 152;
}

/// Bit fields of the struct's last two bytes: shift and mask.
#[derive(Debug, Clone, Copy)]
struct Layout {
    sp_reg: (u32, u32),
    bp_reg: (u32, u32),
    kind: (u32, u32),
    /// A bit of its own up to 6.3. In later versions it is one of the types.
    end: Option<u32>,
    /// From 6.3 on. Before that, all frames with registers were interrupted.
    signal: Option<u32>,
}

/// Layouts for kernels without BTF: from 6.4 on, and up to 6.2. Tables of one layout are invalid in
/// the other.
const LAYOUTS: [Layout; 2] = [
    Layout { sp_reg: (0, 15), bp_reg: (4, 15), kind: (8, 7), end: None, signal: Some(11) },
    Layout { sp_reg: (0, 15), bp_reg: (4, 15), kind: (8, 3), end: Some(10), signal: None },
];

impl Layout {
    fn of(btf: &Btf) -> Option<Layout> {
        let bits = |name: &str| {
            let member = btf.member("orc_entry", name)?;
            let shift = u32::try_from(member.bit_offset).ok()?.checked_sub(32)?;
            // All fields are in the last two bytes.
            let bits = member.bits.filter(|bits| shift.checked_add(*bits).is_some_and(|end| end <= 16))?;
            Some((shift, (1u32 << bits) - 1))
        };
        let whole = btf.size_of("orc_entry")? == ENTRY as u64;
        let offsets = btf.offset_of("orc_entry", "sp_offset")? == 0 && btf.offset_of("orc_entry", "bp_offset")? == 2;
        (whole && offsets).then_some(Layout {
            sp_reg: bits("sp_reg")?,
            bp_reg: bits("bp_reg")?,
            kind: bits("type")?,
            end: bits("end").map(|(shift, _)| shift),
            signal: bits("signal").map(|(shift, _)| shift),
        })
    }
}

/// The format of the entries in a kernel's tables, including those of its modules.
#[derive(Debug, Clone, Copy)]
struct Format {
    layout: Layout,
    numbers: Numbers,
}

/// One table, of the image or of a module.
#[derive(Debug, Default)]
pub struct Table {
    /// Virtual address of the first relative address.
    base: u64,
    ips: Vec<i32>,
    entries: Vec<[u8; ENTRY]>,
}

impl Table {
    /// Makes a table from the bytes of its two arrays. `base` is the virtual address of the first.
    /// `None` if it does not ascend, like a module's before it is sorted.
    pub fn new(base: u64, ips: &[u8], entries: &[u8]) -> Option<Table> {
        let ips: Vec<i32> = ips.as_chunks::<4>().0.iter().map(|ip| i32::from_le_bytes(*ip)).collect();
        let entries = entries.as_chunks::<ENTRY>().0.to_vec();
        let table = Table { base, ips, entries };
        let ascends = (1..table.ips.len()).all(|i| table.ip(i - 1) <= table.ip(i));
        (ascends && !table.ips.is_empty() && table.ips.len() == table.entries.len()).then_some(table)
    }

    fn ip(&self, i: usize) -> u64 {
        self.base.wrapping_add(4 * i as u64).wrapping_add_signed(self.ips[i].into())
    }

    /// The last entry at or below an address.
    fn index(&self, at: u64) -> Option<usize> {
        let (mut low, mut high) = (0, self.ips.len());
        while low < high {
            let middle = low + (high - low) / 2;
            if self.ip(middle) <= at { low = middle + 1 } else { high = middle }
        }
        low.checked_sub(1)
    }
}

/// The table of the kernel's image, and the format of all tables.
pub struct Orc {
    format: Format,
    table: Table,
}

impl Orc {
    /// Reads the table of the image. `None` if there is none or it is not valid. `phys` returns the
    /// physical address of a byte of the image.
    pub fn read(
        memory: &impl StoppedMemory,
        symbols: &SymbolTable,
        btf: Option<&Btf>,
        phys: impl Fn(VirtAddr) -> crate::PhysAddr,
    ) -> Option<Orc> {
        let range = |from: &str, to: &str| Some(symbols.lookup(from)?..symbols.lookup(to)?);
        let ips_at = range("__start_orc_unwind_ip", "__stop_orc_unwind_ip")?;
        let entries_at = range("__start_orc_unwind", "__stop_orc_unwind")?;
        let count = ips_at.end.checked_sub(ips_at.start)? / 4;
        if count == 0 || count > MAX_ENTRIES || entries_at.end.checked_sub(entries_at.start)? < count * ENTRY as u64 {
            return None;
        }
        let bytes = |at: u64, len: u64| memory.slice(phys(VirtAddr(at)), len as usize);
        let table =
            Table::new(ips_at.start, bytes(ips_at.start, count * 4)?, bytes(entries_at.start, count * ENTRY as u64)?)?;
        let layouts = match btf.and_then(Layout::of) {
            Some(layout) => vec![layout],
            None => LAYOUTS.to_vec(),
        };
        let format = layouts.into_iter().find_map(|layout| Format::learn(layout, &table, symbols))?;
        Some(Orc { format, table })
    }

    /// The rule at an address of the image.
    pub fn lookup(&self, at: u64) -> Option<Rule> {
        self.lookup_in(&self.table, at)
    }

    /// The rule at an address in a table, such as a module's.
    pub fn lookup_in(&self, table: &Table, at: u64) -> Option<Rule> {
        table.index(at).map(|i| self.format.rule(&table.entries[i]))
    }

    /// The addresses in a range of the image at which the rule changes, each with the new rule.
    pub fn changes(&self, range: Range<u64>) -> impl Iterator<Item = (u64, Rule)> + '_ {
        self.changes_in(&self.table, range)
    }

    /// The same for a table, such as a module's.
    pub fn changes_in<'a>(
        &'a self,
        table: &'a Table,
        range: Range<u64>,
    ) -> impl Iterator<Item = (u64, Rule)> + use<'a> {
        let first = range.start.checked_sub(1).and_then(|at| table.index(at)).map_or(0, |i| i + 1);
        (first..table.ips.len())
            .map(|i| (table.ip(i), self.format.rule(&table.entries[i])))
            .take_while(move |(at, _)| range.contains(at))
    }

    /// Number of entries.
    pub fn len(&self) -> usize {
        self.table.ips.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.table.ips.is_empty()
    }
}

fn bits(e: &[u8; ENTRY], (shift, mask): (u32, u32)) -> u32 {
    (u32::from(u16::from_le_bytes([e[4], e[5]])) >> shift) & mask
}

impl Format {
    /// The format in which functions start with their return address at the stack pointer. `None`
    /// if most functions do not start so.
    fn learn(layout: Layout, table: &Table, symbols: &SymbolTable) -> Option<Format> {
        let mut votes: HashMap<(u32, Kind), usize> = HashMap::new();
        let mut looked = 0;
        let functions = symbols.iter().filter(|s| matches!(s.kind, b't' | b'T'));
        for at in functions.map(|s| s.addr).step_by(16).take(SAMPLE) {
            let Some(i) = table.index(at) else { continue };
            let e = &table.entries[i];
            if i16::from_le_bytes([e[0], e[1]]) == 8 {
                looked += 1;
                *votes.entry((bits(e, layout.sp_reg), kind(layout, e))).or_default() += 1;
            }
        }
        let ((winner, kind), n) = votes.into_iter().max_by_key(|(_, n)| *n)?;
        let numbers = NUMBERS.into_iter().find(|n| u32::from(n.sp) == winner)?;
        (kind == Kind::Call && n > looked / 2).then_some(Format { layout, numbers })
    }

    fn rule(&self, e: &[u8; ENTRY]) -> Rule {
        let (n, layout) = (self.numbers, self.layout);
        let sp = match bits(e, layout.sp_reg) as u8 {
            0 => Base::Undefined,
            r if r == n.sp => Base::Sp,
            r if r == n.bp => Base::Bp,
            r if r == n.sp_indirect => Base::SpIndirect,
            r if r == n.bp_indirect => Base::BpIndirect,
            r => n.others.iter().find(|(number, _)| *number == r).map_or(Base::Unknown, |(_, at)| Base::Register(*at)),
        };
        let bp = match bits(e, layout.bp_reg) as u8 {
            r if r == n.prev_sp => Saved::FromCaller,
            r if r == n.bp => Saved::FromBp,
            _ => Saved::Register,
        };
        let kind = kind(layout, e);
        let signal = match layout.signal {
            Some(shift) => bits(e, (shift, 1)) != 0,
            None => matches!(kind, Kind::Regs | Kind::PartialRegs),
        };
        let word = |at| i16::from_le_bytes([e[at], e[at + 1]]);
        Rule { sp, sp_offset: word(0), bp, bp_offset: word(2), kind, signal }
    }
}

fn kind(layout: Layout, e: &[u8; ENTRY]) -> Kind {
    let number = bits(e, layout.kind);
    match layout.end {
        Some(end) if bits(e, (end, 1)) != 0 => Kind::End,
        Some(_) if bits(e, layout.sp_reg) == 0 => Kind::Undefined,
        Some(_) => [Kind::Call, Kind::Regs, Kind::PartialRegs, Kind::Undefined][number as usize & 3],
        None => match number {
            1 => Kind::End,
            2 => Kind::Call,
            3 => Kind::Regs,
            4 => Kind::PartialRegs,
            _ => Kind::Undefined,
        },
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) const BASE: u64 = 0xffff_ffff_8200_0000;

    /// A table of entries: start address, and the six bytes as fields (offsets, register numbers,
    /// type).
    pub(crate) fn table(entries: &[(u64, i16, i16, u8, u8, u8)], numbers: usize) -> Orc {
        let ip = |(i, e): (usize, &(u64, i16, i16, u8, u8, u8))| e.0.wrapping_sub(BASE + 4 * i as u64) as i32;
        let bytes = |e: &(u64, i16, i16, u8, u8, u8)| {
            let ([a, b], [c, d]) = (e.1.to_le_bytes(), e.2.to_le_bytes());
            [a, b, c, d, e.3 | e.4 << 4, e.5]
        };
        let ips: Vec<u8> = entries.iter().enumerate().flat_map(|e| ip(e).to_le_bytes()).collect();
        let bytes: Vec<u8> = entries.iter().flat_map(bytes).collect();
        Orc {
            // As in 6.4 to 7.3.
            format: Format { layout: LAYOUTS[0], numbers: NUMBERS[numbers] },
            table: Table::new(BASE, &ips, &bytes).expect("a table"),
        }
    }

    #[test]
    fn what_holds_from_an_address_on() {
        let orc = table(&[(0x1000, 8, 0, 5, 0, 2), (0x1001, 16, -16, 5, 1, 2), (0x1010, 0, 0, 0, 0, 0)], 0);
        assert_eq!(orc.lookup(0xfff), None);
        let first = orc.lookup(0x1000).unwrap();
        assert_eq!((first.sp, first.sp_offset, first.bp, first.kind), (Base::Sp, 8, Saved::Register, Kind::Call));
        let second = orc.lookup(0x100f).unwrap();
        assert_eq!((second.sp_offset, second.bp, second.bp_offset), (16, Saved::FromCaller, -16));
        assert_eq!(orc.lookup(0x2000).unwrap().kind, Kind::Undefined);
        let changes: Vec<u64> = orc.changes(0x1001..0x1010).map(|(at, _)| at).collect();
        assert_eq!(changes, [0x1001]);
    }

    #[test]
    fn register_numbers_are_learnt_from_the_starts_of_functions() {
        for (numbers, sp) in [(0, 5), (1, 3)] {
            let orc = table(&(0..64).map(|i| (0x1000 + 16 * i, 8, 0, sp, 0, 2)).collect::<Vec<_>>(), 0);
            let mut symbols = crate::symbols::SymbolTableBuilder::with_capacity(64);
            (0..64).for_each(|i| symbols.push(0x1000 + 16 * i, b't', &format!("f{i}")));
            let symbols = symbols.build();
            let format = Format::learn(LAYOUTS[0], &orc.table, &symbols).unwrap();
            assert_eq!(format.numbers, NUMBERS[numbers]);
            // In the other layout, no function has the usual start.
            assert!(Format::learn(LAYOUTS[1], &orc.table, &symbols).is_none());
        }
    }
}
