//! Which kernel functions allocate and free, as data.
//!
//! Every allocation calls one of the leaf functions here (mm/slub.c, mm/slab_common.c,
//! mm/vmalloc.c, mm/percpu.c; 5.10 to 7.3). Wrappers of a leaf are hooked too, so that the report
//! names the wrapper's caller. A wrapper that returns the object of an inner call only replaces the
//! call site. krealloc, kvmalloc, kmemdup and mempools call these functions. The running kernel's
//! symbols decide which of them exist. Positions of arguments come from BTF prototypes, by name;
//! without BTF, from the position that all known versions share.

use detector::objects::Kind;

/// An argument of a function.
#[derive(Debug, Clone, Copy)]
pub struct Arg {
    /// Its names in the prototypes of all versions.
    pub names: &'static [&'static str],
    /// Its position if there is no prototype, counted from 0.
    pub position: usize,
}

const fn arg(names: &'static [&'static str], position: usize) -> Arg {
    Arg { names, position }
}

/// What a function does.
#[derive(Debug, Clone, Copy)]
#[allow(missing_docs)] // The fields are the arguments their names say.
pub enum Effect {
    /// Returns one object of this kind. The second field is its size in bytes; the slab knows those
    /// of slab objects.
    Alloc(Kind, Option<Arg>),
    /// Returns the descriptor or the address of the first of 2^order pages. Without an argument for
    /// the order it is one page, or as many as an inner call allocated.
    AllocPages(Option<Arg>),
    /// Fills an array with page descriptors, and returns how many the array holds then.
    AllocPagesBulk { array: Arg },
    /// Fills an array with the requested number of slab objects, or returns 0.
    AllocBulk { count: Arg, array: Arg },
    /// Returns an object that a cache on top of the allocators may have kept until now.
    Take,
    /// Fills an array with such objects.
    TakeBulk { count: Arg, array: Arg },
    /// Frees one object.
    Free(Arg),
    /// Frees one vmalloc block. It may call another function of this effect.
    FreeVmalloc(Arg),
    /// Frees an array of slab objects.
    FreeBulk { count: Arg, array: Arg },
    /// Frees after a grace period. The second argument is the object, or the offset of the rcu_head
    /// in it.
    FreeRcu { head: Arg, object: Arg },
    /// Runs a module's init function. Only then are the module's symbols complete.
    ModuleLoad(Arg),
    /// Enters the symbol of a BPF program (kernel/bpf/core.c, 5.8 on).
    BpfSymbol(Arg),
    /// Copies memory for the image of hibernation (kernel/power/snapshot.c).
    SaveImage,
    /// Neither allocates nor frees.
    Event(Event<Arg>),
}

/// A call that neither allocates nor frees, and that markers or tests need. `A` is the type of the
/// arguments: [`Arg`], registers, or values.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)] // The fields are the arguments their names say.
pub enum Event<A> {
    /// Jumps to the kernel that kexec has loaded (arch/x86/kernel/machine_kexec_64.c).
    Kexec,
    /// Restores memory from the image of hibernation (arch/x86/power/hibernate_asm_64.S).
    RestoreImage,
    /// Writes what a process wrote to /proc/PID/comm (fs/proc/base.c).
    WriteComm { buf: A, count: A },
    /// Gives a task its name (fs/exec.c).
    SetComm,
    /// Writes what a process wrote to /dev/kmsg (kernel/printk/printk.c).
    WriteKmsg { from: A },
    /// Completes a record of the kernel's log (kernel/printk/printk_ringbuffer.c, 5.10 on).
    Printk { entry: A },
    /// The same for a record without an end of line, which may be continued.
    PrintkPart { entry: A },
    /// Writes what a process wrote to a terminal. The buffer is in kernel memory
    /// (drivers/tty/n_tty.c).
    WriteTty { tty: A, buf: A, count: A },
    /// Writes what a process wrote to a virtio port (drivers/char/virtio_console.c).
    WritePort { buf: A, count: A },
    /// Writes what a process wrote to a pipe (fs/pipe.c).
    WritePipe { iocb: A, from: A },
}

