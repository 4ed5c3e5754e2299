//! A QEMU plugin with an empty translation callback, which shows the cost of any plugin. Only
//! `scripts/bench` uses it.

use std::ffi::{c_char, c_int, c_void};

/// QEMU 11.1 requires API version 7, earlier versions accept 4. `scripts/bench` builds for the
/// right one.
const VERSION: c_int = match option_env!("EMPTY_PLUGIN_API") {
    Some(text) if matches!(text.as_bytes(), b"7") => 7,
    _ => 4,
};

/// The API version that this plugin requests.
#[unsafe(no_mangle)]
#[allow(non_upper_case_globals)]
pub static qemu_plugin_version: c_int = VERSION;

type Callback = extern "C" fn();
type Register = unsafe extern "C" fn(id: u64, callback: Callback, userdata: *mut c_void);

/// Its arguments depend on the version. It ignores them.
extern "C" fn translated() {}

/// The entry point for QEMU.
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
    // SAFETY: QEMU's function of this name, with its signature from version 7 on. Earlier versions
    // ignore the third argument. The callback is a plain function that outlives the process. This
    // calling convention tolerates any arguments.
    unsafe { std::mem::transmute::<*mut c_void, Register>(found)(id, translated, std::ptr::null_mut()) };
    0
}
