//! The step from a frame to its caller, as in unwind_next_frame() (arch/x86/kernel/unwind_orc.c and
//! unwind_frame.c, 5.10 to 7.3).

use super::orc::{Base, Kind, Rule, Saved, pt_regs};

/// The state of an unwind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct State {
    /// Instruction pointer: a return address, or the next instruction.
    pub ip: u64,
    /// Stack pointer in that frame.
    pub sp: u64,
    /// Frame pointer in that frame.
    pub bp: Bp,
    /// Whether the frame was interrupted or is the innermost. `ip` is then the next instruction.
    pub signal: bool,
    /// Where the frame's registers are saved, if it was interrupted.
    regs: Option<Regs>,
}

/// A frame pointer. It is read only when it is needed. Frames whose base is the stack pointer never
/// need it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bp {
    /// Its value.
    Is(u64),
    /// The virtual address where it was saved.
    SavedAt(u64),
}

impl Bp {
    fn value(self, read: &mut impl FnMut(u64) -> Option<u64>) -> Option<u64> {
        match self {
            Bp::Is(value) => Some(value),
            Bp::SavedAt(at) => read(at),
        }
    }
}

/// A `struct pt_regs`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Regs {
    /// All of it is there, at this virtual address.
    Full(u64),
    /// Only the part that the CPU pushes. The rest may be those of an earlier frame.
    Partial { iret: u64, rest: Option<u64> },
}

impl State {
    /// The state after a function has returned to `ip`.
    pub fn returned(ip: u64, sp: u64, bp: Bp) -> State {
        State { ip, sp, bp, signal: false, regs: None }
    }

    /// A called frame that depends only on its frame pointer ([`Rule::starts_from_frame_pointer`]).
    pub fn with_frame_pointer(ip: u64, bp: u64) -> State {
        State::returned(ip, bp, Bp::Is(bp))
    }

    /// The address to look up. A call may be the last instruction of its function. Its return
    /// address is then the start of the next function.
    pub fn lookup_address(&self) -> u64 {
        if self.signal { self.ip } else { self.ip.wrapping_sub(1) }
    }

    /// Where a register of the frame is saved.
    fn register(&self, register: u8) -> Option<u64> {
        match self.regs? {
            Regs::Full(at) | Regs::Partial { rest: Some(at), .. } => Some(at.wrapping_add(register.into())),
            Regs::Partial { rest: None, .. } => None,
        }
    }
}

/// Whether the saved registers are the kernel's. `cs` is the address of the code segment. Registers
/// that cannot be read are not the kernel's.
fn is_kernel(cs: u64, read: &mut impl FnMut(u64) -> Option<u64>) -> bool {
    read(cs).is_some_and(|cs| cs & 3 == 0)
}

/// The caller's state by an unwind rule, and the slot of the return address, if it was read. `None`
/// at the last frame, at user space, and if memory is not valid. `read` returns words by virtual
/// address.
pub fn by_rule(s: &State, rule: Rule, read: &mut impl FnMut(u64) -> Option<u64>) -> Option<(State, Option<u64>)> {
    let from = |base: u64, offset: i16| base.wrapping_add_signed(offset.into());
    let cfa = match rule.sp {
        Base::Sp => from(s.sp, rule.sp_offset),
        Base::Bp => from(s.bp.value(read)?, rule.sp_offset),
        Base::SpIndirect => from(read(s.sp)?, rule.sp_offset),
        Base::BpIndirect => {
            let bp = s.bp.value(read)?;
            read(from(bp, rule.sp_offset))?
        }
        Base::Register(register) => read(s.register(register)?)?,
        Base::Unknown | Base::Undefined => return None,
    };
    let mut slot = None;
    let mut next = State { signal: rule.signal, ..*s };
    match rule.kind {
        Kind::Call => {
            let at = cfa.wrapping_sub(8);
            (next.ip, next.sp, next.regs) = (read(at)?, cfa, None);
            slot = Some(at);
        }
        Kind::Regs => {
            let word = |at: u8| cfa.wrapping_add(at.into());
            // This is tested first, because user space has different values in the other registers
            // each time.
            if !is_kernel(word(pt_regs::CS), read) {
                return None;
            }
            (next.ip, next.sp) = (read(word(pt_regs::IP))?, read(word(pt_regs::SP))?);
            next.regs = Some(Regs::Full(cfa));
        }
        Kind::PartialRegs => {
            let rest = match s.regs {
                Some(Regs::Full(at)) => Some(at),
                Some(Regs::Partial { rest, .. }) => rest,
                None => None,
            };
            if !is_kernel(cfa.wrapping_add((pt_regs::CS - pt_regs::IP).into()), read) {
                return None;
            }
            (next.ip, next.sp) = (read(cfa)?, read(cfa.wrapping_add((pt_regs::SP - pt_regs::IP).into()))?);
            next.regs = Some(Regs::Partial { iret: cfa, rest });
        }
        Kind::End | Kind::Undefined => return None,
    }
    next.bp = match rule.bp {
        Saved::Register => next.register(pt_regs::BP).map_or(s.bp, Bp::SavedAt),
        Saved::FromCaller => Bp::SavedAt(from(cfa, rule.bp_offset)),
        Saved::FromBp => Bp::SavedAt(from(s.bp.value(read)?, rule.bp_offset)),
    };
    Some((next, slot))
}

