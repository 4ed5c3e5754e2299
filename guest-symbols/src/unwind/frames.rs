//! From frame to frame by the ORC table, over a function that reads the stack.

use super::orc::{Base, Kind, Orc, Saved};

/// More frames than this are a circle.
const MAX_FRAMES: usize = 512;

/// The registers that unwinding needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Registers {
    /// Instruction pointer: of the innermost frame the next instruction, of the others the return address.
    pub ip: u64,
    /// Stack pointer.
    pub sp: u64,
    /// Frame pointer.
    pub bp: u64,
}

/// One frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Frame {
    /// See [`Registers::ip`].
    pub ip: u64,
    /// The stack pointer of its caller, after the return: its own return address lies 8 bytes below.
    pub cfa: u64,
}

/// The frames from `registers` on, innermost first, as far as they are plain calls. `read` gives words of the stack, by
/// virtual address.
pub fn frames(orc: &Orc, registers: Registers, read: impl Fn(u64) -> Option<u64>) -> Vec<Frame> {
    let mut found = Vec::new();
    let mut r = registers;
    while found.len() < MAX_FRAMES {
        let Some((frame, caller)) = step(orc, r, &read) else { break };
        found.push(frame);
        // The stack grows down: a caller's frame lies above.
        if caller.sp <= r.sp {
            break;
        }
        r = caller;
    }
    found
}

fn step(orc: &Orc, r: Registers, read: &impl Fn(u64) -> Option<u64>) -> Option<(Frame, Registers)> {
    // A call may be a function's last instruction, and its return address the next function's first.
    let rule = orc.lookup(r.ip.checked_sub(1)?).filter(|rule| rule.kind == Kind::Call)?;
    let from = |base: u64, offset: i16| base.wrapping_add_signed(offset.into());
    let cfa = match rule.sp {
        Base::Sp => from(r.sp, rule.sp_offset),
        Base::Bp => from(r.bp, rule.sp_offset),
        Base::SpIndirect => read(r.sp)?.wrapping_add_signed(rule.sp_offset.into()),
        Base::BpIndirect => read(from(r.bp, rule.sp_offset))?,
        Base::Register(_) | Base::Undefined => return None,
    };
    let bp = match rule.bp {
        Saved::Register => r.bp,
        Saved::FromCaller => read(from(cfa, rule.bp_offset))?,
        Saved::FromBp => read(from(r.bp, rule.bp_offset))?,
    };
    let ip = read(cfa.wrapping_sub(8))?;
    Some((Frame { ip: r.ip, cfa }, Registers { ip, sp: cfa, bp }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::unwind::orc::tests::table;

    /// `inner` at 0x1000 counts from the stack pointer, `middle` at 0x2000 from the frame pointer, `outer` at 0x3000 ends.
    fn orc() -> Orc {
        table(
            &[(0x1000, 24, 0, 5, 0, 2), (0x2000, 16, -16, 4, 1, 2), (0x3000, 8, 0, 5, 0, 2), (0x4000, 0, 0, 0, 0, 0)],
            0,
        )
    }

    #[test]
    fn through_both_kinds_of_frames() {
        // inner: 16 bytes and its return address; middle: saved frame pointer and return address; outer's.
        let stack = [0, 0, 0x2010, 0xb0b0, 0x3020, 0x4444];
        let read = |at: u64| stack.get((at as usize).checked_sub(0x100)? / 8).copied();
        let found = frames(&orc(), Registers { ip: 0x1008, sp: 0x100, bp: 0x118 }, read);
        let expected = [(0x1008, 0x118), (0x2010, 0x128), (0x3020, 0x130)];
        assert_eq!(found.iter().map(|f| (f.ip, f.cfa)).collect::<Vec<_>>(), expected);
    }

    #[test]
    fn circles_and_unreadable_stacks_end() {
        let circle = |_: u64| Some(0x1008);
        let found = frames(&orc(), Registers { ip: 0x1008, sp: 0x100, bp: 0 }, circle);
        assert_eq!(found.len(), MAX_FRAMES);
        assert_eq!(frames(&orc(), Registers { ip: 0x1008, sp: 0x100, bp: 0 }, |_| None), []);
        assert_eq!(frames(&orc(), Registers { ip: 0x4008, sp: 0x100, bp: 0 }, circle), []);
        // A frame pointer that leads down.
        let found = frames(&orc(), Registers { ip: 0x2008, sp: 0x100, bp: 0x10 }, |_| Some(0x2008));
        assert_eq!(found.len(), 1);
    }
}
