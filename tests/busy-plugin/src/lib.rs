//! A QEMU plugin that counts executed blocks and memory accesses, and prints the counts at the end.
//! `scripts/ways` loads it beside libleak, so that instructions have callbacks of both.

use std::ffi::{c_char, c_int, c_uint, c_void};
use std::mem::transmute;
use std::ptr::null_mut;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

/// QEMU 11.1 requires API version 7, earlier versions accept 4. `scripts/ways` builds for the right
/// one.
const VERSION: c_int = match option_env!("BUSY_PLUGIN_API") {
    Some(text) if matches!(text.as_bytes(), b"7") => 7,
    _ => 4,
};

/// The API version that this plugin requests.
#[unsafe(no_mangle)]
#[allow(non_upper_case_globals)]
pub static qemu_plugin_version: c_int = VERSION;

static BLOCKS: AtomicU64 = AtomicU64::new(0);
static ACCESSES: AtomicU64 = AtomicU64::new(0);
static API: OnceLock<Api> = OnceLock::new();

/// An opaque type of QEMU.
type Opaque = *mut c_void;
type Register = unsafe extern "C" fn(id: u64, callback: Opaque, userdata: Opaque);
/// A callback. [`ran`] and [`accessed`] ignore its arguments.
type Callback = extern "C" fn();

type Length = unsafe extern "C" fn(tb: Opaque) -> usize;
type Instruction = unsafe extern "C" fn(tb: Opaque, index: usize) -> Opaque;
type OnExec = unsafe extern "C" fn(tb: Opaque, callback: Callback, flags: c_uint, userdata: Opaque);
type OnAccess = unsafe extern "C" fn(insn: Opaque, callback: Callback, flags: c_uint, which: c_uint, userdata: Opaque);

/// QEMU's functions (include/qemu/qemu-plugin.h, 10.0 to 11.1).
struct Api {
    tb_n_insns: Length,
    tb_get_insn: Instruction,
    register_tb_exec: OnExec,
    register_mem: OnAccess,
}

/// `QEMU_PLUGIN_CB_R_REGS`, `QEMU_PLUGIN_MEM_RW`.
const READS_REGISTERS: c_uint = 1;
const READ_AND_WRITE: c_uint = 3;

extern "C" fn ran() {
    BLOCKS.fetch_add(1, Ordering::Relaxed);
}

extern "C" fn accessed() {
    ACCESSES.fetch_add(1, Ordering::Relaxed);
}

extern "C" fn translated_with_id(_id: u64, tb: Opaque) {
    translated(tb);
}

extern "C" fn translated(tb: Opaque) {
    let Some(api) = API.get() else { return };
    // SAFETY: QEMU's functions, called with its block within its callback. The callbacks are plain
    // functions that outlive the process. This calling convention tolerates any arguments.
    unsafe {
        (api.register_tb_exec)(tb, ran, READS_REGISTERS, null_mut());
        for n in 0..(api.tb_n_insns)(tb) {
            (api.register_mem)((api.tb_get_insn)(tb, n), accessed, READS_REGISTERS, READ_AND_WRITE, null_mut());
        }
    }
}

extern "C" fn ended() {
    let (blocks, accesses) = (BLOCKS.load(Ordering::Relaxed), ACCESSES.load(Ordering::Relaxed));
    eprintln!("busy-plugin: {blocks} blocks ran, {accesses} accesses to memory");
}

fn find(name: &std::ffi::CStr) -> Option<Opaque> {
    // SAFETY: the name is a C string; it is searched in the program that loads this.
    let found = unsafe { libc::dlsym(libc::RTLD_DEFAULT, name.as_ptr()) };
    (!found.is_null()).then_some(found)
}

fn install(id: u64) -> Option<()> {
    let on_translation = find(c"qemu_plugin_register_vcpu_tb_trans_cb")?;
    let on_exit = find(c"qemu_plugin_register_atexit_cb")?;
    let translated = if VERSION < 7 { translated_with_id as *mut c_void } else { translated as *mut c_void };
    // SAFETY: QEMU's functions of these names, with these signatures. Version 7 dropped the
    // callbacks' first argument and gave the registrations their third one. Earlier versions ignore
    // it.
    unsafe {
        let _ = API.set(Api {
            tb_n_insns: transmute::<Opaque, Length>(find(c"qemu_plugin_tb_n_insns")?),
            tb_get_insn: transmute::<Opaque, Instruction>(find(c"qemu_plugin_tb_get_insn")?),
            register_tb_exec: transmute::<Opaque, OnExec>(find(c"qemu_plugin_register_vcpu_tb_exec_cb")?),
            register_mem: transmute::<Opaque, OnAccess>(find(c"qemu_plugin_register_vcpu_mem_cb")?),
        });
        transmute::<Opaque, Register>(on_translation)(id, translated, null_mut());
        transmute::<Opaque, Register>(on_exit)(id, ended as *mut c_void, null_mut());
    }
    Some(())
}

/// The entry point for QEMU.
#[unsafe(no_mangle)]
pub extern "C" fn qemu_plugin_install(id: u64, _info: Opaque, _argc: c_int, _argv: *const *const c_char) -> c_int {
    match install(id) {
        Some(()) => 0,
        None => {
            eprintln!("busy-plugin: error: this QEMU lacks the plugin API");
            -1
        }
    }
}
