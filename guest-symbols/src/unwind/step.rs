//! From one frame to its caller, as unwind_next_frame() does it (arch/x86/kernel/unwind_orc.c and unwind_frame.c, 5.10 to
//! 7.3).

use super::orc::{Base, Kind, Rule, Saved, pt_regs};

/// What unwinding has come to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct State {
    /// Instruction pointer: a return address, or of the instruction that comes next.
    pub ip: u64,
    /// Stack pointer in that frame.
    pub sp: u64,
    /// Frame pointer in that frame.
    pub bp: u64,
    /// Whether the frame was interrupted, or is the innermost: `ip` is of the instruction that comes next.
    pub signal: bool,
    /// Where the registers of the frame lie, if it was interrupted.
    regs: Option<Regs>,
}

/// A `struct pt_regs`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Regs {
    /// All of it is there.
    Full(u64),
    /// Only the part that the CPU pushes; the rest may be those of an earlier frame.
    Partial { iret: u64, rest: Option<u64> },
}

impl State {
    /// The caller of a function that has just returned to `ip`.
    pub fn returned(ip: u64, sp: u64, bp: u64) -> State {
        State { ip, sp, bp, signal: false, regs: None }
    }

    /// The address whose rule holds. A call may be a function's last instruction, and its return address the next
    /// function's first.
    pub fn lookup_address(&self) -> u64 {
        if self.signal { self.ip } else { self.ip.wrapping_sub(1) }
    }

    /// Whether the frame is one of user space that was interrupted.
    pub fn is_user(&self, mut read: impl FnMut(u64) -> Option<u64>) -> bool {
        let cs = match self.regs {
            None => return false,
            Some(Regs::Full(at)) => at.wrapping_add(pt_regs::CS.into()),
            Some(Regs::Partial { iret, .. }) => iret.wrapping_add((pt_regs::CS - pt_regs::IP).into()),
        };
        read(cs).is_none_or(|cs| cs & 3 != 0)
    }

    fn register(&self, register: u8, read: &mut impl FnMut(u64) -> Option<u64>) -> Option<u64> {
        match self.regs? {
            Regs::Full(at) | Regs::Partial { rest: Some(at), .. } => read(at.wrapping_add(register.into())),
            Regs::Partial { rest: None, .. } => None,
        }
    }
}

/// The caller's state by the rule that holds, and where the return address was read, if it was. `None` at the last frame,
/// and where memory does not make sense. `read` gives words by virtual address.
pub fn by_rule(s: &State, rule: Rule, read: &mut impl FnMut(u64) -> Option<u64>) -> Option<(State, Option<u64>)> {
    let from = |base: u64, offset: i16| base.wrapping_add_signed(offset.into());
    let cfa = match rule.sp {
        Base::Sp => from(s.sp, rule.sp_offset),
        Base::Bp => from(s.bp, rule.sp_offset),
        Base::SpIndirect => from(read(s.sp)?, rule.sp_offset),
        Base::BpIndirect => read(from(s.bp, rule.sp_offset))?,
        Base::Register(register) => s.register(register, read)?,
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
            (next.ip, next.sp) = (read(word(pt_regs::IP))?, read(word(pt_regs::SP))?);
            next.regs = Some(Regs::Full(cfa));
        }
        Kind::PartialRegs => {
            let rest = match s.regs {
                Some(Regs::Full(at)) => Some(at),
                Some(Regs::Partial { rest, .. }) => rest,
                None => None,
            };
            (next.ip, next.sp) = (read(cfa)?, read(cfa.wrapping_add((pt_regs::SP - pt_regs::IP).into()))?);
            next.regs = Some(Regs::Partial { iret: cfa, rest });
        }
        Kind::End | Kind::Undefined => return None,
    }
    next.bp = match rule.bp {
        Saved::Register => next.register(pt_regs::BP, read).unwrap_or(s.bp),
        Saved::FromCaller => read(from(cfa, rule.bp_offset))?,
        Saved::FromBp => read(from(s.bp, rule.bp_offset))?,
    };
    Some((next, slot))
}

/// What holds in generated code, which no table knows: it has frame pointers, as BPF's has.
pub const GENERATED: Rule =
    Rule { sp: Base::Bp, sp_offset: 16, bp: Saved::FromCaller, bp_offset: -16, kind: Kind::Call, signal: false };

/// The caller's state by frame pointers, and where the return address was read, if it was. Entry code marks the registers it
/// has saved by their address with bit 0 set in place of a frame pointer (ENCODE_FRAME_POINTER,
/// arch/x86/include/asm/frame.h).
pub fn by_frame_pointer(s: &State, read: &mut impl FnMut(u64) -> Option<u64>) -> Option<(State, Option<u64>)> {
    if s.bp & 1 != 0 {
        let at = s.bp & !1;
        let mut word = |offset: u8| read(at.wrapping_add(offset.into()));
        let (ip, sp, bp) = (word(pt_regs::IP)?, word(pt_regs::SP)?, word(pt_regs::BP)?);
        return Some((State { ip, sp, bp, signal: true, regs: Some(Regs::Full(at)) }, None));
    }
    let slot = s.bp.wrapping_add(8);
    let (bp, ip) = (read(s.bp)?, read(slot)?);
    Some((State { ip, sp: s.bp.wrapping_add(16), bp, signal: false, regs: None }, Some(slot)))
}

