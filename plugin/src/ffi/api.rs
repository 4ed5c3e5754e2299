//! The plugin API, looked up by name at load.
//!
//! QEMU loads plugins with RTLD_NOW. With a strong reference to a function that this QEMU lacks,
//! loading would fail with a message of the linker. So all functions are looked up with dlsym(),
//! and a message says what is missing. Types are those of the `qemu-plugin-sys` bindings.
//!
//! In API 7 (QEMU 11.1) callbacks lost the plugin id and got user data. Registrations take the user
//! data as an additional last argument, which older versions ignore.

use libc::{c_char, c_int, c_uint, c_void};
use qemu_plugin_sys::{
    GArray, GByteArray, qemu_plugin_hwaddr, qemu_plugin_insn, qemu_plugin_mem_value, qemu_plugin_register,
    qemu_plugin_scoreboard, qemu_plugin_tb, qemu_plugin_u64,
};
use std::ffi::{CStr, CString};
use std::sync::OnceLock;

/// API version from which callbacks carry user data in place of the plugin id.
pub const VERSION_WITHOUT_ID: c_int = 7;

/// QEMU_PLUGIN_CB_NO_REGS (qemu-plugin.h).
pub const NO_REGS: c_int = 0;
/// QEMU_PLUGIN_CB_R_REGS.
pub const READ_REGS: c_int = 1;
/// QEMU_PLUGIN_COND_NE.
pub const COND_NE: c_int = 3;
/// QEMU_PLUGIN_MEM_W.
pub const MEM_W: c_int = 2;

/// A callback whose arguments depend on the API version. It is registered as a bare pointer.
pub type AnyCallback = *const c_void;
/// `qemu_plugin_vcpu_udata_cb_t`.
pub type ExecCallback = extern "C" fn(vcpu: c_uint, userdata: *mut c_void);
/// `qemu_plugin_vcpu_mem_cb_t`.
pub type MemCallback = extern "C" fn(vcpu: c_uint, access: c_uint, at: u64, userdata: *mut c_void);

