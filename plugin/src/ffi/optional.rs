//! Functions of QEMU beyond the plugin API. Builds with loadable modules, as distributions make
//! them, export every function; others export the plugin API alone. So each function may be
//! missing, and each use has a way without.

use super::api::lookup;
use libc::{c_char, c_int, c_void};
use qemu_plugin_sys::GByteArray;

/// `CPUState *`.
pub type CpuState = *mut c_void;
/// `run_on_cpu_func`; `run_on_cpu_data` is a union of 8 bytes (include/hw/core/cpu.h).
pub type CpuWork = extern "C" fn(CpuState, u64);
/// `RAMBlockIterFunc` (include/exec/cpu-common.h).
pub type EachBlock = extern "C" fn(*mut c_void, *mut c_void) -> c_int;
/// `flatview_cb` (include/exec/memory.h): start, length, region, offset in it, opaque. Start and
/// length are Int128, each in two registers, the lower half first.
pub type EachRange = extern "C" fn(u64, u64, u64, u64, *mut c_void, u64, *mut c_void) -> bool;
/// `QEMUResetHandler` (include/system/reset.h).
pub type ResetHandler = extern "C" fn(*mut c_void);

/// `Notifier` (include/qemu/notify.h, QEMU 9.2 to 11.1).
#[repr(C)]
pub struct Notifier {
    /// What is called, with this notifier and what the list of notifiers passes on.
    pub notify: extern "C" fn(*mut Notifier, *mut c_void),
    /// Links of QEMU's list.
    pub node: [*mut c_void; 2],
}

macro_rules! optional {
    ($($(#[$doc:meta])* $name:ident: fn($($arg:ty),*) $(-> $ret:ty)?;)*) => {
        $(
            $(#[$doc])*
            ///
            /// `None` where this build of QEMU does not export the function.
            pub fn $name() -> Option<unsafe extern "C" fn($($arg),*) $(-> $ret)?> {
                let found = lookup(stringify!($name))?;
                // SAFETY: the symbol is QEMU's function of that name, whose C signature in QEMU 9.2
                // to 11.1 is this one, by the header that stands above it in the table.
                Some(unsafe {
                    std::mem::transmute::<*mut c_void, unsafe extern "C" fn($($arg),*) $(-> $ret)?>(found)
                })
            }
        )*
    };
}

optional! {
    /// (callback, opaque): calls back for each RAM block (include/exec/cpu-common.h).
    qemu_ram_foreach_block: fn(EachBlock, *mut c_void) -> c_int;
    /// (block): its host address (include/exec/cpu-common.h).
    qemu_ram_get_host_addr: fn(*mut c_void) -> *mut c_void;
    /// (block): its length in bytes (include/exec/cpu-common.h).
    qemu_ram_get_used_length: fn(*mut c_void) -> u64;
    /// (notifier): links a `RAMBlockNotifier` into a list of the main thread
    /// (include/exec/ramlist.h).
    ram_block_notifier_add: fn(*mut c_void);

    /// (space, physical address, length, is a write, attributes): the host address, null for what
    /// is no RAM, and how far it is one run. `MemTxAttrs` has at most 8 bytes and is passed in one
    /// register; all zeroes is a plain access (include/exec/memory.h).
    address_space_map: fn(*mut c_void, u64, *mut u64, bool, u64) -> *mut c_void;
    /// (space, host address, length, is a write, bytes accessed): undoes the former
    /// (include/exec/memory.h).
    address_space_unmap: fn(*mut c_void, *mut c_void, u64, bool, u64);
    /// (space): its current view, with a reference taken under QEMU's RCU
    /// (system/memory-internal.h).
    address_space_get_flatview: fn(*mut c_void) -> *mut c_void;
    /// (view): gives up a reference (include/exec/memory.h).
    flatview_unref: fn(*mut c_void);
    /// (view, callback, opaque): calls back for each range (include/exec/memory.h).
    flatview_for_each_range: fn(*mut c_void, EachRange, *mut c_void);
    /// (region): its address in QEMU's space of RAM, RAM_ADDR_INVALID for a region without
    /// (include/exec/memory.h).
    memory_region_get_ram_addr: fn(*mut c_void) -> u64;
    /// (region): the host address of its RAM (include/exec/memory.h).
    memory_region_get_ram_ptr: fn(*mut c_void) -> *mut c_void;
    /// (region): the object that it belongs to (include/exec/memory.h).
    memory_region_owner: fn(*mut c_void) -> *mut c_void;
    /// (object, type): the object, or null if it is not of the type (include/qom/object.h).
    object_dynamic_cast: fn(*mut c_void, *const c_char) -> *mut c_void;

    /// (index): the vCPU, null if there is none; searches a list (include/hw/core/cpu.h).
    qemu_get_cpu: fn(c_int) -> CpuState;
    /// (): locks the list of vCPUs (include/exec/cpu-common.h).
    cpu_list_lock: fn();
    /// (): unlocks it (include/exec/cpu-common.h).
    cpu_list_unlock: fn();
    /// (vCPU, work, data): runs the work on the vCPU's thread, while no vCPU executes; from any
    /// thread (include/hw/core/cpu.h).
    async_safe_run_on_cpu: fn(CpuState, CpuWork, u64);
    /// (vCPU, work, data): runs the work on the vCPU's thread, with QEMU's big lock; from any
    /// thread. A stopped vCPU runs it too: qemu_wait_io_event(), system/cpus.c
    /// (include/hw/core/cpu.h).
    async_run_on_cpu: fn(CpuState, CpuWork, u64);
    /// (): throws away all translations, in an exclusive section (include/exec/tb-flush.h, QEMU
    /// 10.2 on).
    #[expect(non_snake_case, reason = "QEMU's name")]
    tb_flush__exclusive_or_serial: fn();
    /// (vCPU): throws away all translations, at once in an exclusive section
    /// (include/exec/tb-flush.h, to QEMU 10.1).
    tb_flush: fn(CpuState);
    /// (vCPU, buffer, number): appends a register as gdb numbers them (include/exec/gdbstub.h).
    gdb_read_register: fn(CpuState, *mut GByteArray, c_int) -> c_int;

    /// (): makes a thread known to QEMU's RCU (include/qemu/rcu.h).
    rcu_register_thread: fn();
    /// (): undoes the former, on the same thread (include/qemu/rcu.h).
    rcu_unregister_thread: fn();

    /// (): lets the guest run; needs QEMU's big lock (include/sysemu/runstate.h,
    /// include/system/runstate.h from 10.0 on).
    vm_start: fn();
    /// (): whether the guest runs; reads a variable (include/system/runstate.h).
    runstate_is_running: fn() -> bool;
    /// (notifier): has it called when the guest suspends itself; puts it into a list of the main
    /// thread (include/system/runstate.h).
    qemu_register_suspend_notifier: fn(*mut Notifier);
    /// (handler, opaque): has it called at each reset of the machine (include/system/reset.h).
    qemu_register_reset: fn(ResetHandler, *mut c_void);
    /// (handler, opaque): the same, but for the reset before a snapshot is loaded
    /// (include/system/reset.h).
    qemu_register_reset_nosnapshotload: fn(ResetHandler, *mut c_void);
}

/// The system address space (`AddressSpace address_space_memory`, include/exec/address-spaces.h).
pub fn address_space_memory() -> Option<*mut c_void> {
    lookup("address_space_memory")
}