/// The rule for generated code, which no table covers. BPF keeps frame pointers.
pub const GENERATED: Rule =
    Rule { sp: Base::Bp, sp_offset: 16, bp: Saved::FromCaller, bp_offset: -16, kind: Kind::Call, signal: false };

/// The caller's state by frame pointers, and the slot of the return address, if it was read. Entry
/// code marks saved registers with an encoded frame pointer: their address with bit 0 set
/// (ENCODE_FRAME_POINTER, arch/x86/include/asm/frame.h).
pub fn by_frame_pointer(s: &State, read: &mut impl FnMut(u64) -> Option<u64>) -> Option<(State, Option<u64>)> {
    let bp = s.bp.value(read)?;
    if bp & 1 != 0 {
        let at = bp & !1;
        let word = |offset: u8| at.wrapping_add(offset.into());
        if !is_kernel(word(pt_regs::CS), read) {
            return None;
        }
        let (ip, sp) = (read(word(pt_regs::IP))?, read(word(pt_regs::SP))?);
        let bp = Bp::SavedAt(word(pt_regs::BP));
        return Some((State { ip, sp, bp, signal: true, regs: Some(Regs::Full(at)) }, None));
    }
    let slot = bp.wrapping_add(8);
    let ip = read(slot)?;
    Some((State { ip, sp: bp.wrapping_add(16), bp: Bp::SavedAt(bp), signal: false, regs: None }, Some(slot)))
}

