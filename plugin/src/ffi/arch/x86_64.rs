//! x86-64: names of registers, and where they lie in QEMU's state of a vCPU.

/// The registers that hooks read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(usize)]
pub enum Reg {
    /// Return value.
    Rax,
    /// First argument (System V ABI).
    Rdi,
    /// Second argument.
    Rsi,
    /// Third argument.
    Rdx,
    /// Fourth argument.
    Rcx,
    /// Fifth argument.
    R8,
    /// Sixth argument.
    R9,
    /// Stack pointer.
    Rsp,
    /// Frame pointer.
    Rbp,
    /// In the kernel, the virtual address of the CPU's per-CPU memory.
    GsBase,
    /// Physical address of the page tables in use.
    Cr3,
}

impl Reg {
    /// The virtual address of the CPU's per-CPU memory while the kernel runs.
    pub const PER_CPU_BASE: Reg = Reg::GsBase;
    /// The stack pointer.
    pub const STACK_POINTER: Reg = Reg::Rsp;
}

/// How many registers [`Reg`] has.
pub const REGISTERS: usize = 11;

/// QEMU's names of the registers, in the order of [`Reg`] (gdb-xml/i386-64bit.xml, QEMU 9.2 to
/// 11.1).
pub const NAMES: [&str; REGISTERS] = ["rax", "rdi", "rsi", "rdx", "rcx", "r8", "r9", "rsp", "rbp", "gs_base", "cr3"];

/// Index of some registers in `CPUX86State.regs` (target/i386/cpu.h, QEMU 9.2 to 11.1). The array
/// starts with rax, rcx, rdx, rbx, rsp, rbp, rsi, rdi, r8, r9; each is a word.
pub const STATE_ORDER: [(usize, Reg); 9] = [
    (0, Reg::Rax),
    (1, Reg::Rcx),
    (2, Reg::Rdx),
    (4, Reg::Rsp),
    (5, Reg::Rbp),
    (6, Reg::Rsi),
    (7, Reg::Rdi),
    (8, Reg::R8),
    (9, Reg::R9),
];

/// Bytes behind the first general register within which [`Reg::PER_CPU_BASE`] is looked for:
/// `CPUX86State.segs` follows the general registers, after the flags.
pub const PER_CPU_BASE_WITHIN: usize = 1024;

/// General registers and the program counter as gdb numbers them from 0 on: rax, rbx, rcx, rdx,
/// rsi, rdi, rbp, rsp, r8 to r15, rip.
pub const GENERAL_REGISTERS: usize = 17;