impl<A> Event<A> {
    /// Converts the arguments; `None` if one of them cannot be converted.
    pub fn map<B>(self, to: impl Fn(A) -> Option<B>) -> Option<Event<B>> {
        Some(match self {
            Event::Kexec => Event::Kexec,
            Event::RestoreImage => Event::RestoreImage,
            Event::WriteComm { buf, count } => Event::WriteComm { buf: to(buf)?, count: to(count)? },
            Event::SetComm => Event::SetComm,
            Event::WriteKmsg { from } => Event::WriteKmsg { from: to(from)? },
            Event::Printk { entry } => Event::Printk { entry: to(entry)? },
            Event::PrintkPart { entry } => Event::PrintkPart { entry: to(entry)? },
            Event::WriteTty { tty, buf, count } => Event::WriteTty { tty: to(tty)?, buf: to(buf)?, count: to(count)? },
            Event::WritePort { buf, count } => Event::WritePort { buf: to(buf)?, count: to(count)? },
            Event::WritePipe { iocb, from } => Event::WritePipe { iocb: to(iocb)?, from: to(from)? },
        })
    }
}

/// Functions of one family with the same effect.
pub struct Row {
    /// What a user would miss if none of them existed.
    pub family: &'static str,
    /// Names of the functions in all kernel versions.
    pub names: &'static [&'static str],
    /// What they do.
    pub effect: Effect,
}

const SIZE: Arg = arg(&["size"], 0);
const COUNT: Arg = arg(&["size", "nr"], 2);
const ARRAY: Arg = arg(&["p"], 3);

/// Allocators and free functions.
pub const TABLE: &[Row] = &[
    Row {
        family: "kmalloc",
        names: &[
            "__kmalloc",
            "__kmalloc_node",
            "__kmalloc_track_caller",
            "__kmalloc_node_track_caller",
            "kmem_cache_alloc_trace",
            "kmem_cache_alloc_node_trace",
            "__kmem_cache_alloc_node",
            "kmalloc_trace",
            "kmalloc_node_trace",
            "__kmalloc_noprof",
            "__kmalloc_node_noprof",
            "__kmalloc_node_track_caller_noprof",
            "__kmalloc_cache_noprof",
            "__kmalloc_cache_node_noprof",
            "__kmalloc_flags_noprof",
            "__kmalloc_nolock_noprof",
            "kmalloc_nolock_noprof",
            "__kvmalloc_node_noprof",
        ],
        effect: Effect::Alloc(Kind::Slab, None),
    },
    Row {
        family: "kmem_cache",
        names: &[
            "kmem_cache_alloc",
            "kmem_cache_alloc_node",
            "kmem_cache_alloc_lru",
            "kmem_cache_alloc_noprof",
            "kmem_cache_alloc_node_noprof",
            "kmem_cache_alloc_lru_noprof",
            "kmem_cache_alloc_from_sheaf_noprof",
        ],
        effect: Effect::Alloc(Kind::Slab, None),
    },
    Row {
        family: "bulk allocation",
        names: &["kmem_cache_alloc_bulk", "kmem_cache_alloc_bulk_noprof"],
        effect: Effect::AllocBulk { count: COUNT, array: ARRAY },
    },
    Row {
        family: "large kmalloc",
        names: &[
            "kmalloc_order",
            "kmalloc_large_node",
            "__kmalloc_large_node",
            "___kmalloc_large_node",
            "kmalloc_large",
            "__kmalloc_large_noprof",
            "__kmalloc_large_node_noprof",
        ],
        effect: Effect::Alloc(Kind::Large, Some(SIZE)),
    },
    Row {
        family: "vmalloc",
        names: &[
            "__vmalloc_node_range",
            "__vmalloc_node",
            "__vmalloc",
            "vmalloc",
            "vzalloc",
            "vmalloc_node",
            "vzalloc_node",
            "vmalloc_user",
            "vmalloc_32",
            "vmalloc_32_user",
            "vmalloc_huge",
            "__vmalloc_node_range_noprof",
            "__vmalloc_node_noprof",
            "__vmalloc_noprof",
            "vmalloc_noprof",
            "vzalloc_noprof",
            "vmalloc_node_noprof",
            "vzalloc_node_noprof",
            "vmalloc_user_noprof",
            "vmalloc_32_noprof",
            "vmalloc_32_user_noprof",
            "vmalloc_huge_noprof",
            "vmalloc_huge_node_noprof",
        ],
        effect: Effect::Alloc(Kind::Vmalloc, Some(SIZE)),
    },
    Row {
        family: "percpu",
        names: &["pcpu_alloc", "pcpu_alloc_noprof"],
        effect: Effect::Alloc(Kind::Percpu, Some(SIZE)),
    },
    Row { family: "kfree", names: &["kfree", "kfree_nolock"], effect: Effect::Free(arg(&["object", "objp", "x"], 0)) },
    Row { family: "kmem_cache_free", names: &["kmem_cache_free"], effect: Effect::Free(arg(&["x", "objp"], 1)) },
    Row {
        family: "bulk free",
        names: &["kmem_cache_free_bulk"],
        effect: Effect::FreeBulk { count: arg(&["size", "nr"], 1), array: arg(&["p"], 2) },
    },
    Row {
        family: "vfree",
        names: &["vfree", "vfree_atomic", "vfree.part.0"],
        effect: Effect::FreeVmalloc(arg(&["addr"], 0)),
    },
    Row { family: "free_percpu", names: &["free_percpu"], effect: Effect::Free(arg(&["ptr", "__pdata"], 0)) },
    Row {
        family: "kfree_rcu",
        names: &["kvfree_call_rcu", "kfree_call_rcu_nolock"],
        effect: Effect::FreeRcu { head: arg(&["head"], 0), object: arg(&["ptr", "func"], 1) },
    },
];

