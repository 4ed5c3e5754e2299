//! x86-64: how a function is called and returns, and what a call looks like in code.
//!
//! The order of arguments is that of the System V ABI. Instructions are those of the Intel SDM,
//! volume 2.

use crate::ffi::regs::Reg;

/// What a function returns.
pub const RETURN_VALUE: Reg = Reg::Rax;
/// Points at the return address when a function is entered.
pub const STACK_POINTER: Reg = Reg::Rsp;
/// The frame pointer, in kernels that have one.
pub const FRAME_POINTER: Reg = Reg::Rbp;
/// In the kernel, the virtual address of the CPU's per-CPU memory.
pub const PER_CPU_BASE: Reg = Reg::GsBase;
/// Physical address of the page tables in use.
pub const PAGE_TABLES: Reg = Reg::Cr3;

/// The register of argument `index`, counted from 0; `None` for those on the stack.
pub fn argument(index: usize) -> Option<Reg> {
    [Reg::Rdi, Reg::Rsi, Reg::Rdx, Reg::Rcx, Reg::R8, Reg::R9].get(index).copied()
}

/// The virtual address of the stack slot that held the return address, given the stack pointer
/// after the return.
#[inline]
pub fn return_slot(sp: u64) -> u64 {
    sp.wrapping_sub(8)
}

/// The stack pointer after a return by the address in that slot.
#[inline]
pub fn sp_after_return(slot: u64) -> u64 {
    slot.wrapping_add(8)
}

/// Prefixes of the names of trampolines. Through one, any function may be called: thunks of
/// indirect calls (arch/x86/lib/retpoline.S), and static calls (include/linux/static_call.h).
pub const TRAMPOLINES: [&str; 2] = ["__x86_indirect_", "__SCT__"];

/// Bytes of the longest call instruction that is looked for.
pub const LONGEST_CALL: usize = 7;

/// A call instruction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Call {
    /// It calls the function at this virtual address.
    Direct(u64),
    /// It calls the function whose address is in a register or in memory.
    Indirect,
}

/// The call instruction that ends at virtual address `at`, given the bytes before it.
pub fn call_before(at: u64, before: &[u8; LONGEST_CALL]) -> Option<Call> {
    // call rel32
    if before[2] == 0xe8 {
        let relative = i32::from_le_bytes([before[3], before[4], before[5], before[6]]);
        return Some(Call::Direct(at.wrapping_add(relative as i64 as u64)));
    }
    ends_in_indirect_call(before).then_some(Call::Indirect)
}

/// Whether an instruction is a call. It stores its return address.
pub fn is_call(insn: &[u8]) -> bool {
    let insn = if insn.first().is_some_and(|byte| byte & 0xf0 == 0x40) { &insn[1..] } else { insn };
    match insn {
        [0xe8, ..] => true,
        [0xff, mode, ..] => (mode >> 3) & 7 == 2,
        _ => false,
    }
}

/// `ff /2`: with a register (2 bytes), memory and no, 1 or 4 bytes of displacement, and perhaps a
/// SIB byte.
fn ends_in_indirect_call(before: &[u8; LONGEST_CALL]) -> bool {
    let fits = |len: usize| {
        let call = &before[LONGEST_CALL - len..];
        let (mode, rm) = (call[1] >> 6, call[1] & 7);
        let sib = usize::from(mode != 3 && rm == 4);
        let displacement = match (mode, rm) {
            (0, 5) | (2, _) => 4,
            (1, _) => 1,
            _ => 0,
        };
        call[0] == 0xff && (call[1] >> 3) & 7 == 2 && len == 2 + sib + displacement
    };
    [2, 3, 4, 6, 7].into_iter().any(fits)
}

/// The offset in `text` that a direct jump at offset `at` goes to: `e9`, and conditional `0f 80` to
/// `0f 8f`. The offset may be outside of `text`. `None` if there is no such jump, or fewer than 6
/// bytes.
#[inline]
pub fn jump_at(text: &[u8], at: usize) -> Option<usize> {
    let near = text[at] == 0xe9;
    let conditional = text[at] == 0x0f && text[at + 1] & 0xf0 == 0x80;
    if !near && !conditional {
        return None;
    }
    let end = at + if near { 5 } else { 6 };
    let relative = i32::from_le_bytes([text[end - 4], text[end - 3], text[end - 2], text[end - 1]]);
    Some((end as i64 + i64::from(relative)) as usize)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn indirect_calls() {
        let call = |tail: &[u8]| {
            let mut b = [0x90; LONGEST_CALL];
            b[LONGEST_CALL - tail.len()..].copy_from_slice(tail);
            call_before(0xffff_ffff_8100_0000, &b)
        };
        for yes in [
            &[0xff, 0xd0][..],
            &[0x41, 0xff, 0xd3],
            &[0xff, 0x50, 8],
            &[0xff, 0x54, 0x24, 8],
            &[0xff, 0x15, 1, 2, 3, 4],
            &[0xff, 0x94, 0xc0, 1, 2, 3, 4],
        ] {
            assert_eq!(call(yes), Some(Call::Indirect), "{yes:x?}");
        }
        for no in [&[0xff, 0xe0][..], &[0x90, 0x90], &[0xff, 0x50]] {
            assert_eq!(call(no), None, "{no:x?}");
        }
    }

    #[test]
    fn arguments_and_returns() {
        assert_eq!((argument(0), argument(3), argument(6)), (Some(Reg::Rdi), Some(Reg::Rcx), None));
        assert_eq!(return_slot(sp_after_return(0x1000)), 0x1000);
    }
}
