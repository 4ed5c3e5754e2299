//! ORC, the kernel's unwind table: where, at each instruction, the caller's frame begins
//! (arch/x86/include/asm/orc_types.h, 4.14 to 7.3; Documentation/arch/x86/orc-unwinder.rst).
//!
//! Two arrays: addresses relative to themselves, ascending, and beside them what holds from each on. The struct is
//! six bytes and BTF describes it. The numbers that stand for registers changed once and are macros: they
//! are learnt from the table, since at their first instruction nearly all functions have their return address at
//! the stack pointer.

use crate::btf::Btf;
use crate::memory::{StoppedMemory, VirtAddr};
use crate::symbols::SymbolTable;
use std::collections::HashMap;
use std::ops::Range;

/// Bytes of a `struct orc_entry`.
const ENTRY: usize = 6;
/// More entries than this are not believed: stock kernels have some 700,000.
const MAX_ENTRIES: u64 = 16 << 20;
/// Functions looked at to learn the register numbers.
const SAMPLE: usize = 2000;

/// Where a frame is counted from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Base {
    /// The stack pointer.
    Sp,
    /// The frame pointer.
    Bp,
    /// The word that the stack pointer, plus the offset, points at.
    SpIndirect,
    /// The word that the frame pointer, plus the offset, points at.
    BpIndirect,
    /// Another register.
    Register(u8),
    /// Nothing is known here.
    Undefined,
}

/// What a frame is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A call: the return address is below the caller's frame.
    Call,
    /// An interrupt or exception: a `struct pt_regs` lies there.
    Regs,
    /// One of which only the part that the CPU pushes is there.
    PartialRegs,
    /// The last frame of a stack.
    End,
    /// Nothing is known.
    Undefined,
}

/// What holds from an address on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rule {
    /// What the caller's stack pointer is counted from.
    pub sp: Base,
    /// Bytes to add.
    pub sp_offset: i16,
    /// Where the caller's frame pointer was saved: [`Base::Undefined`] if it is still in the register.
    pub bp: Saved,
    /// Bytes to add.
    pub bp_offset: i16,
    /// What the frame is.
    pub kind: Kind,
}

/// Where a caller's frame pointer is.
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
}

/// To 6.19 or so, and after.
const NUMBERS: [Numbers; 2] = [
    Numbers { prev_sp: 1, bp: 4, sp: 5, bp_indirect: 8, sp_indirect: 9 },
    Numbers { prev_sp: 8, bp: 4, sp: 3, bp_indirect: 10, sp_indirect: 9 },
];

/// Bit fields of the struct's last two bytes: shift and mask.
#[derive(Debug, Clone, Copy)]
struct Layout {
    sp_reg: (u32, u32),
    bp_reg: (u32, u32),
    kind: (u32, u32),
    /// To 6.3 a bit of its own.
    end: Option<u32>,
}

impl Layout {
    fn of(btf: &Btf) -> Option<Layout> {
        let bits = |name: &str| {
            let member = btf.member("orc_entry", name)?;
            let shift = u32::try_from(member.bit_offset).ok()?.checked_sub(32)?;
            Some((shift, (1u32 << member.bits?) - 1))
        };
        let whole = btf.size_of("orc_entry")? == ENTRY as u64;
        let offsets = btf.offset_of("orc_entry", "sp_offset")? == 0 && btf.offset_of("orc_entry", "bp_offset")? == 2;
        (whole && offsets).then_some(Layout {
            sp_reg: bits("sp_reg")?,
            bp_reg: bits("bp_reg")?,
            kind: bits("type")?,
            end: bits("end").map(|(shift, _)| shift),
        })
    }
}

/// The table of the kernel's image.
pub struct Orc {
    /// Virtual address of the first relative address.
    base: u64,
    ips: Vec<i32>,
    entries: Vec<[u8; ENTRY]>,
    layout: Layout,
    numbers: Numbers,
}

impl Orc {
    /// Reads the table of the image; `None` if there is none, or none that makes sense. `phys` gives the
    /// physical address of a byte of the image.
    pub fn read(
        memory: &impl StoppedMemory,
        symbols: &SymbolTable,
        btf: &Btf,
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
        let ips = bytes(ips_at.start, count * 4)?.as_chunks::<4>().0;
        let entries = bytes(entries_at.start, count * ENTRY as u64)?.as_chunks::<ENTRY>().0;
        let mut orc = Orc {
            base: ips_at.start,
            ips: ips.iter().map(|ip| i32::from_le_bytes(*ip)).collect(),
            entries: entries.to_vec(),
            layout: Layout::of(btf)?,
            numbers: NUMBERS[0],
        };
        let ascends = (1..orc.ips.len()).all(|i| orc.ip(i - 1) <= orc.ip(i));
        orc.numbers = orc.learn(symbols).filter(|_| ascends)?;
        Some(orc)
    }