/// Functions that take objects from caches on top of the allocators. The taker owns the object, not
/// the code that filled the cache. A kernel may be built without any of them. Compilers inline
/// these functions and make variants (`.constprop.0`). So their callers are here as well: an object
/// that an inner one of them took keeps the inner stack.
pub const CACHES: &[Row] = &[
    // napi_skb_cache_get() (net/core/skbuff.c, 5.13 on). By 7.3 it is inlined into __alloc_skb()
    // and the others (net/core/gro.c).
    Row {
        family: "skb cache",
        names: &[
            "napi_skb_cache_get",
            "__alloc_skb",
            "__napi_build_skb",
            "napi_build_skb",
            "__napi_alloc_skb",
            "napi_alloc_skb",
            "napi_get_frags",
        ],
        effect: Effect::Take,
    },
    Row {
        family: "skb cache, many at once",
        names: &["napi_skb_cache_get_bulk"],
        effect: Effect::TakeBulk { count: arg(&["n"], 1), array: arg(&["skbs"], 0) },
    },
    // Elements that a mempool reserved when it was created, or got back since (mm/mempool.c).
    Row {
        family: "mempools",
        names: &["mempool_alloc", "mempool_alloc_noprof", "mempool_alloc_preallocated"],
        effect: Effect::Take,
    },
    Row {
        family: "mempools, many at once",
        names: &["mempool_alloc_bulk_noprof"],
        effect: Effect::TakeBulk { count: arg(&["count"], 2), array: arg(&["elems", "elem"], 1) },
    },
    // bpf_mem_alloc() and others return an address inside of this object
    // (kernel/bpf/memalloc.c, 6.1 on).
    Row { family: "BPF memory", names: &["unit_alloc"], effect: Effect::Take },
    // lib/radix-tree.c: nodes of radix_tree_preload() and idr_preload().
    Row {
        family: "radix tree nodes",
        names: &["radix_tree_node_alloc", "radix_tree_node_alloc.constprop.0", "radix_tree_node_alloc.isra.0"],
        effect: Effect::Take,
    },
    // Nodes that were allocated before a tree is changed (lib/maple_tree.c, 6.1 to 6.17).
    Row { family: "maple tree nodes", names: &["mas_pop_node"], effect: Effect::Take },
    // block/bio.c, 5.16 on: bios of a CPU.
    Row { family: "bios", names: &["bio_alloc_bioset"], effect: Effect::Take },
];

/// A function that takes an object from a cache, and callers that use the cache through it alone.
/// Compilers may inline the function into a caller. A caller that calls it needs no hook of its own
/// (net/core/skbuff.c, net/core/gro.c; 5.13 to 7.3). Inner callers come first.
pub const ONLY_THROUGH: &[(&str, &[&str])] = &[(
    "napi_skb_cache_get",
    &["__alloc_skb", "__napi_build_skb", "napi_build_skb", "__napi_alloc_skb", "napi_alloc_skb", "napi_get_frags"],
)];

/// Functions that load code, or start another kernel. A kernel may be built without them.
pub const CODE: &[Row] = &[
    Row { family: "module symbols", names: &["do_init_module"], effect: Effect::ModuleLoad(arg(&["mod"], 0)) },
    Row { family: "BPF symbols", names: &["bpf_ksym_add"], effect: Effect::BpfSymbol(arg(&["ksym"], 0)) },
    Row { family: "kexec", names: &["machine_kexec"], effect: Effect::Event(Event::Kexec) },
    Row { family: "hibernation", names: &["swsusp_save"], effect: Effect::SaveImage },
    Row { family: "resume from hibernation", names: &["restore_image"], effect: Effect::Event(Event::RestoreImage) },
];

