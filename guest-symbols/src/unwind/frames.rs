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
