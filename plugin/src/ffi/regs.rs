//! Registers of the current vCPU, read in its own callbacks.

use super::api::{api, string};
use super::direct;
use libc::{c_char, c_void};
use qemu_plugin_sys::{GByteArray, qemu_plugin_register};
use std::cell::Cell;
use std::sync::OnceLock;

/// The registers the hooks read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(usize)]
pub enum Reg {
    /// Return value.
    Rax,
    /// First argument, and so on in the order of the System V ABI.
    Rdi,
    /// Second.
    Rsi,
    /// Third.
    Rdx,
    /// Fourth.
    Rcx,
    /// Fifth.
    R8,
    /// Sixth.
    R9,
    /// Stack pointer.
    Rsp,
    /// Frame pointer.
    Rbp,
    /// Base of per-CPU memory in the kernel.
    GsBase,
    /// Physical address of the page tables in use.
    Cr3,
}

/// How many there are.
pub const REGISTERS: usize = 11;

const NAMES: [&str; REGISTERS] = ["rax", "rdi", "rsi", "rdx", "rcx", "r8", "r9", "rsp", "rbp", "gs_base", "cr3"];

impl Reg {
    /// The register of argument `index`, counted from 0.
    pub fn argument(index: usize) -> Option<Reg> {
        [Reg::Rdi, Reg::Rsi, Reg::Rdx, Reg::Rcx, Reg::R8, Reg::R9].get(index).copied()
    }
}

/// Handles by [`Reg`]. All vCPUs of a machine are of one type and so have the same handles.
struct Handles([*mut qemu_plugin_register; NAMES.len()]);

// SAFETY: QEMU's handles are indexes into the register list dressed as pointers, never dereferenced here.
unsafe impl Send for Handles {}
// SAFETY: as above.
unsafe impl Sync for Handles {}

static HANDLES: OnceLock<Handles> = OnceLock::new();

thread_local! {
    /// One GByteArray for each thread: QEMU appends to it, so it is emptied before each read.
    static BUFFER: Cell<*mut GByteArray> = const { Cell::new(std::ptr::null_mut()) };
}

/// Learns the handles; call it from the vCPU's init callback.
///
/// # Errors
/// The name of a register that this vCPU lacks: it is no 64-bit x86.
pub fn init_vcpu() -> Result<(), &'static str> {
    if HANDLES.get().is_some() {
        return Ok(());
    }
    let mut handles = [std::ptr::null_mut(); NAMES.len()];
    // SAFETY: we are in a vCPU callback, where get_registers is allowed. It returns an array that we own, of
    // `len` descriptors, each `element_size` bytes (24 to API 5, 32 from 6 on), which start with the handle
    // and the name, a C string that QEMU keeps.
    unsafe {
        let array = (api().get_registers)();
        if array.is_null() {
            return Err("any");
        }
        let step = (api().array_element_size)(array) as usize;
        for i in 0..(*array).len as usize {
            let descriptor = (*array).data.cast::<u8>().add(i * step);
            let handle = descriptor.cast::<*mut qemu_plugin_register>().read_unaligned();
            let name = descriptor.cast::<*const c_char>().add(1).read_unaligned();
            if let Some(i) = NAMES.iter().position(|n| **n == string(name)) {
                handles[i] = handle;
            }
        }
        (api().array_free)(array, 1);
    }
    if let Some(i) = handles.iter().position(|h| h.is_null()) {
        return Err(NAMES[i]);
    }
    let _ = HANDLES.set(Handles(handles));
    Ok(())
}

/// The current vCPU's register. Only in callbacks registered with register access; 0 where QEMU cannot say.
#[inline]
pub fn read(reg: Reg) -> u64 {
    direct::read(reg).unwrap_or_else(|| {
        direct::learn(ask);
        ask(reg)
    })
}

/// This thread's own array, made by GLib on first use and never freed.
fn buffer() -> *mut GByteArray {
    BUFFER.with(|cell| {
        if cell.get().is_null() {
            // SAFETY: plain allocation by GLib.
            cell.set(unsafe { (api().byte_array_new)() });
        }
        cell.get()
    })
}

/// The same of QEMU's API.
fn ask(reg: Reg) -> u64 {
    let Some(handles) = HANDLES.get() else { return 0 };
    let buffer = buffer();
    // SAFETY: set_size and read_register keep `data` and `len` in step, and we read no more than `len` bytes. The handle
    // is one QEMU gave.
    unsafe {
        (api().byte_array_set_size)(buffer, 0);
        (api().read_register)(handles.0[reg as usize], buffer);
        match (*buffer).len {
            8.. => (*buffer).data.cast::<u64>().read_unaligned(),
            // Control registers, while the code that runs is of 32 bits.
            4 => (*buffer).data.cast::<u32>().read_unaligned().into(),
            _ => 0,
        }
    }
}

/// General registers and rip of a vCPU that is stopped, from any thread, by QEMU's own debugger interface
/// where the build exports it: rax, rbx, rcx, rdx, rsi, rdi, rbp, rsp, r8 to r15, rip.
pub fn stopped(cpu: super::host::Cpu) -> Option<[u64; 17]> {
    type ReadRegister = unsafe extern "C" fn(*mut c_void, *mut GByteArray, libc::c_int) -> libc::c_int;
    let function = super::host::function("gdb_read_register")?;
    // SAFETY: `int gdb_read_register(CPUState *cpu, GByteArray *buf, int reg)` from QEMU 9.2 to 11.1
    // (include/exec/gdbstub.h).
    let read_register: ReadRegister = unsafe { std::mem::transmute(function) };
    let mut out = [0; 17];
    let buffer = buffer();
    // SAFETY: `cpu` is a CPUState from qemu_get_cpu; the buffer is used as in `ask`. Register numbers 0 to
    // 16 are the general registers and rip (gdb's amd64 order).
    unsafe {
        for (number, value) in out.iter_mut().enumerate() {
            (api().byte_array_set_size)(buffer, 0);
            read_register(cpu.pointer(), buffer, number as libc::c_int);
            if (*buffer).len != 8 {
                return None;
            }
            *value = (*buffer).data.cast::<u64>().read_unaligned();
        }
    }
    Some(out)
}