/// A function that this QEMU does not have, by its name.
#[derive(Debug, Clone, Copy, thiserror::Error)]
#[error("this QEMU lacks {0}")]
pub struct MissingFunction(&'static str);

macro_rules! api {
    ($($(#[$doc:meta])* $name:ident = $symbol:literal: fn($($arg:ty),*) $(-> $ret:ty)?;)*) => {
        /// The functions that are used, resolved.
        pub struct Api { $($(#[$doc])* pub $name: unsafe extern "C" fn($($arg),*) $(-> $ret)?,)* }

        impl Api {
            fn resolve() -> Result<Api, MissingFunction> {
                Ok(Api { $($name: {
                    let found = lookup($symbol).ok_or(MissingFunction($symbol))?;
                    // SAFETY: the symbol is QEMU's or GLib's function of that name, whose C
                    // signature, from QEMU 9.2 to 11.1, is the one given here (int results that
                    // became bool are not read beyond zero or not; additional trailing arguments
                    // are ignored by older versions).
                    unsafe { std::mem::transmute::<*mut c_void, unsafe extern "C" fn($($arg),*) $(-> $ret)?>(found) }
                },)* })
            }
        }
    };
}

api! {
    /// (id, callback, userdata)
    register_vcpu_init = "qemu_plugin_register_vcpu_init_cb": fn(u64, AnyCallback, *mut c_void);
    /// (id, callback, userdata)
    register_tb_trans = "qemu_plugin_register_vcpu_tb_trans_cb": fn(u64, AnyCallback, *mut c_void);
    /// (id, callback, userdata)
    register_atexit = "qemu_plugin_register_atexit_cb": fn(u64, AnyCallback, *mut c_void);
    /// (id, callback, userdata)
    register_flush = "qemu_plugin_register_flush_cb": fn(u64, AnyCallback, *mut c_void);
    /// (insn, callback, flags, userdata)
    register_insn_exec = "qemu_plugin_register_vcpu_insn_exec_cb": fn(*mut qemu_plugin_insn, ExecCallback, c_int, *mut c_void);
    /// (insn, callback, flags, condition, entry, immediate, userdata)
    register_insn_exec_cond = "qemu_plugin_register_vcpu_insn_exec_cond_cb": fn(*mut qemu_plugin_insn, ExecCallback, c_int, c_int, qemu_plugin_u64, u64, *mut c_void);
    /// (insn, callback, flags, which accesses, userdata)
    register_insn_mem = "qemu_plugin_register_vcpu_mem_cb": fn(*mut qemu_plugin_insn, MemCallback, c_int, c_int, *mut c_void);
    /// (access): its size in bytes, as an exponent of 2.
    mem_size_shift = "qemu_plugin_mem_size_shift": fn(c_uint) -> c_uint;
    /// (access): the value that was stored or loaded. Only in the access's own callback.
    mem_get_value = "qemu_plugin_mem_get_value": fn(c_uint) -> qemu_plugin_mem_value;
    /// (access, virtual address): valid in the access's own callback; null if it is not known.
    get_hwaddr = "qemu_plugin_get_hwaddr": fn(c_uint, u64) -> *mut qemu_plugin_hwaddr;
    /// (address)
    hwaddr_is_io = "qemu_plugin_hwaddr_is_io": fn(*const qemu_plugin_hwaddr) -> bool;
    /// (address): the guest physical address.
    hwaddr_phys = "qemu_plugin_hwaddr_phys_addr": fn(*const qemu_plugin_hwaddr) -> u64;
    /// (tb)
    tb_n_insns = "qemu_plugin_tb_n_insns": fn(*const qemu_plugin_tb) -> usize;
    /// (tb)
    tb_vaddr = "qemu_plugin_tb_vaddr": fn(*const qemu_plugin_tb) -> u64;
    /// (tb, index)
    tb_get_insn = "qemu_plugin_tb_get_insn": fn(*const qemu_plugin_tb, usize) -> *mut qemu_plugin_insn;
    /// (insn)
    insn_vaddr = "qemu_plugin_insn_vaddr": fn(*const qemu_plugin_insn) -> u64;
    /// (insn): despite its name this is a pointer in this process; null for MMIO.
    insn_haddr = "qemu_plugin_insn_haddr": fn(*const qemu_plugin_insn) -> *mut c_void;
    /// (insn, destination, length): copies at most `length` bytes, and returns how many.
    insn_data = "qemu_plugin_insn_data": fn(*const qemu_plugin_insn, *mut c_void, usize) -> usize;
    /// (insn)
    insn_size = "qemu_plugin_insn_size": fn(*const qemu_plugin_insn) -> usize;
    /// ()
    num_vcpus = "qemu_plugin_num_vcpus": fn() -> c_int;
    /// (): only in a vCPU's own callback; the caller frees it.
    get_registers = "qemu_plugin_get_registers": fn() -> *mut GArray;
    /// (handle, buffer)
    read_register = "qemu_plugin_read_register": fn(*mut qemu_plugin_register, *mut GByteArray) -> c_int;
    /// (element size in bytes)
    scoreboard_new = "qemu_plugin_scoreboard_new": fn(usize) -> *mut qemu_plugin_scoreboard;
    /// (entry, vcpu, value)
    u64_set = "qemu_plugin_u64_set": fn(qemu_plugin_u64, c_uint, u64);
    /// GLib, which is in every QEMU process.
    byte_array_new = "g_byte_array_new": fn() -> *mut GByteArray;
    /// (array, length)
    byte_array_set_size = "g_byte_array_set_size": fn(*mut GByteArray, c_uint) -> *mut GByteArray;
    /// (array)
    array_element_size = "g_array_get_element_size": fn(*mut GArray) -> c_uint;
    /// (array, free the elements too)
    array_free = "g_array_free": fn(*mut GArray, c_int) -> *mut c_char;
}

/// Set once, at install: there is one QEMU in a process.
static API: OnceLock<Api> = OnceLock::new();

/// The API of the QEMU that loaded this library.
///
/// # Panics
/// Before [`load`] has succeeded. Callbacks are registered after that.
#[inline]
pub fn api() -> &'static Api {
    API.get().expect("the plugin API is resolved at install")
}

/// Resolves the API.
///
/// # Errors
/// The first function that this QEMU does not have.
pub fn load() -> Result<(), MissingFunction> {
    let api = Api::resolve()?;
    let _ = API.set(api);
    Ok(())
}

/// The address of a symbol that the process exports, or `None`.
pub fn lookup(name: &str) -> Option<*mut c_void> {
    let name = CString::new(name).ok()?;
    // SAFETY: `name` is a C string; RTLD_DEFAULT searches the program and the libraries it was
    // linked with.
    let found = unsafe { libc::dlsym(libc::RTLD_DEFAULT, name.as_ptr()) };
    (!found.is_null()).then_some(found)
}

/// A block that QEMU is translating. It is valid during the translation callback.
#[derive(Clone, Copy)]
pub struct Block(*mut qemu_plugin_tb);

/// An instruction of a [`Block`].
#[derive(Clone, Copy)]
pub struct Insn(*mut qemu_plugin_insn);

impl Block {
    /// # Safety
    /// `tb` is what QEMU passed to the translation callback, and the result is not used after it.
    pub unsafe fn new(tb: *mut qemu_plugin_tb) -> Block {
        Block(tb)
    }

    /// The number of its instructions.
    pub fn len(self) -> usize {
        // SAFETY: the block is live, by the contract of `new`.
        unsafe { (api().tb_n_insns)(self.0) }
    }

    /// Whether it has no instruction.
    pub fn is_empty(self) -> bool {
        self.len() == 0
    }

    /// Its virtual address.
    pub fn vaddr(self) -> u64 {
        // SAFETY: as above.
        unsafe { (api().tb_vaddr)(self.0) }
    }

    /// Instruction `index`, or `None` past the last.
    pub fn insn(self, index: usize) -> Option<Insn> {
        // SAFETY: as above; QEMU does not check the index, so it is checked here.
        (index < self.len()).then(|| Insn(unsafe { (api().tb_get_insn)(self.0, index) }))
    }
}

/// The bytes of an instruction.
pub struct InsnBytes {
    bytes: [u8; 16],
    len: usize,
}

impl std::ops::Deref for InsnBytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

impl Insn {
    /// Its virtual address.
    pub fn vaddr(self) -> u64 {
        // SAFETY: instructions live as long as their block.
        unsafe { (api().insn_vaddr)(self.0) }
    }

    /// The host address of its bytes; null if they are not in RAM.
    pub fn host_address(self) -> *const u8 {
        // SAFETY: as above.
        unsafe { (api().insn_haddr)(self.0) }.cast_const().cast()
    }

    /// Its bytes. x86 instructions have at most 15.
    pub fn bytes(self) -> InsnBytes {
        let mut bytes = InsnBytes { bytes: [0; 16], len: 0 };
        // SAFETY: as above; QEMU writes no more than the length it is given, which is the buffer's.
        unsafe {
            (api().insn_data)(self.0, bytes.bytes.as_mut_ptr().cast(), bytes.bytes.len());
            bytes.len = (api().insn_size)(self.0).min(bytes.bytes.len());
        }
        bytes
    }

    /// Calls `callback` each time the instruction is about to execute. The callback may read
    /// registers. `userdata` is passed on and never dereferenced.
    pub fn on_exec(self, callback: ExecCallback, userdata: usize) {
        // SAFETY: as above; the callback is a plain function and outlives the process.
        unsafe { (api().register_insn_exec)(self.0, callback, READ_REGS, userdata as *mut c_void) }
    }

    /// Calls `callback` after each store of the instruction. `userdata` is passed on and never
    /// dereferenced.
    ///
    /// The registers in the vCPU's state are those before the instruction, since TCG writes them
    /// back before each access that may fault (liveness_pass_1(), tcg/tcg.c, QEMU 9.2 to 11.1).
    pub(super) fn on_mem(self, callback: MemCallback, userdata: usize) {
        // SAFETY: as for `on_exec`.
        unsafe { (api().register_insn_mem)(self.0, callback, NO_REGS, MEM_W, userdata as *mut c_void) }
    }

    /// As [`Insn::on_exec`], but only while the vCPU's value of `flag` is not 0.
    pub fn on_exec_if(self, flag: Flag, callback: ExecCallback, userdata: usize) {
        // SAFETY: as for `on_exec`; the scoreboard behind `flag` is never freed.
        unsafe {
            (api().register_insn_exec_cond)(self.0, callback, READ_REGS, COND_NE, flag.0, 0, userdata as *mut c_void)
        }
    }
}

/// One `u64` for each vCPU, which translated code can test by itself.
#[derive(Clone, Copy)]
pub struct Flag(qemu_plugin_u64);

// SAFETY: the scoreboard pointer is only passed back to QEMU, whose scoreboard functions may be
// called from any thread.
unsafe impl Send for Flag {}
// SAFETY: as above.
unsafe impl Sync for Flag {}

impl Flag {
    /// The only flag. It keeps its value until it is set.
    pub fn get() -> Flag {
        /// Translated code may use it for ever, so it is never freed.
        static FLAG: OnceLock<Flag> = OnceLock::new();
        *FLAG.get_or_init(|| {
            // SAFETY: plain allocation by QEMU.
            let score = unsafe { (api().scoreboard_new)(8) };
            Flag(qemu_plugin_u64 { score, offset: 0 })
        })
    }

    /// Sets it for all vCPUs. With thread=single, translated code tests the slot of the vCPU that
    /// translated it, not of the one that runs it. So all slots must have the same value.
    pub fn set(self, value: u64) {
        // SAFETY: slots exist for every vCPU index below num_vcpus; each is a naturally aligned
        // u64.
        unsafe {
            for vcpu in 0..(api().num_vcpus)().max(0) as c_uint {
                (api().u64_set)(self.0, vcpu, value);
            }
        }
    }
}

/// The C string at `s`, or empty for null.
///
/// # Safety
/// `s` is null or a C string that lives for the call.
pub unsafe fn string(s: *const c_char) -> String {
    if s.is_null() {
        return String::new();
    }
    // SAFETY: by this function's own contract.
    unsafe { CStr::from_ptr(s) }.to_string_lossy().into_owned()
}
