//! Attaches to a kernel that runs already when it is found: the guest comes from a file or from
//! another QEMU (`-loadvm`, `-incoming`, loadvm).

use super::tracker::Tracker;
use crate::ffi::ram::Ram;
use guest_symbols::Kernel;
use guest_symbols::modules::{self, Module};

/// CONFIG_HZ (kernel/Kconfig.hz).
const HZ: [u32; 4] = [100, 250, 300, 1000];

/// Whether a kernel has run before. Then it is no longer booting (`system_state`, init/main.c), or
/// its clock differs from INITIAL_JIFFIES (include/linux/jiffies.h). Both variables are initialised
/// data, so they are valid from the first block on.
pub fn has_run(kernel: &Kernel, ram: &Ram) -> bool {
    let state = kernel.variable(ram, "system_state").unwrap_or(0) as u32;
    let jiffies = kernel.variable(ram, "jiffies_64").or_else(|| kernel.variable(ram, "jiffies"));
    state != 0 || jiffies.is_some_and(|jiffies| !is_initial(jiffies))
}

fn is_initial(jiffies: u64) -> bool {
    HZ.iter().any(|hz| jiffies == u64::from((300 * hz).wrapping_neg()))
}

impl Tracker {
    /// The kernel has run before. Only its allocator metadata knows earlier allocations, as after
    /// loadvm. Modules are read now.
    pub fn join(&self) {
        self.time.join();
        self.read_loaded();
    }

    /// Reads modules and BPF programs from the kernel's lists.
    pub fn read_loaded(&self) {
        let (kernel, ram) = (&self.guest.kernel, &self.guest.ram);
        let modules = modules::list(kernel, ram);
        let programs = modules::entries(kernel, ram, "bpf_kallsyms", kernel.offset_of("bpf_ksym", "lnode"));
        modules.into_iter().for_each(|at| self.loaded(Module::read(kernel, ram, at)));
        programs.into_iter().for_each(|at| self.loaded(Module::read_bpf(kernel, ram, at)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn where_a_clock_starts() {
        assert!(is_initial(0xfffe_db08) && is_initial(0xfffb_6c20));
        assert!(!is_initial(0xfffe_db09) && !is_initial(0) && !is_initial(0xffff_ffff_fffe_db08));
    }
}
