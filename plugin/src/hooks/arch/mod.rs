//! What differs between the architectures of guests, as far as hooks go. Each architecture has a
//! file with the same names in it. The plugin is built for one of them.

mod x86_64;

pub use x86_64::{
    Call, FRAME_POINTER, LONGEST_CALL, PAGE_TABLES, PER_CPU_BASE, RETURN_VALUE, STACK_POINTER, TRAMPOLINES, argument,
    call_before, jump_at, return_slot, sp_after_return,
};