const ORDER: Arg = arg(&["order"], 1);

/// Page allocators, for `pages=on` (mm/page_alloc.c, mm/mempolicy.c; 5.10 to 7.3). Free functions
/// are not hooked: page descriptors tell which pages are free.
pub const PAGES: &[Row] = &[
    Row {
        family: "page allocation",
        // The first one up to 5.12.
        names: &["__alloc_pages_nodemask", "__alloc_pages", "__alloc_pages_noprof", "__alloc_frozen_pages_noprof"],
        effect: Effect::AllocPages(Some(ORDER)),
    },
    Row {
        family: "bulk page allocation",
        names: &["__alloc_pages_bulk", "alloc_pages_bulk_noprof"],
        effect: Effect::AllocPagesBulk { array: arg(&["page_array"], 4) },
    },
    Row {
        family: "page allocation wrappers",
        names: &[
            "alloc_pages",
            "alloc_pages_current",
            "alloc_pages_vma",
            "__folio_alloc",
            "folio_alloc",
            "__get_free_pages",
            "get_zeroed_page",
            "alloc_pages_exact",
            "alloc_pages_exact_nid",
            "alloc_pages_noprof",
            "alloc_pages_mpol",
            "alloc_pages_mpol_noprof",
            "alloc_pages_node_noprof",
            "alloc_frozen_pages_noprof",
            "__folio_alloc_noprof",
            "folio_alloc_noprof",
            "folio_alloc_mpol_noprof",
            "get_free_pages_noprof",
            "get_zeroed_page_noprof",
            "alloc_pages_exact_noprof",
            "alloc_pages_exact_nid_noprof",
        ],
        effect: Effect::AllocPages(None),
    },
];

/// Families that a kernel with this function does not have yet: `alloc_pages_bulk` came with 5.13,
/// after `__alloc_pages_nodemask` was renamed.
pub const NONE_YET: &[(&str, &str)] = &[("bulk page allocation", "__alloc_pages_nodemask")];

/// Functions through which the guest sends markers, for `guest-markers=on`.
pub const MARKERS: &[Row] = &[
    Row {
        family: "markers by comm",
        names: &["comm_write"],
        effect: Effect::Event(Event::WriteComm { buf: arg(&["buf"], 1), count: arg(&["count"], 2) }),
    },
    Row { family: "task names", names: &["__set_task_comm"], effect: Effect::Event(Event::SetComm) },
    Row {
        family: "markers by kmsg",
        names: &["devkmsg_write"],
        effect: Effect::Event(Event::WriteKmsg { from: arg(&["from"], 1) }),
    },
];

/// Functions that write the kernel's log, for both [`MARKERS`] and [`CONSOLE`].
pub const LOG: &[Row] = &[
    Row { family: "log", names: &["prb_final_commit"], effect: Effect::Event(Event::Printk { entry: arg(&["e"], 0) }) },
    Row { family: "log", names: &["prb_commit"], effect: Effect::Event(Event::PrintkPart { entry: arg(&["e"], 0) }) },
];

/// Functions that write lines of tests, for `tests=ktap`.
pub const CONSOLE: &[Row] = &[
    Row {
        family: "terminals",
        names: &["n_tty_write"],
        effect: Effect::Event(Event::WriteTty { tty: arg(&["tty"], 0), buf: arg(&["buf"], 2), count: arg(&["nr"], 3) }),
    },
    Row {
        family: "virtio ports",
        names: &[PORT],
        effect: Effect::Event(Event::WritePort { buf: arg(&["ubuf"], 1), count: arg(&["count"], 2) }),
    },
    Row {
        family: "pipes",
        // The second one since 6.15.
        names: &["pipe_write", "anon_pipe_write"],
        effect: Effect::Event(Event::WritePipe { iocb: arg(&["iocb"], 0), from: arg(&["from"], 1) }),
    },
];

/// A function that may be in a module. It is hooked when the module is loaded.
pub const PORT: &str = "port_fops_write";
/// Stands for the address of a function in a module that is not loaded yet.
pub const LATER: u64 = u64::MAX;