/// Whether functions keep frame pointers (CONFIG_FRAME_POINTER): whether those that start at `starts`, offsets into `text`,
/// set %rbp to %rsp near their start. Compilers put other instructions before. Of 6.12's functions 79 % do where there are
/// frame pointers, and 3 % where there are none.
pub fn has_frame_pointers(text: &[u8], starts: impl Iterator<Item = usize>) -> bool {
    const MOV_RSP_RBP: [u8; 3] = [0x48, 0x89, 0xe5];
    const NEAR: usize = 48;
    let (mut with, mut all) = (0, 0);
    for code in starts.filter_map(|at| text.get(at..at + NEAR)) {
        all += 1;
        with += usize::from(memchr::memmem::find(code, &MOV_RSP_RBP).is_some());
    }
    with > all / 3
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A memory of words from 0x1000 on.
    fn memory(words: &[(u64, u64)]) -> impl FnMut(u64) -> Option<u64> {
        move |at| words.iter().find(|(a, _)| *a == at).map(|(_, w)| *w)
    }

    const REGS: Rule =
        Rule { sp: Base::Sp, sp_offset: 8, bp: Saved::Register, bp_offset: 0, kind: Kind::Regs, signal: true };

    #[test]
    fn across_saved_registers() {
        let s = State::returned(0x100, 0x1000, 7);
        let mut read =
            memory(&[(0x1008 + 128, 0x222), (0x1008 + 136, 0x10), (0x1008 + 152, 0x2000), (0x1008 + 32, 0xb)]);
        let (next, slot) = by_rule(&s, REGS, &mut read).unwrap();
        assert_eq!((next.ip, next.sp, next.bp, next.signal, slot), (0x222, 0x2000, 0xb, true, None));
        assert_eq!(next.lookup_address(), 0x222);
        assert!(!next.is_user(&mut read));
        assert!(next.is_user(memory(&[(0x1008 + 136, 0x33)])));
        // A realigned stack: the frame is counted from r10, which the interrupted function had.
        let rule = Rule { sp: Base::Register(pt_regs::R10), kind: Kind::Call, signal: false, ..REGS };
        let mut read = memory(&[(0x1008 + 56, 0x3000), (0x2ff8, 0x333)]);
        let (caller, slot) = by_rule(&next, rule, &mut read).unwrap();
        assert_eq!((caller.ip, caller.sp, caller.bp, slot), (0x333, 0x3000, 0xb, Some(0x2ff8)));
        assert_eq!(by_rule(&s, rule, &mut read), None, "no registers, no r10");
    }

    #[test]
    fn the_part_that_the_cpu_pushes() {
        let s = State::returned(0x100, 0x1000, 7);
        let rule = Rule { kind: Kind::PartialRegs, sp_offset: 0, ..REGS };
        let mut read = memory(&[(0x1000, 0x444), (0x1008, 0x33), (0x1018, 0x5000)]);
        let (next, _) = by_rule(&s, rule, &mut read).unwrap();
        assert_eq!((next.ip, next.sp, next.bp), (0x444, 0x5000, 7));
        assert!(next.is_user(&mut read));
    }

    #[test]
    fn another_stack_by_the_word_on_top() {
        let rule = Rule { sp: Base::SpIndirect, kind: Kind::Call, sp_offset: 8, ..REGS };
        let mut read = memory(&[(0x1000, 0x9000), (0x9000, 0x555)]);
        let (next, slot) = by_rule(&State::returned(0x100, 0x1000, 7), rule, &mut read).unwrap();
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
        assert!(!has_frame_pointers(&[], [0].into_iter()));
    }

    #[test]
    fn frame_pointers_and_marked_registers() {
        let s = State::returned(0x100, 0x1000, 0x1010);
        let mut read = memory(&[
            (0x1010, 0x1101),
            (0x1018, 0x666),
            (0x1100 + 128, 0x777),
            (0x1100 + 136, 0x10),
            (0x1100 + 152, 0x8000),
            (0x1100 + 32, 0),
        ]);
        let (entry, slot) = by_frame_pointer(&s, &mut read).unwrap();
        assert_eq!((entry.ip, entry.bp, slot), (0x666, 0x1101, Some(0x1018)));
        let (interrupted, _) = by_frame_pointer(&entry, &mut read).unwrap();
        assert_eq!((interrupted.ip, interrupted.sp, interrupted.bp), (0x777, 0x8000, 0));
        assert!(!interrupted.is_user(&mut read));
        assert_eq!(by_frame_pointer(&interrupted, &mut read), None);
    }
}