    fn ip(&self, i: usize) -> u64 {
        self.base.wrapping_add(4 * i as u64).wrapping_add_signed(self.ips[i].into())
    }

    fn bits(&self, i: usize, (shift, mask): (u32, u32)) -> u32 {
        let e = &self.entries[i];
        (u32::from(u16::from_le_bytes([e[4], e[5]])) >> shift) & mask
    }

    /// The numbering in which functions start with their return address at the stack pointer.
    fn learn(&self, symbols: &SymbolTable) -> Option<Numbers> {
        let mut votes: HashMap<u32, usize> = HashMap::new();
        let functions = symbols.iter().filter(|s| matches!(s.kind, b't' | b'T'));
        for at in functions.map(|s| s.addr).step_by(16).take(SAMPLE) {
            let Some(i) = self.index(at) else { continue };
            if i16::from_le_bytes([self.entries[i][0], self.entries[i][1]]) == 8 {
                *votes.entry(self.bits(i, self.layout.sp_reg)).or_default() += 1;
            }
        }
        let (winner, _) = votes.into_iter().max_by_key(|(_, n)| *n)?;
        NUMBERS.into_iter().find(|n| u32::from(n.sp) == winner)
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

    fn rule(&self, i: usize) -> Rule {
        let e = &self.entries[i];
        let n = self.numbers;
        let sp = match self.bits(i, self.layout.sp_reg) as u8 {
            0 => Base::Undefined,
            r if r == n.sp => Base::Sp,
            r if r == n.bp => Base::Bp,
            r if r == n.sp_indirect => Base::SpIndirect,
            r if r == n.bp_indirect => Base::BpIndirect,
            r => Base::Register(r),
        };
        let bp = match self.bits(i, self.layout.bp_reg) as u8 {
            r if r == n.prev_sp => Saved::FromCaller,
            r if r == n.bp => Saved::FromBp,
            _ => Saved::Register,
        };
        let number = self.bits(i, self.layout.kind);
        let kind = match self.layout.end {
            Some(end) if self.bits(i, (end, 1)) != 0 => Kind::End,
            Some(_) if sp == Base::Undefined => Kind::Undefined,
            Some(_) => [Kind::Call, Kind::Regs, Kind::PartialRegs, Kind::Undefined][number as usize & 3],
            None => match number {
                1 => Kind::End,
                2 => Kind::Call,
                3 => Kind::Regs,
                4 => Kind::PartialRegs,
                _ => Kind::Undefined,
            },
        };
        let word = |at| i16::from_le_bytes([e[at], e[at + 1]]);
        Rule { sp, sp_offset: word(0), bp, bp_offset: word(2), kind }
    }

    /// What holds at an address of the image.
    pub fn lookup(&self, at: u64) -> Option<Rule> {
        self.index(at).map(|i| self.rule(i))
    }

    /// The addresses in a range at which something else begins to hold, each with what does.
    pub fn changes(&self, range: Range<u64>) -> impl Iterator<Item = (u64, Rule)> + '_ {
        let first = range.start.checked_sub(1).and_then(|at| self.index(at)).map_or(0, |i| i + 1);
        (first..self.ips.len()).map(|i| (self.ip(i), self.rule(i))).take_while(move |(at, _)| range.contains(at))
    }

    /// Number of entries.
    pub fn len(&self) -> usize {
        self.ips.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.ips.is_empty()
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) const BASE: u64 = 0xffff_ffff_8200_0000;

    /// A table of these entries: from which address on, and the six bytes as fields: offsets, register numbers, type.
    pub(crate) fn table(entries: &[(u64, i16, i16, u8, u8, u8)], numbers: usize) -> Orc {
        // As in 6.4 to 7.3.
        let layout = Layout { sp_reg: (0, 15), bp_reg: (4, 15), kind: (8, 7), end: None };
        let ip = |(i, e): (usize, &(u64, i16, i16, u8, u8, u8))| e.0.wrapping_sub(BASE + 4 * i as u64) as i32;
        let bytes = |e: &(u64, i16, i16, u8, u8, u8)| {
            let ([a, b], [c, d]) = (e.1.to_le_bytes(), e.2.to_le_bytes());
            [a, b, c, d, e.3 | e.4 << 4, e.5]
        };
        Orc {
            base: BASE,
            ips: entries.iter().enumerate().map(ip).collect(),
            entries: entries.iter().map(bytes).collect(),
            layout,
            numbers: NUMBERS[numbers],
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
            assert_eq!(orc.learn(&symbols.build()), Some(NUMBERS[numbers]));
        }
    }
}
