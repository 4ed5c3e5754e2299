//! The frames of a sleeping task. The caller provides a function that reads its stack.

use super::orc::{Kind, Rule};
use super::step::{self, Bp, State};

/// The most frames that are read. More mean a circle.
const MAX_FRAMES: usize = 512;

/// The registers that unwinding needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Registers {
    /// Instruction pointer: the next instruction in the innermost frame, and the return address in
    /// the others.
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
    /// The caller's stack pointer after the return. The return address is 8 bytes below it.
    pub cfa: u64,
}

/// The frames from `registers` on, innermost first, up to the first that is not a plain call.
/// `rule` returns the unwind rule at an address of code. `read` returns words of the stack. Both
/// take virtual addresses.
pub fn frames(
    mut rule: impl FnMut(u64) -> Option<Rule>,
    registers: Registers,
    mut read: impl FnMut(u64) -> Option<u64>,
) -> Vec<Frame> {
    let mut found = Vec::new();
    let mut state = State::returned(registers.ip, registers.sp, Bp::Is(registers.bp));
    while found.len() < MAX_FRAMES {
        let Some(rule) = rule(state.lookup_address()).filter(|rule| rule.kind == Kind::Call) else { break };
        let Some((caller, _)) = step::by_rule(&state, rule, &mut read) else { break };
        found.push(Frame { ip: state.ip, cfa: caller.sp });
        // The stack grows down, so a caller's frame is at a higher address.
        if caller.sp <= state.sp {
            break;
        }
        state = caller;
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::unwind::orc::Orc;
    use crate::unwind::orc::tests::table;

    /// `inner` at 0x1000 uses the stack pointer. `middle` at 0x2000 uses the frame pointer. `outer`
    /// at 0x3000 is the last.
    fn orc() -> Orc {
        table(
            &[(0x1000, 24, 0, 5, 0, 2), (0x2000, 16, -16, 4, 1, 2), (0x3000, 8, 0, 5, 0, 2), (0x4000, 0, 0, 0, 0, 0)],
            0,
        )
    }

    #[test]
    fn through_both_kinds_of_frames() {
        // `inner` has 16 bytes and a return address, then `middle` a saved frame pointer and a
        // return address.
        let stack = [0, 0, 0x2010, 0xb0b0, 0x3020, 0x4444];
        let read = |at: u64| stack.get((at as usize).checked_sub(0x100)? / 8).copied();
        let found = frames(|at| orc().lookup(at), Registers { ip: 0x1008, sp: 0x100, bp: 0x118 }, read);
        let expected = [(0x1008, 0x118), (0x2010, 0x128), (0x3020, 0x130)];
        assert_eq!(found.iter().map(|f| (f.ip, f.cfa)).collect::<Vec<_>>(), expected);
    }

    #[test]
    fn circles_and_unreadable_stacks_end() {
        let circle = |_: u64| Some(0x1008);
        let found = frames(|at| orc().lookup(at), Registers { ip: 0x1008, sp: 0x100, bp: 0 }, circle);
        assert_eq!(found.len(), MAX_FRAMES);
        assert_eq!(frames(|at| orc().lookup(at), Registers { ip: 0x1008, sp: 0x100, bp: 0 }, |_| None), []);
        assert_eq!(frames(|at| orc().lookup(at), Registers { ip: 0x4008, sp: 0x100, bp: 0 }, circle), []);
        // A frame pointer that points downwards.
        let found = frames(|at| orc().lookup(at), Registers { ip: 0x2008, sp: 0x100, bp: 0x10 }, |_| Some(0x2008));
        assert_eq!(found.len(), 1);
    }
}
