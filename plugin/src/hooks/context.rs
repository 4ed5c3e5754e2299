//! The task, or the kind of interrupt, that runs on the current CPU.

use guest_symbols::memory::{GuestMemory, VirtAddr};
use guest_symbols::view::View;
use guest_symbols::{Kernel, PhysAddr};

/// include/linux/preempt.h: hardirq nesting, and a softirq being served.
const HARDIRQ_MASK: u32 = 0x000f_0000;
const SOFTIRQ_OFFSET: u32 = 0x0000_0100;

/// Addresses and offsets in the running kernel, resolved once.
#[derive(Debug, Clone, Copy)]
pub struct Context {
    /// Per-CPU addresses of the pointer to the current task, and of the preemption count.
    current: Option<u64>,
    preempt_count: Option<u64>,
    comm: u64,
    pid: u64,
    tgid: u64,
    /// Per-CPU address of the CPU's number.
    cpu: Option<u64>,
    jiffies: Option<PhysAddr>,
}

/// The allocating context, as kmemleak records it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Who {
    /// NUL-padded; `hardirq` or `softirq` in interrupts.
    pub comm: [u8; 16],
    /// 0 in interrupts.
    pub pid: u32,
    /// The process's pid; 0 in interrupts.
    pub tgid: u32,
    /// The CPU's number.
    pub cpu: u32,
}

impl Context {
    /// Resolves the offsets.
    pub fn new(kernel: &Kernel) -> Context {
        // 6.2 to 6.14 keep the hot per-CPU variables in one struct
        // (arch/x86/include/asm/current.h).
        let hot = |member| Some(kernel.symbols.lookup("pcpu_hot")?.wrapping_add(kernel.offset_of("pcpu_hot", member)?));
        let task = |member| kernel.offset_of("task_struct", member);
        Context {
            current: kernel
                .symbols
                .lookup("current_task")
                .or_else(|| hot("current_task"))
                .filter(|_| task("comm").is_some()),
            preempt_count: kernel.symbols.lookup("__preempt_count").or_else(|| hot("preempt_count")),
            comm: task("comm").unwrap_or(0),
            pid: task("pid").unwrap_or(0),
            tgid: task("tgid").unwrap_or(0),
            cpu: kernel.symbols.lookup("cpu_number").or_else(|| hot("cpu_number")),
            jiffies: kernel.symbol("jiffies_64").or_else(|| kernel.symbol("jiffies")).map(|at| kernel.image_phys(at)),
        }
    }

    /// The guest's jiffies; 0 where they cannot be read.
    pub fn jiffies(&self, memory: &impl GuestMemory) -> u64 {
        self.jiffies.and_then(|at| memory.read_u64(at).ok()).unwrap_or(0)
    }

    /// The task that runs on the CPU whose per-CPU memory is at `base`; `None` before there are
    /// tasks.
    pub fn task(&self, memory: &View<'_, impl GuestMemory>, base: VirtAddr) -> Option<VirtAddr> {
        memory.read_u64(base.offset(self.current?)).ok().filter(|&task| task != 0).map(VirtAddr)
    }

    /// The context of the CPU whose per-CPU memory is at `base`.
    pub fn who(&self, memory: &View<'_, impl GuestMemory>, base: VirtAddr) -> Who {
        let percpu = |at: Option<u64>| at.map(|at| base.offset(at));
        let cpu = percpu(self.cpu).and_then(|at| memory.read_u32(at).ok()).unwrap_or(0);
        let named = |name: &[u8]| {
            let mut comm = [0; 16];
            comm[..name.len()].copy_from_slice(name);
            Who { comm, pid: 0, tgid: 0, cpu }
        };
        let count = percpu(self.preempt_count).and_then(|at| memory.read_u32(at).ok()).unwrap_or(0);
        if count & HARDIRQ_MASK != 0 {
            return named(b"hardirq");
        }
        if count & SOFTIRQ_OFFSET != 0 {
            return named(b"softirq");
        }
        let read = || {
            let task = self.task(memory, base)?;
            let mut comm = [0; 16];
            memory.read(task.offset(self.comm), &mut comm).ok()?;
            let id = |at| memory.read_u32(task.offset(at)).ok();
            Some(Who { comm, pid: id(self.pid)?, tgid: id(self.tgid)?, cpu })
        };
        // Before there are tasks, the kernel runs in the context of the later idle task.
        read().unwrap_or_else(|| named(b"swapper"))
    }
}
