//! Unreferenced objects that are not leaks.
//!
//! The kernel declares them to kmemleak with kmemleak_not_leak() or kmemleak_ignore(). From
//! outside, only the allocation site shows that. Objects that can be understood from the kernel's
//! structures have no entry here.

use crate::allocations::Allocations;
use crate::blocks::{Block, Blocks};
use detector::objects::Object;
use detector::scan::Marker;
use guest_symbols::Kernel;
use guest_symbols::kernel::START_KERNEL_MAP;
use guest_symbols::memory::{StoppedMemory, VirtAddr};
use std::cell::LazyCell;
use std::collections::HashSet;

/// The allocations that an entry applies to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum When {
    /// Allocations before the kernel starts init: by the idle task, or by pid 1 while its name is
    /// still swapper.
    Boot,
    /// All allocations of this site, as in the kernel's own declaration.
    Always,
}

/// An allocation site whose objects are not leaks.
pub struct NotLeak {
    /// The function that called the allocator.
    caller: &'static str,
    when: When,
    /// Why its objects are not leaks, and the kernel source that shows it.
    pub reason: &'static str,
}

const TABLE: &[NotLeak] = &[
    NotLeak {
        caller: "__register_sysctl_table",
        when: When::Boot,
        reason: "sysctl headers registered at boot are never freed (register_sysctl_init, fs/proc/proc_sysctl.c, 5.18 on)",
    },
    NotLeak {
        caller: "__register_sysctl_paths",
        when: When::Boot,
        reason: "sysctl headers registered at boot are never freed (register_sysctl_paths, fs/proc/proc_sysctl.c, to 6.4)",
    },
    NotLeak {
        caller: "futex_init",
        when: When::Boot,
        reason: "the futex hash is referred to by patched instructions only (runtime_const_init, kernel/futex/core.c, 6.17 on)",
    },
    NotLeak {
        caller: "nfs_readdir_copy_name",
        when: When::Always,
        reason: "names in cached NFS directories are referred to by page-cache pages alone (fs/nfs/dir.c, all)",
    },
    NotLeak {
        caller: "nfs_readdir_folio_array_append",
        when: When::Always,
        reason: "names in cached NFS directories (the same inlined, in newer kernels)",
    },
    NotLeak {
        caller: "nfs_readdir_page_array_append",
        when: When::Always,
        reason: "names in cached NFS directories (the same inlined, in older kernels)",
    },
    NotLeak {
        caller: "nfs_readdir_add_to_array",
        when: When::Always,
        reason: "names in cached NFS directories (the same inlined, in 5.10)",
    },
    NotLeak {
        caller: "alloc_page_ext",
        when: When::Always,
        reason: "page_ext is referred to by an address less its first frame's number (init_section_page_ext, mm/page_ext.c, all)",
    },
    NotLeak {
        caller: "init_section_page_ext",
        when: When::Always,
        reason: "page_ext is referred to by an address less its first frame's number (the same inlined)",
    },
    NotLeak {
        caller: "init_z3fold_page",
        when: When::Always,
        reason: "slots of z3fold pages are freed with their handles (alloc_slots inlined, mm/z3fold.c, to 6.14)",
    },
    NotLeak {
        caller: "acpi_ut_allocate_object_desc_dbg",
        when: When::Always,
        reason: "ACPI's own objects are counted by ACPI (acpi_ut_create_internal_object_dbg, drivers/acpi/acpica/utobject.c, all)",
    },
    NotLeak {
        caller: "acpi_ut_create_internal_object_dbg",
        when: When::Always,
        reason: "ACPI's own objects are counted by ACPI (the same, with the function above inlined)",
    },
];

