//! The stack of a CPU that runs, frame by frame, as the kernel's stack_trace_save() would save it (arch_stack_walk(),
//! arch/x86/kernel/stacktrace.c, 5.10 to 7.3).
//!
//! Pure: everything that is known of the guest comes through [`Context`].

use super::orc::Rule;
use super::step::{self, Bp, State};

/// What unwinding asks for.
pub trait Context {
    /// A word at a virtual address; `None` where nothing is mapped.
    fn read(&mut self, at: u64) -> Option<u64>;

    /// How the frame of code at an address is left.
    fn method(&mut self, at: u64) -> Method;

    /// Whether an address may lie in code: the image's text, a module, or what was generated.
    fn is_text(&self, at: u64) -> bool;

    /// The return address that stood in a slot of the stack before a tracer put its own there.
    fn original(&mut self, ip: u64, slot: u64) -> u64 {
        let _ = slot;
        ip
    }
}

/// How a frame is left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Method {
    /// By a rule of an ORC table.
    Rule(Rule),
    /// By its frame pointer.
    FramePointer,
    /// Not at all.
    Unknown,
}

/// How far a walk came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Walked {
    /// Frames that are certain.
    pub frames: usize,
    /// Where it stopped before the end: the last frame is counted from the frame pointer that is saved at this virtual address, and all that
    /// follows depends on nothing else. It goes on from that frame with [`State::with_frame_pointer`].
    pub frame_pointer_at: Option<u64>,
}

/// Fills `out` with the addresses on the stack, from the state's own on, until the last frame, to user space, to where memory or rules do
/// not make sense, or to a frame pointer.
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
        // A frame that is its own caller.
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

/// Fills `out` with the addresses on the stack, from the state's own on, and returns how many there are. Ends at the last
/// frame, at user space, and where memory or rules do not make sense: what is there is certain.
pub fn walk(context: &mut impl Context, mut state: State, out: &mut [u64]) -> usize {
    let mut done = 0;
    loop {
        let walked = walk_on(context, state, &mut out[done..]);
        done += walked.frames;
        let Some(bp) = walked.frame_pointer_at.and_then(|at| context.read(at)) else { return done };
        // The frame that is counted from it comes again.
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

    /// `inner` at 0x1000, `middle` at 0x2000 with a frame pointer, the last at 0x3000.
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
        // Its own caller, by a frame pointer that points below itself.
        context.stack = vec![0x100, 0x2008, 0, 0];
        assert_eq!(walk(&mut context, State::returned(0x2008, 0x110, Bp::Is(0x100)), &mut out), 1);
        assert_eq!(walk(&mut context, State::returned(0x10, 0x100, Bp::Is(0)), &mut out), 0);
    }
}
