//! Where the kernel's code lies, and how its frames are unwound.

use guest_symbols::Kernel;
use guest_symbols::memory::{GuestMemory, StoppedMemory, VirtAddr};
use guest_symbols::modules::Module;
use guest_symbols::unwind::orc::Table;
use guest_symbols::unwind::step::{GENERATED, has_frame_pointers};
use guest_symbols::unwind::walk::Method;
use parking_lot::RwLock;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Functions that are examined for frame pointers.
const SAMPLE: usize = 2000;
/// End of modules and generated code, where fixed mappings begin
/// (Documentation/arch/x86/x86_64/mm.rst).
const MODULES_END: u64 = 0xffff_ffff_ff00_0000;
/// Most tracers in the kernel's list.
const MAX_OPS: usize = 1 << 10;
/// FTRACE_OPS_FL_SAVE_REGS (include/linux/ftrace.h).
const SAVE_REGS: u64 = 1 << 2;

/// A module's code, and its ORC table.
struct ModuleCode {
    ranges: Vec<Range<u64>>,
    orc: Option<Arc<Table>>,
}

/// The kernel's code by virtual addresses.
pub struct Code {
    text: Range<u64>,
    init_text: Range<u64>,
    image_end: u64,
    frame_pointers: bool,
    /// Modules that are loaded, and unloaded ones whose addresses are not in use again.
    modules: RwLock<Vec<ModuleCode>>,
    generation: AtomicU64,
    /// Addresses that tracers put on the stack in place of a return address.
    tracers: [u64; 3],
}

impl Code {
    /// Finds the code of the kernel's image.
    pub fn new(kernel: &Kernel, memory: &impl StoppedMemory) -> Code {
        let at = |name| kernel.symbols.lookup(name).unwrap_or(0);
        let text = at("_stext")..at("_etext");
        let bytes = memory.run(kernel.image_phys(VirtAddr(text.start)), text.end.saturating_sub(text.start) as usize);
        let functions =
            kernel.symbols.iter().filter(|s| s.kind == b'T' && text.contains(&s.addr)).step_by(8).take(SAMPLE);
        let frame_pointers =
            kernel.orc.is_none() && has_frame_pointers(bytes, functions.map(|s| (s.addr - text.start) as usize));
        if kernel.orc.is_none() && !frame_pointers {
            log::warn!(
                "this kernel has neither ORC tables nor frame pointers, so backtraces have two frames; build it with CONFIG_UNWINDER_ORC for whole ones"
            );
        }
        Code {
            text,
            init_text: at("_sinittext")..at("_einittext"),
            image_end: at("_end"),
            frame_pointers,
            modules: RwLock::default(),
            generation: AtomicU64::new(0),
            tracers: ["return_to_handler", "arch_rethook_trampoline", "kretprobe_trampoline"].map(at),
        }
    }

    /// Adds a module that was loaded.
    pub fn add(&self, module: &Module) {
        let mut modules = self.modules.write();
        // Earlier modules at the same addresses are gone.
        let overlaps = |a: &Range<u64>| module.ranges.iter().any(|b| a.start < b.end && b.start < a.end);
        modules.retain_mut(|m| {
            m.ranges.retain(|r| !overlaps(r));
            !m.ranges.is_empty()
        });
        modules.push(ModuleCode { ranges: module.ranges.clone(), orc: module.orc.clone() });
        self.generation.fetch_add(1, Ordering::Release);
    }

    /// Increases with each module.
    pub fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    /// Whether a virtual address may be code.
    #[inline]
    pub fn is_text(&self, at: u64) -> bool {
        self.text.contains(&at) || self.init_text.contains(&at) || (self.image_end..MODULES_END).contains(&at)
    }

    /// Whether a tracer put this address in place of a return address.
    #[inline]
    pub fn is_tracer(&self, at: u64) -> bool {
        at != 0 && self.tracers.contains(&at)
    }

    /// How to unwind a frame whose code is at virtual address `at`.
    pub fn method(&self, kernel: &Kernel, memory: &impl GuestMemory, at: u64) -> Method {
        let Some(orc) = &kernel.orc else {
            return if self.frame_pointers { Method::FramePointer } else { Method::Unknown };
        };
        if at < self.image_end {
            return orc.lookup(at).map_or(Method::Unknown, Method::Rule);
        }
        let modules = self.modules.read();
        let module = modules.iter().find(|m| m.ranges.iter().any(|r| r.contains(&at)));
        if let Some(table) = module.and_then(|m| m.orc.as_ref()) {
            return orc.lookup_in(table, at).map_or(Method::Unknown, Method::Rule);
        }
        drop(modules);
        let copied_from = trampoline(kernel, memory, at).and_then(|original| orc.lookup(original));
        Method::Rule(copied_from.unwrap_or(GENERATED))
    }
}

/// The address in the kernel's image that a tracer's trampoline at `at` was copied from
/// (orc_ftrace_find(), arch/x86/kernel/unwind_orc.c).
fn trampoline(kernel: &Kernel, memory: &impl GuestMemory, at: u64) -> Option<u64> {
    let field = |name| kernel.offset_of("ftrace_ops", name);
    let (next, flags, start, size) = (field("next")?, field("flags")?, field("trampoline")?, field("trampoline_size")?);
    let read = |at: u64| kernel.read_u64(memory, VirtAddr(at)).ok();
    let end = kernel.symbols.lookup("ftrace_list_end")?;
    let mut ops = read(kernel.symbols.lookup("ftrace_ops_list")?)?;
    for _ in 0..MAX_OPS {
        if ops == end || ops == 0 {
            return None;
        }
        let offset = at.wrapping_sub(read(ops.wrapping_add(start))?);
        if offset < read(ops.wrapping_add(size))? {
            let saves = read(ops.wrapping_add(flags))? & SAVE_REGS != 0;
            let name = if saves { "ftrace_regs_caller" } else { "ftrace_caller" };
            return Some(kernel.symbols.lookup(name)?.wrapping_add(offset));
        }
        ops = read(ops.wrapping_add(next))?;
    }
    None
}
