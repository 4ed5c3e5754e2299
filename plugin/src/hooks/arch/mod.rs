//! Differences between architectures in the guest's code. Each architecture has a file with the
//! same names. The plugin is built for one of them.

mod x86_64;

pub use x86_64::{
    Call, FRAME_POINTER, LONGEST_CALL, PAGE_TABLES, PER_CPU_BASE, RETURN_VALUE, STACK_POINTER, TRAMPOLINES, argument,
    call_before, is_call, jump_at, return_slot, sp_after_return,
};