/// Whether functions keep frame pointers (CONFIG_FRAME_POINTER), that is, set %rbp to %rsp near
/// their start.
///
/// `starts` are the functions' offsets in `text`. Compilers may put other instructions first. In
/// 6.12, 79 % of functions do it in kernels with frame pointers, and 3 % in kernels without.
pub fn has_frame_pointers(text: &[u8], starts: impl Iterator<Item = usize>) -> bool {
    const MOV_RSP_RBP: [u8; 3] = [0x48, 0x89, 0xe5];
    const NEAR: usize = 48;
    let (mut with, mut all) = (0, 0);
    for code in starts.filter_map(|at| text.get(at..at.saturating_add(NEAR))) {
        all += 1;
        with += usize::from(memchr::memmem::find(code, &MOV_RSP_RBP).is_some());
    }
    with > all / 3
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A memory with words from 0x1000 on.
    fn memory(words: &[(u64, u64)]) -> impl FnMut(u64) -> Option<u64> {
        move |at| words.iter().find(|(a, _)| *a == at).map(|(_, w)| *w)
    }

    const REGS: Rule =
        Rule { sp: Base::Sp, sp_offset: 8, bp: Saved::Register, bp_offset: 0, kind: Kind::Regs, signal: true };

    #[test]
    fn across_saved_registers() {
        let s = State::returned(0x100, 0x1000, Bp::Is(7));
        let mut read =
            memory(&[(0x1008 + 128, 0x222), (0x1008 + 136, 0x10), (0x1008 + 152, 0x2000), (0x1008 + 32, 0xb)]);
        let (next, slot) = by_rule(&s, REGS, &mut read).unwrap();
        assert_eq!((next.ip, next.sp, next.signal, slot), (0x222, 0x2000, true, None));
        assert_eq!((next.bp, next.bp.value(&mut read)), (Bp::SavedAt(0x1008 + 32), Some(0xb)));
        assert_eq!(next.lookup_address(), 0x222);
        assert_eq!(by_rule(&s, REGS, &mut memory(&[(0x1008 + 136, 0x33)])), None, "user space");
        // A realigned stack. The frame's base is r10 of the interrupted function.
        let rule = Rule { sp: Base::Register(pt_regs::R10), kind: Kind::Call, signal: false, ..REGS };
        let mut read = memory(&[(0x1008 + 56, 0x3000), (0x2ff8, 0x333)]);
        let (caller, slot) = by_rule(&next, rule, &mut read).unwrap();
        assert_eq!((caller.ip, caller.sp, caller.bp, slot), (0x333, 0x3000, next.bp, Some(0x2ff8)));
        assert_eq!(by_rule(&s, rule, &mut read), None, "no registers, no r10");
    }

    #[test]
    fn the_part_that_the_cpu_pushes() {
        let s = State::returned(0x100, 0x1000, Bp::Is(7));
        let rule = Rule { kind: Kind::PartialRegs, sp_offset: 0, ..REGS };
        let mut read = memory(&[(0x1000, 0x444), (0x1008, 0x10), (0x1018, 0x5000)]);
        let (next, _) = by_rule(&s, rule, &mut read).unwrap();
        assert_eq!((next.ip, next.sp, next.bp), (0x444, 0x5000, Bp::Is(7)));
        assert_eq!(by_rule(&s, rule, &mut memory(&[(0x1008, 0x33)])), None, "user space");
    }

    #[test]
    fn another_stack_by_the_word_on_top() {
        let rule = Rule { sp: Base::SpIndirect, kind: Kind::Call, sp_offset: 8, ..REGS };
        let mut read = memory(&[(0x1000, 0x9000), (0x9000, 0x555)]);
        let (next, slot) = by_rule(&State::returned(0x100, 0x1000, Bp::Is(7)), rule, &mut read).unwrap();
        assert_eq!((next.ip, next.sp, slot), (0x555, 0x9008, Some(0x9000)));
    }

    #[test]
    fn prologues() {
        let mut with = [0x90; 64];
        with[9..13].copy_from_slice(&[0x55, 0x48, 0x89, 0xe5]);
        let mut without = [0x90; 64];
        without[..4].copy_from_slice(&[0x55, 0x48, 0x89, 0xfd]);
        assert!(has_frame_pointers(&[with, with, without].concat(), [0, 64, 128].into_iter()));
        assert!(!has_frame_pointers(&[with, without, without, without].concat(), [0, 64, 128, 192, 400].into_iter()));
        assert!(!has_frame_pointers(&[], [0, usize::MAX].into_iter()));
    }

    #[test]
    fn frame_pointers_and_marked_registers() {
        let s = State::returned(0x100, 0x1000, Bp::Is(0x1010));
        let mut read = memory(&[
            (0x1010, 0x1101),
            (0x1018, 0x666),
            (0x1100 + 128, 0x777),
            (0x1100 + 136, 0x10),
            (0x1100 + 152, 0x8000),
            (0x1100 + 32, 0),
        ]);
        let (entry, slot) = by_frame_pointer(&s, &mut read).unwrap();
        assert_eq!((entry.ip, entry.bp.value(&mut read), slot), (0x666, Some(0x1101), Some(0x1018)));
        let (interrupted, _) = by_frame_pointer(&entry, &mut read).unwrap();
        assert_eq!((interrupted.ip, interrupted.sp, interrupted.bp.value(&mut read)), (0x777, 0x8000, Some(0)));
        assert_eq!(by_frame_pointer(&interrupted, &mut read), None);
    }
}
