//! The stack of a running CPU, frame by frame, as stack_trace_save() would save it
//! (arch_stack_walk(), arch/x86/kernel/stacktrace.c, 5.10 to 7.3).
//!
//! The walk has no side effects. Everything about the guest comes through [`Context`].

use super::orc::Rule;
use super::step::{self, Bp, State};

/// The guest's memory and code, for unwinding.
pub trait Context {
    /// The word at a virtual address. `None` if nothing is mapped.
    fn read(&mut self, at: u64) -> Option<u64>;

    /// How to unwind code at an address.
    fn method(&mut self, at: u64) -> Method;

    /// Whether an address may be code: the image's text, a module, or generated code.
    fn is_text(&self, at: u64) -> bool;

    /// The return address that was in a stack slot before a tracer replaced it.
    fn original(&mut self, ip: u64, slot: u64) -> u64 {
        let _ = slot;
        ip
    }
}

/// How to unwind a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Method {
    /// By a rule of an ORC table.
    Rule(Rule),
    /// By its frame pointer.
    FramePointer,
    /// It is not known.
    Unknown,
}

/// The result of a walk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Walked {
    /// Number of certain frames.
    pub frames: usize,
    /// Where the walk stopped, if it did not end. The last frame depends only on the frame pointer
    /// that is saved at this virtual address. The walk continues from that frame with
    /// [`State::with_frame_pointer`].
    pub frame_pointer_at: Option<u64>,
}

/// Fills `out` with the addresses on the stack, starting with the state's own. It ends at the last
/// frame, at user space, at invalid memory or rules, or at a frame pointer.
pub fn walk_on(context: &mut impl Context, mut state: State, out: &mut [u64]) -> Walked {
    let end = |frames| Walked { frames, frame_pointer_at: None };
    for (n, place) in out.iter_mut().enumerate() {
        if !context.is_text(state.ip) {
            return end(n);
        }
        *place = state.ip;
        let method = context.method(state.lookup_address());
        if let (Method::Rule(rule), Bp::SavedAt(at), false) = (method, state.bp, state.signal)
            && rule.starts_from_frame_pointer()
        {
            return Walked { frames: n + 1, frame_pointer_at: Some(at) };
        }
        let mut read = |at| context.read(at);
        let next = match method {
            Method::Rule(rule) => step::by_rule(&state, rule, &mut read),
            Method::FramePointer => step::by_frame_pointer(&state, &mut read),
            Method::Unknown => None,
        };
        let Some((mut next, slot)) = next else { return end(n + 1) };
        // The frame is its own caller.
        if (next.ip, next.sp) == (state.ip, state.sp) {
            return end(n + 1);
        }
        if let Some(slot) = slot {
            next.ip = context.original(next.ip, slot);
        }
        state = next;
    }
    end(out.len())
}

/// Fills `out` with the addresses on the stack, starting with the state's own. Returns their
/// number. It ends at the last frame, at user space, or at invalid memory or rules. All addresses
/// before that are certain.
pub fn walk(context: &mut impl Context, mut state: State, out: &mut [u64]) -> usize {
    let mut done = 0;
    loop {
        let walked = walk_on(context, state, &mut out[done..]);
        done += walked.frames;
        let Some(bp) = walked.frame_pointer_at.and_then(|at| context.read(at)) else { return done };
        // The frame that depends on it is walked again.
        done -= 1;
        state = State::with_frame_pointer(out[done], bp);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::unwind::orc::Orc;
    use crate::unwind::orc::tests::table;

    struct Small {
        orc: Orc,
        stack: Vec<u64>,
    }

    impl Context for Small {
        fn read(&mut self, at: u64) -> Option<u64> {
            self.stack.get((at as usize).checked_sub(0x100)? / 8).copied()
        }
        fn method(&mut self, at: u64) -> Method {
            self.orc.lookup(at).map_or(Method::Unknown, Method::Rule)
        }
        fn is_text(&self, at: u64) -> bool {
            (0x1000..0x8000).contains(&at)
        }
        fn original(&mut self, ip: u64, slot: u64) -> u64 {
            if ip == 0x7777 && slot == 0x110 { 0x2010 } else { ip }
        }
    }

    /// `inner` at 0x1000, `middle` at 0x2000 with a frame pointer, and the last at 0x3000.
    fn orc() -> Orc {
        table(
            &[(0x1000, 24, 0, 5, 0, 2), (0x2000, 16, -16, 4, 1, 2), (0x3000, 0, 0, 0, 0, 1), (0x4000, 0, 0, 0, 0, 0)],
            0,
        )
    }

    #[test]
    fn to_the_last_frame_and_through_a_tracer() {
        let mut context = Small { orc: orc(), stack: vec![0, 0, 0x7777, 0xb0b0, 0x3020, 0x4444] };
        let mut out = [0; 8];
        let n = walk(&mut context, State::returned(0x1008, 0x100, Bp::Is(0x118)), &mut out);
        assert_eq!(out[..n], [0x1008, 0x2010, 0x3020]);
        assert_eq!(walk(&mut context, State::returned(0x1008, 0x100, Bp::Is(0x118)), &mut out[..2]), 2);
    }

    #[test]
    fn nonsense_ends() {
        let mut out = [0; 64];
        let state = State::returned(0x1008, 0x100, Bp::Is(0x118));
        let mut context = Small { orc: orc(), stack: vec![0, 0, 0x9999_9999] };
        assert_eq!(walk(&mut context, state, &mut out), 1, "no text");
        context.stack = vec![];
        assert_eq!(walk(&mut context, state, &mut out), 1, "no memory");
        context.stack = vec![0x1008; 4096];
        assert_eq!(walk(&mut context, state, &mut out), 64, "as many as there is room for");
        // A frame is its own caller, because its frame pointer points below it.
        context.stack = vec![0x100, 0x2008, 0, 0];
        assert_eq!(walk(&mut context, State::returned(0x2008, 0x110, Bp::Is(0x100)), &mut out), 1);
        assert_eq!(walk(&mut context, State::returned(0x10, 0x100, Bp::Is(0)), &mut out), 0);
    }
}
