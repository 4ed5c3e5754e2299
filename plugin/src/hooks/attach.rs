//! Attaches to a kernel that runs already when it is found: the guest comes from a file or from
//! another QEMU (`-loadvm`, `-incoming`, loadvm).

use super::tracker::Tracker;
use crate::ffi::ram::Ram;
use guest_symbols::Kernel;
use guest_symbols::memory::VirtAddr;
use guest_symbols::modules::Module;

/// CONFIG_HZ (kernel/Kconfig.hz).
const HZ: [u32; 4] = [100, 250, 300, 1000];
/// Most entries of a kernel list.
const MAX_ENTRIES: usize = 1 << 12;
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
        let modules = entries(kernel, ram, "modules", kernel.offset_of("module", "list"));
        let programs = entries(kernel, ram, "bpf_kallsyms", kernel.offset_of("bpf_ksym", "lnode"));
        modules.into_iter().for_each(|at| self.loaded(Module::read(kernel, ram, at)));
        programs.into_iter().for_each(|at| self.loaded(Module::read_bpf(kernel, ram, at)));
    }
}

/// The entries of the list with this head. `links` is the offset of the `list_head` in an entry.
fn entries(kernel: &Kernel, ram: &Ram, head: &str, links: Option<u64>) -> Vec<VirtAddr> {
    let (Some(head), Some(links)) = (kernel.symbol(head), links) else { return Vec::new() };
    let next = |at: &VirtAddr| kernel.read_u64(ram, *at).ok().map(VirtAddr);
    std::iter::successors(next(&head), next)
        .take_while(|at| *at != head && at.is_kernel())
        .take(MAX_ENTRIES)
        .map(|at| VirtAddr(at.0.wrapping_sub(links)))
        .collect()
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