/// Marks the objects that the table explains as reachable, so that objects they refer to are not
/// leaks either. Returns the reason for each object that nothing else referred to. Call it after
/// everything else is marked.
pub fn mark<M: StoppedMemory>(kernel: &Kernel, blocks: &Blocks<'_, M>, marker: &mut Marker) -> Vec<&'static str> {
    let mut hits = Vec::new();
    // Reading all code takes a while, and it is rarely needed.
    let constants = LazyCell::new(|| code_constants(kernel, blocks.memory));
    let unmarked: Vec<u32> = marker.unmarked().filter(|&i| !blocks.rules.is_weak(i)).collect();
    for i in unmarked {
        let block = &blocks.blocks[i as usize];
        // An object before it may have marked it.
        if marker.is_marked(i) {
            continue;
        }
        let reason = match block.seen() {
            true => explain(kernel, blocks.allocations, blocks.object(block)).map(|entry| entry.reason),
            false => match () {
                () if is_sysctl_header(kernel, blocks, block) => Some(SYSCTL_HEADER),
                () if is_sysctl_base(kernel, blocks, block) => Some(SYSCTL_BASE),
                () if constants.contains(&block.addr) => Some(CODE_CONSTANT),
                () => None,
            },
        };
        if let Some(reason) = reason {
            marker.root_block(i);
            hits.push(reason);
        }
    }
    hits
}

const SYSCTL_HEADER: &str = "sysctl headers that are registered in the first namespace are never freed";

const SYSCTL_BASE: &str =
    "sysctl headers registered at boot are never freed (register_sysctl_paths, fs/proc/proc_sysctl.c, to 6.4)";
const CODE_CONSTANT: &str = "it is referred to by instructions (runtime_const_init, 6.17 on for the futex hash)";

/// Bytes of code that are read at once.
const CODE: u64 = 1 << 20;
/// Bytes of an instruction that loads a constant of 64 bits into a register: REX.W, opcode,
/// constant.
const MOV_LEN: usize = 10;

/// Constants in the kernel's code that may be addresses of objects. The kernel patches them in at
/// boot (arch/x86/include/asm/runtime-const.h, 6.11 on).
fn code_constants(kernel: &Kernel, memory: &impl StoppedMemory) -> HashSet<u64> {
    let mut found = HashSet::new();
    let (Some(start), Some(end)) = (kernel.symbol("_stext"), kernel.symbol("_etext")) else { return found };
    // Text is at most as large as the image's mapping.
    let end = end.0.min(start.0.saturating_add(1 << 30));
    let mut code = vec![0; CODE as usize + MOV_LEN];
    for at in (start.0..end).step_by(CODE as usize) {
        let len = (end - at).min(code.len() as u64) as usize;
        if kernel.read(memory, VirtAddr(at), &mut code[..len]).is_err() {
            continue;
        }
        for mov in code[..len].windows(MOV_LEN) {
            if let [0x48 | 0x49, 0xb8..=0xbf, constant @ ..] = mov {
                let constant = constant.try_into().map_or(0, u64::from_le_bytes);
                // Addresses of the image itself are of no interest.
                if VirtAddr(constant).is_kernel() && constant < START_KERNEL_MAP {
                    found.insert(constant);
                }
            }
        }
    }
    found
}

/// Whether an object whose allocation was not seen is the header of several tables: it has no root,
/// but a table of the image, and the headers follow it.
fn is_sysctl_base<M: StoppedMemory>(kernel: &Kernel, blocks: &Blocks<'_, M>, block: &Block) -> bool {
    let is = || {
        let at = |offset| VirtAddr(block.addr).offset(offset);
        let word = |at| kernel.read_u64(blocks.memory, at).ok();
        let size = kernel.btf.as_ref()?.size_of("ctl_table_header").filter(|size| size + 8 <= block.size)?;
        let table = word(at(kernel.offset_of("ctl_table_header", "ctl_table_arg")?))?;
        let root = kernel.offset_of("ctl_table_header", "root")?;
        let header = VirtAddr(word(at(size))?);
        let image = kernel.symbol("_text")?.0..kernel.symbol("_end")?.0;
        Some(
            image.contains(&table)
                && word(at(root))? == 0
                && word(header.offset(root))? == kernel.symbol("sysctl_table_root")?.0,
        )
    };
    is().unwrap_or(false)
}

/// Whether an object whose allocation was not seen is a sysctl header. A header has a pointer to
/// the common root of all headers at a fixed offset.
fn is_sysctl_header<M: StoppedMemory>(kernel: &Kernel, blocks: &Blocks<'_, M>, block: &Block) -> bool {
    let root = kernel.offset_of("ctl_table_header", "root").filter(|o| o + 8 <= block.size);
    let at = root.and_then(|o| kernel.read_u64(blocks.memory, VirtAddr(block.addr).offset(o)).ok());
    at.is_some_and(|at| Some(VirtAddr(at)) == kernel.symbol("sysctl_table_root"))
}

/// The entry that explains an unreferenced object, if there is one.
fn explain(kernel: &Kernel, allocations: Allocations<'_>, object: &Object) -> Option<&'static NotLeak> {
    let caller = allocations.caller(kernel, object.stack())?;
    let at_boot = allocations.objects.comm(object).starts_with(b"swapper") && object.pid() <= 1;
    TABLE.iter().find(|k| {
        k.caller == caller
            && match k.when {
                When::Boot => at_boot,
                When::Always => true,
            }
    })
}
