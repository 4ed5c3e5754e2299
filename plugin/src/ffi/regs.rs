//! Registers of the current vCPU, read in its own callbacks.

use super::api::{api, string};
use super::arch::NAMES;
pub use super::arch::Reg;
use super::direct;
use libc::c_char;
use qemu_plugin_sys::{GByteArray, qemu_plugin_register};
use std::cell::Cell;
use std::sync::OnceLock;

/// Handles by [`Reg`]. All vCPUs of a machine are of one type and so have the same handles.
struct Handles([*mut qemu_plugin_register; NAMES.len()]);

// SAFETY: QEMU's handles are indexes into the register list dressed as pointers, never dereferenced
// here.
unsafe impl Send for Handles {}
// SAFETY: as above.
unsafe impl Sync for Handles {}

/// Set by the first vCPU. They are read in every callback, of which QEMU hands over no more than a
/// word.
static HANDLES: OnceLock<Handles> = OnceLock::new();

thread_local! {
    /// One GByteArray for each thread: QEMU appends to it, so it is emptied before each read.
    static BUFFER: Cell<*mut GByteArray> = const { Cell::new(std::ptr::null_mut()) };
}

/// A register that a vCPU does not have, by its name.
#[derive(Debug, Clone, Copy, thiserror::Error)]
#[error("this vCPU has no register {0}")]
pub struct MissingRegister(&'static str);

/// Learns the handles; call it from the vCPU's init callback.
///
/// # Errors
/// A register that this vCPU lacks: it is no 64-bit x86.
pub fn init_vcpu() -> Result<(), MissingRegister> {
    if HANDLES.get().is_some() {
        return Ok(());
    }
    let mut handles = [std::ptr::null_mut(); NAMES.len()];
    // SAFETY: we are in a vCPU callback, where get_registers is allowed. It returns an array that
    // we own, of `len` descriptors, each `element_size` bytes (24 to API 5, 32 from 6 on), which
    // start with the handle and the name, a C string that QEMU keeps.
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

/// The current vCPU's register. Only in callbacks registered with register access; 0 where QEMU
/// cannot say.
#[inline]
pub fn read(reg: Reg) -> u64 {
    direct::read(reg).unwrap_or_else(|| {
        direct::learn(ask);
        ask(reg)
    })
}

/// This thread's own array, made by GLib on first use and never freed.
pub(super) fn buffer() -> *mut GByteArray {
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
    // SAFETY: set_size and read_register keep `data` and `len` in step, and we read no more than
    // `len` bytes. The handle is one QEMU gave.
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
