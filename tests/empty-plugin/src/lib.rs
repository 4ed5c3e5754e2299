//! A QEMU plugin that is told of each translation and does nothing with it: what any plugin costs before it does anything
//! of its own. `scripts/bench` builds it and compares with it; nothing else does.

use std::ffi::{c_char, c_int, c_void};

/// QEMU 11.1 takes no plugin but one that asks for 7, and those before it take 4. `scripts/bench` knows which it is, and says so when
/// it builds this.
const VERSION: c_int = match option_env!("EMPTY_PLUGIN_API") {
    Some(text) if matches!(text.as_bytes(), b"7") => 7,
    _ => 4,
};

/// The API version this plugin asks for.
#[unsafe(no_mangle)]
#[allow(non_upper_case_globals)]
pub static qemu_plugin_version: c_int = VERSION;

type Callback = extern "C" fn();
type Register = unsafe extern "C" fn(id: u64, callback: Callback, userdata: *mut c_void);

/// Its arguments depend on the version, and it looks at none of them.
extern "C" fn translated() {}

/// QEMU's way in.
#[unsafe(no_mangle)]
pub extern "C" fn qemu_plugin_install(
    id: u64,
    _info: *const c_void,
    _argc: c_int,
    _argv: *const *const c_char,
) -> c_int {
    // SAFETY: the name is a C string; it is searched in the program that loads this.
    let found = unsafe { libc::dlsym(libc::RTLD_DEFAULT, c"qemu_plugin_register_vcpu_tb_trans_cb".as_ptr()) };
    if found.is_null() {
        eprintln!("empty-plugin: error: this QEMU lacks the plugin API");
        return -1;
    }
    // SAFETY: QEMU's function of that name, with this signature from version 7 on; before, it does not look at its
    // third argument. The callback is a plain function, which no arguments can hurt in this calling convention, and it
    // outlives the process.
    unsafe { std::mem::transmute::<*mut c_void, Register>(found)(id, translated, std::ptr::null_mut()) };
    0
}
