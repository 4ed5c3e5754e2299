//! The registers that a function with a frame pointer saves at its start. Unwind tables address
//! such frames from the frame pointer, and do not describe the registers pushed below it.

/// A register that a function preserves for its caller, by its number in instructions.
pub(crate) type Register = u8;

/// `mov %rsp,%rbp`.
pub(crate) const SET_FRAME_POINTER: [u8; 3] = [0x48, 0x89, 0xe5];
/// Bytes of code that are examined.
pub(crate) const LENGTH: usize = 64;

/// The registers that `code` pushes, in order, from the instruction after [`SET_FRAME_POINTER`] on.
/// The flag is whether the function then reserves space for its variables, so that it pushes no
/// other register.
pub(crate) fn pushes(mut code: &[u8]) -> (Vec<Register>, bool) {
    let mut pushed = Vec::new();
    loop {
        let len = match *code {
            [0x53, ..] => {
                pushed.push(3);
                1
            }
            [0x41, r @ 0x54..=0x57, ..] => {
                pushed.push(r - 0x50 + 8);
                2
            }
            // sub $..., %rsp
            [0x48, 0x83 | 0x81, 0xec, ..] => return (pushed, true),
            _ => match other(code) {
                Some(len) => len,
                None => return (pushed, false),
            },
        };
        code = code.get(len..).unwrap_or(&[]);
    }
}

/// The length of an instruction that compilers put between pushes. It does not change the stack
/// pointer. It moves a constant, a register or a per-CPU variable, compares with zero, or does
/// nothing.
fn other(code: &[u8]) -> Option<usize> {
    // Whether the destination is not the stack pointer. `other` is the bit that selects r8 to r15.
    let is_other = |m: u8, other: bool| m >= 0xc0 && (m & 7 != 4 || other);
    Some(match *code {
        [0x48..=0x4f, 0xc7, m, ..] if is_other(m, code[0] & 1 != 0) => 7,
        [0xb8..=0xbb | 0xbd..=0xbf, ..] => 5,
        [0x41, 0xb8..=0xbf, ..] => 6,
        [rex @ 0x40..=0x4f, 0x89 | 0x31 | 0x85, m, ..] if is_other(m, rex & 1 != 0) => 3,
        [0x89 | 0x31 | 0x85, m, ..] if is_other(m, false) => 2,
        [0x0f, 0x1f, 0x44, 0, 0, ..] => 5,
        [0x66, 0x90, ..] => 2,
        // mov %gs:...(%rip), and mov %gs:...
        [0x65, 0x48 | 0x4c, 0x8b, m, ..] if m & 0xc7 == 5 => 8,
        [0x65, 0x48 | 0x4c, 0x8b, m, 0x25, ..] if m & 0xc7 == 4 => 9,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pushes_with_others_between() {
        // __schedule() of 6.12: push %r15 to %r12, mov $0x35e80,%r12, push %rbx, sub $0x40,%rsp.
        let code = [
            0x41, 0x57, 0x41, 0x56, 0x41, 0x55, 0x41, 0x54, 0x49, 0xc7, 0xc4, 0x80, 0x5e, 0x03, 0x00, 0x53, 0x48, 0x83,
            0xec, 0x40,
        ];
        assert_eq!(pushes(&code), (vec![15, 14, 13, 12, 3], true));
        // The code ends early, or an unknown instruction follows.
        assert_eq!(pushes(&code[..16]), (vec![15, 14, 13, 12, 3], false));
        assert_eq!(pushes(&[0x41, 0x57, 0xe8, 0, 0, 0, 0, 0x53]), (vec![15], false));
        // The stack pointer is aligned or set. The offsets of later pushes are unknown.
        assert_eq!(pushes(&[0x48, 0x83, 0xe4, 0xf0, 0x53]), (vec![], false));
        assert_eq!(pushes(&[0x48, 0x89, 0xec, 0x53]), (vec![], false));
        assert_eq!(pushes(&[0x49, 0x89, 0xfc, 0x53]), (vec![3], false));
        assert_eq!(pushes(&[]), (vec![], false));
    }
}
