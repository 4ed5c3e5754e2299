//! Reads registers of the current vCPU in its callbacks.

use super::api::{api, string};
use super::arch::NAMES;
pub use super::arch::Reg;
use super::direct;
use libc::c_char;
use qemu_plugin_sys::{GByteArray, qemu_plugin_register};
use std::cell::Cell;
use std::sync::OnceLock;

/// QEMU's handles of registers, in the order of [`Reg`]. All vCPUs of a machine have the same type,
/// and so the same handles.
struct Handles([*mut qemu_plugin_register; NAMES.len()]);

// SAFETY: QEMU's handles are indexes in the form of pointers. They are never dereferenced here.
unsafe impl Send for Handles {}
// SAFETY: as above.
unsafe impl Sync for Handles {}

/// Set by the first vCPU. Callbacks read registers, and get no more than one word from QEMU.
static HANDLES: OnceLock<Handles> = OnceLock::new();

thread_local! {
    /// This thread's GByteArray. QEMU appends to it, so it is emptied before each read.
    static BUFFER: Cell<*mut GByteArray> = const { Cell::new(std::ptr::null_mut()) };
}

/// A register that a vCPU does not have, by its name.
#[derive(Debug, Clone, Copy, thiserror::Error)]
#[error("this vCPU has no register {0}")]
pub struct MissingRegister(&'static str);

/// Looks up the handles. Call it in a vCPU's init callback.
///
/// # Errors
/// A register that this vCPU lacks, because it is not a 64-bit x86.
pub fn init_vcpu() -> Result<(), MissingRegister> {
    if HANDLES.get().is_some() {
        return Ok(());
    }
    let mut handles = [std::ptr::null_mut(); NAMES.len()];
    // SAFETY: get_registers is allowed in a vCPU's callback. It returns an array of `len`
    // descriptors, which is freed below. Each has `element_size` bytes (24 up to API 5, 32 since
    // 6). It starts with the handle and the name, a C string that QEMU keeps.
    unsafe {
        let array = (api().get_registers)();
        if array.is_null() {
            return Err(MissingRegister("any"));
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
        return Err(MissingRegister(NAMES[i]));
    }
    let _ = HANDLES.set(Handles(handles));
    Ok(())
}

/// Reads a register of the current vCPU; 0 if QEMU cannot read it. Call it only in callbacks that
/// may read registers.
#[inline]
pub fn read(reg: Reg) -> u64 {
    direct::read(reg).unwrap_or_else(|| {
        direct::learn(ask);
        ask(reg)
    })
}

/// This thread's array, which GLib makes on first use. It is never freed.
pub(super) fn buffer() -> *mut GByteArray {
    BUFFER.with(|cell| {
        if cell.get().is_null() {
            // SAFETY: plain allocation by GLib.
            cell.set(unsafe { (api().byte_array_new)() });
        }
        cell.get()
    })
}

/// Reads a register through QEMU's API.
fn ask(reg: Reg) -> u64 {
    let Some(handles) = HANDLES.get() else { return 0 };
    let buffer = buffer();
    // SAFETY: set_size and read_register keep `data` and `len` consistent. No more than `len` bytes
    // are read. The handle comes from QEMU.
    unsafe {
        (api().byte_array_set_size)(buffer, 0);
        (api().read_register)(handles.0[reg as usize], buffer);
        match (*buffer).len {
            8.. => (*buffer).data.cast::<u64>().read_unaligned(),
            // Control registers have 4 bytes while 32-bit code runs.
            4 => (*buffer).data.cast::<u32>().read_unaligned().into(),
            _ => 0,
        }
    }
}
