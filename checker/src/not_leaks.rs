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
use guest_symbols::memory::{StoppedMemory, VirtAddr};

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
    let unmarked: Vec<u32> = marker.unmarked().filter(|&i| !blocks.rules.is_weak(i)).collect();
    for i in unmarked {
        let block = &blocks.blocks[i as usize];
        // An object before it may have marked it.
        if marker.is_marked(i) {
            continue;
        }
        let reason = match block.seen() {
            true => explain(kernel, blocks.allocations, blocks.object(block)).map(|entry| entry.reason),
            false => is_sysctl_header(kernel, blocks, block).then_some(SYSCTL_HEADER),
        };
        if let Some(reason) = reason {
            marker.root_block(i);
            hits.push(reason);
        }
    }
    hits
}

const SYSCTL_HEADER: &str = "sysctl headers that are registered in the first namespace are never freed";

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
