//! Stores of the guest, in the callbacks that QEMU makes after them.

use super::api::{Insn, api};
use guest_symbols::memory::PhysAddr;
use libc::{c_uint, c_void};
use qemu_plugin_sys::qemu_plugin_mem_value_type as ValueType;

/// A store that an instruction has just made.
#[derive(Debug)]
pub struct Store {
    access: c_uint,
    /// The virtual address.
    pub at: u64,
}

/// A handler of stores.
pub trait OnStore {
    /// An instruction has made a store. `data` is what the instruction was registered with.
    fn stored(store: Store, data: u64);
}

/// Calls `H` after each store of an instruction. The handler may read registers.
pub fn on_store<H: OnStore>(insn: Insn, data: usize) {
    extern "C" fn callback<H: OnStore>(_vcpu: c_uint, access: c_uint, at: u64, data: *mut c_void) {
        super::guard(|| H::stored(Store { access, at }, data as u64));
    }
    insn.on_mem(callback::<H>, data);
}

impl Store {
    /// How many bytes were stored.
    #[inline]
    pub fn bytes(&self) -> u64 {
        // SAFETY: it decodes a number.
        1 << unsafe { (api().mem_size_shift)(self.access) }.min(8)
    }

    /// The value; that of a compare-and-exchange that failed was not stored. `None` if it has more
    /// than 8 bytes.
    #[inline]
    pub fn value(&self) -> Option<u64> {
        // SAFETY: this is the store's own callback, since only that makes a `Store`. QEMU says which
        // member of the union it has set.
        unsafe {
            let value = (api().mem_get_value)(self.access);
            match value.type_ {
                ValueType::QEMU_PLUGIN_MEM_VALUE_U64 => Some(value.data.u64_),
                ValueType::QEMU_PLUGIN_MEM_VALUE_U128 => None,
                _ => Some(0),
            }
        }
    }

    /// The guest physical address. `None` if it is that of a device.
    pub fn phys(&self) -> Option<PhysAddr> {
        // SAFETY: this is the store's own callback, so its address is in the vCPU's TLB. QEMU's
        // result is valid in this callback.
        unsafe {
            let found = (api().get_hwaddr)(self.access, self.at);
            (!found.is_null() && !(api().hwaddr_is_io)(found)).then(|| PhysAddr((api().hwaddr_phys)(found)))
        }
    }
}
