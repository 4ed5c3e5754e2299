//! Stale words: memory that its owner keeps but no longer uses. The objects that these words point
//! to were handed out or freed. Their memory may belong to other objects now.
//!
//! Each entry was found through a leak that it hid. Entries are variables and members, and are
//! looked up in the running kernel.

use super::debug_options;
use crate::blocks::Blocks;
use detector::objects::Kind;
use guest_symbols::Kernel;
use guest_symbols::corruption::Corruption;
use guest_symbols::memory::{PAGE_SIZE, StoppedMemory, VirtAddr};
use guest_symbols::slab;
use std::collections::HashSet;
use std::ops::Range;

/// A per-CPU array of objects with a count. Entries at and above the count were handed out, and
/// their pointers stay.
struct ObjectCache {
    /// The per-CPU variable.
    variable: &'static str,
    /// Its struct.
    of: &'static str,
    /// The struct's member that is the count.
    count: &'static str,
    /// The struct's member that is the array.
    array: &'static str,
}

/// A batch of folios of the per-CPU variable `$variable`, whose struct has the same name.
macro_rules! folio_batch {
    ($variable:literal, $batch:literal) => {
        ObjectCache {
            variable: $variable,
            of: $variable,
            count: concat!($batch, ".nr"),
            array: concat!($batch, ".folios"),
        }
    };
}

const OBJECT_CACHES: [ObjectCache; 10] = [
    // napi_skb_cache_get(), net/core/skbuff.c, 5.13 on.
    ObjectCache { variable: "napi_alloc_cache", of: "napi_alloc_cache", count: "skb_count", array: "skb_cache" },
    // folio_batch_reinit(), include/linux/pagevec.h. The variables are in mm/swap.c and mm/mlock.c,
    // 6.1 on.
    folio_batch!("cpu_fbatches", "lru_add"),
    folio_batch!("cpu_fbatches", "lru_deactivate_file"),
    folio_batch!("cpu_fbatches", "lru_deactivate"),
    folio_batch!("cpu_fbatches", "lru_lazyfree"),
    folio_batch!("cpu_fbatches", "lru_activate"),
    folio_batch!("cpu_fbatches", "activate"),
    folio_batch!("cpu_fbatches", "lru_move_tail"),
    folio_batch!("lru_rotate", "fbatch"),
    folio_batch!("mlock_fbatch", "fbatch"),
];

/// Lists of pages that record objects passed to kvfree_rcu() (kernel/rcu/tree.c up to 6.13,
/// mm/slab_common.c after), in the per-CPU variable `krc`. Recorded objects are being freed. The
/// kernel keeps the pages for later use, with the old records in them.
const RECORDS: &str = "krc";
/// The struct of [`RECORDS`].
const RECORDS_OF: &str = "kfree_rcu_cpu";
/// Its member that is a list.
const RECORD_LIST: &str = "bkvcache";
/// Its members that are arrays of lists.
const RECORD_LISTS: [&str; 2] = ["bkvhead", "bulk_head"];
/// Its member that is an array of batches.
const BATCHES: &str = "krw_arr";
/// The struct of a batch.
const BATCH: &str = "kfree_rcu_cpu_work";
/// The batch's members that are arrays of lists.
const BATCH_LISTS: [&str; 2] = ["bkvhead_free", "bulk_head_free"];

/// A list of objects whose memory waits to be freed.
struct StaleObjects {
    /// The variable that is the list's head.
    list: &'static str,
    /// The struct of the objects.
    of: &'static str,
    /// The struct's member that is the link.
    link: &'static str,
}

const STALE_OBJECTS: [StaleObjects; 1] = [
    // net_complete_free(), net/core/net_namespace.c, 6.13 on and in stable kernels before. A
    // namespace stays listed until the next one is destroyed.
    StaleObjects { list: "defer_free_list", of: "net", link: "defer_free_list" },
];

/// The CPUs' interrupt stacks (arch/x86/include/asm/irq_stack.h, 5.12 on): their memory.
const INTERRUPT_STACK: &str = "irq_stack_backing_store";
/// IRQ_STACK_SIZE in bytes.
const INTERRUPT_STACK_SIZE: u64 = 16 << 10;
/// The flag that an interrupt stack is in use. From 6.2 to 6.14 it is in `pcpu_hot`.
const INTERRUPT_STACK_FLAG: &str = "hardirq_stack_inuse";
/// The pointer to the last word of an interrupt stack, in the mapping that the CPU uses. The last
/// word holds the previous stack pointer. From 6.2 to 6.14 the pointer is in `pcpu_hot`.
const INTERRUPT_STACK_END: &str = "hardirq_stack_ptr";

/// The list of works that padata keeps for later use (kernel/padata.c, 5.8 on).
const KEPT_WORKS: &str = "padata_free_works";
/// The struct of such a work.
const KEPT_WORK: &str = "padata_work";
/// Its link.
const KEPT_WORK_LINK: &str = "pw_list";
/// Its pointer to the last job. That job was on the stack of a task that may be gone.
const KEPT_WORK_JOB: &str = "pw_data";

/// Pointers that own nothing. The kernel never reads them, or they point to a variable on the stack
/// of a task that may be gone.
const NO_OWNERS: [&str; 2] = [
    // The instructions to patch, for breakpoints that another CPU hits meanwhile
    // (text_poke_bp_batch(), arch/x86/kernel/alternative.c, 5.10 to 6.14).
    "bp_desc",
    // acpi_ps_alloc_op(), drivers/acpi/acpica/psutils.c, 4.20 on.
    "acpi_gbl_current_scope",
];

/// Per-CPU semaphores. Each has a `struct rcu_sync`, whose rcu_head keeps the link from the last
/// time it was queued (kernel/cgroup/cgroup.c, kernel/cpu.c, kernel/events/uprobes.c, fs/locks.c).
const SEMAPHORES: [&str; 4] = ["cgroup_threadgroup_rwsem", "cpu_hotplug_lock", "dup_mmap_sem", "file_rwsem"];
/// States of an rcu_sync whose rcu_head is not queued: GP_IDLE and GP_PASSED (kernel/rcu/sync.c,
/// 5.2 on).
const NOT_QUEUED: [u32; 2] = [0, 2];

/// The most lists that are read from one array.
const MAX_LISTS: u64 = 16;

/// The nodes of a list. `head` is the address of an `llist_head`, a pointer or a `list_head`.
/// `link` is the offset of the next pointer in a node.
///
/// A list that returns to one of its nodes is corrupted. `name` is the list's variable in that
/// error.
fn nodes<M: StoppedMemory>(
    kernel: &Kernel,
    blocks: &mut Blocks<'_, M>,
    name: &'static str,
    head: VirtAddr,
    link: u64,
) -> Vec<VirtAddr> {
    let (mut nodes, mut seen) = (Vec::new(), HashSet::new());
    let mut at = head;
    while let Ok(next) = kernel.read_u64(blocks.memory, at)
        && next != 0
        && next != head.0
    {
        if !seen.insert(next) {
            blocks.troubles.extend([Corruption::List(name)]);
            break;
        }
        nodes.push(VirtAddr(next));
        at = VirtAddr(next).offset(link);
    }
    nodes
}

/// Virtual ranges of stale words.
fn ranges<M: StoppedMemory>(
    kernel: &Kernel,
    blocks: &mut Blocks<'_, M>,
    interrupt_stacks: &[InterruptStack],
) -> Vec<Range<u64>> {
    let mut stale = Vec::new();
    let offsets = blocks.percpu.offsets.clone();
    let every_cpu = |name: &str| {
        let at = kernel.symbol(name);
        offsets.iter().filter_map(move |offset| Some(at?.offset(*offset))).collect::<Vec<_>>()
    };
    for ObjectCache { variable, of, count, array } in OBJECT_CACHES {
        let member = |path| kernel.btf.as_ref().and_then(|b| Some((b.member(of, path)?, b)));
        let (Some((count, _)), Some((array, btf))) = (member(count), member(array)) else { continue };
        let Some(size) = btf.type_size(array.type_id) else { continue };
        for at in every_cpu(variable) {
            let mut value = [0; 8];
            let width = btf.type_size(count.type_id).unwrap_or(4).min(8) as usize;
            if kernel.read(blocks.memory, at.offset(count.offset()), &mut value[..width]).is_ok() {
                let array = at.0.wrapping_add(array.offset());
                let from = array.wrapping_add(u64::from_le_bytes(value).saturating_mul(8).min(size));
                stale.push(from..array.wrapping_add(size));
            }
        }
    }
    stale.extend(interrupt_stacks.iter().map(|stack| stack.stale.clone()));
    // If events ended before the check, calls of kvfree_rcu() were not seen. These lists are then
    // the only record of the objects.
    let lists = Some(()).filter(|()| !blocks.allocations.halted).and_then(|()| lists_of_records(kernel));
    let lists = lists.unwrap_or_default();
    let is_known = kernel.offset_of(RECORDS_OF, RECORD_LIST).is_some();
    for at in every_cpu(RECORDS).into_iter().filter(|_| is_known) {
        for &(list, link) in &lists {
            for page in nodes(kernel, blocks, RECORDS, at.offset(list), link) {
                // The links at the start of the page stay references.
                stale.push(page.0.wrapping_add(16)..(page.0 | (PAGE_SIZE - 1)).wrapping_add(1));
            }
        }
    }
    let of_work = |member| kernel.offset_of(KEPT_WORK, member);
    if let (Some(head), Some(link), Some(job)) =
        (kernel.symbol(KEPT_WORKS), of_work(KEPT_WORK_LINK), of_work(KEPT_WORK_JOB))
    {
        for node in nodes(kernel, blocks, KEPT_WORKS, head, 0) {
            let at = node.0.wrapping_sub(link).wrapping_add(job);
            stale.push(at..at.saturating_add(8));
        }
    }
    let of_semaphore = |member| kernel.offset_of("percpu_rw_semaphore", member);
    if let (Some(state), Some(link)) = (of_semaphore("rss.gp_state"), of_semaphore("rss.cb_head.next")) {
        for at in SEMAPHORES.iter().filter_map(|name| kernel.symbol(name)) {
            if kernel.read_u32(blocks.memory, at.offset(state)).is_ok_and(|s| NOT_QUEUED.contains(&s)) {
                stale.push(at.0 + link..at.0 + link + 8);
            }
        }
    }
    stale.extend(NO_OWNERS.iter().filter_map(|name| kernel.symbol(name)).map(|at| at.0..at.0 + 8));
    stale.extend(blocks.pages.kfence.iter().flat_map(|pool| pool.not_references.iter().cloned()));
    stale.extend(debug_options::ranges(kernel, blocks));
    stale.extend(blocks.percpu.bases.iter().map(|at| at.0..at.0 + 8));
    stale.retain(|range| range.start < range.end);
    stale
}

/// An interrupt stack.
struct InterruptStack {
    /// The part that is not in use.
    stale: Range<u64>,
    /// The stack pointer that the CPU had before it switched to this stack.
    before: Option<u64>,
}

fn interrupt_stacks<M: StoppedMemory>(kernel: &Kernel, blocks: &Blocks<'_, M>) -> Vec<InterruptStack> {
    let variable = |name: &str| {
        let hot = || Some(kernel.symbol("pcpu_hot")?.offset(kernel.offset_of("pcpu_hot", name)?));
        kernel.symbol(name).or_else(hot)
    };
    let of_cpu = |cpu: usize| {
        let at = |name: &str| blocks.percpu.address(cpu, variable(name)?.0);
        let start = blocks.percpu.address(cpu, kernel.symbol(INTERRUPT_STACK)?.0)?.0;
        let mut up = [1];
        kernel.read(blocks.memory, at(INTERRUPT_STACK_FLAG)?, &mut up).ok()?;
        if up == [0] {
            return Some(InterruptStack { stale: start..start + INTERRUPT_STACK_SIZE, before: None });
        }
        let last = kernel.read_u64(blocks.memory, at(INTERRUPT_STACK_END)?).ok()?;
        let mapped = last.checked_sub(INTERRUPT_STACK_SIZE - 8)?;
        let used_from = blocks.stack_pointer_in(&(mapped..mapped + INTERRUPT_STACK_SIZE))?;
        let before = kernel.read_u64(blocks.memory, VirtAddr(last)).ok();
        Some(InterruptStack { stale: start..start + (used_from - mapped), before })
    };
    (0..blocks.percpu.offsets.len()).filter_map(of_cpu).collect()
}

/// Offsets of list heads in the variable of [`RECORDS`], each with the offset of the link in a
/// page.
fn lists_of_records(kernel: &Kernel) -> Option<Vec<(u64, u64)>> {
    let btf = kernel.btf.as_ref()?;
    let link =
        btf.offset_of("kvfree_rcu_bulk_data", "next").or_else(|| btf.offset_of("kvfree_rcu_bulk_data", "list"))?;
    let mut found = Vec::new();
    let mut add = |of: &str, list: &str, base: u64, link: u64| {
        if let Some(member) = btf.member(of, list) {
            let (count, size) = (btf.array_len(member.type_id), btf.type_size(member.type_id));
            let count = count.unwrap_or(1).clamp(1, MAX_LISTS);
            let each = size.unwrap_or(8) / count;
            found.extend((0..count).map(|i| (base + member.offset() + i * each, link)));
        }
    };
    add(RECORDS_OF, RECORD_LIST, 0, 0);
    RECORD_LISTS.iter().for_each(|list| add(RECORDS_OF, list, 0, link));
    let array = btf.member(RECORDS_OF, BATCHES)?;
    for i in 0..btf.array_len(array.type_id)?.min(MAX_LISTS) {
        let base = array.offset() + i * btf.size_of(BATCH)?;
        BATCH_LISTS.iter().for_each(|list| add(BATCH, list, base, link));
    }
    Some(found)
}

/// Leaves the stale parts of blocks out of the scan. In objects that wait to be freed, only the
/// link to the next stays. Returns the virtual ranges that are in no block.
pub(crate) fn skip<M: StoppedMemory>(kernel: &Kernel, blocks: &mut Blocks<'_, M>) -> Vec<Range<u64>> {
    let interrupt_stacks = interrupt_stacks(kernel, blocks);
    let mut stale = ranges(kernel, blocks, &interrupt_stacks);
    blocks.stack_pointers.extend(interrupt_stacks.iter().filter_map(|stack| stack.before));
    stale.retain(|range| {
        let block = blocks.addresses.find(range.start);
        // A per-CPU block's address is not an address of memory.
        if let Some(block) = block.filter(|block| blocks.blocks[*block as usize].kind != Kind::Percpu) {
            let start = blocks.blocks[block as usize].addr;
            blocks.skip.push(block, range.start - start..range.end - start);
        }
        block.is_none()
    });
    skip_numbers_of_caches(kernel, blocks);
    for StaleObjects { list, of, link } in STALE_OBJECTS {
        let (Some(head), Some(link)) = (kernel.symbol(list), kernel.offset_of(of, link)) else { continue };
        let mut found = Vec::new();
        for node in nodes(kernel, blocks, list, head, 0) {
            if let Some(block) = blocks.addresses.find(node.0) {
                let at = node.0.wrapping_sub(blocks.blocks[block as usize].addr);
                let size = blocks.blocks[block as usize].size;
                if at == link && at + 8 <= size {
                    found.push((block, [0..at, at + 8..size]));
                }
            }
        }
        for (block, stale) in found {
            blocks.skip.extend(block, stale);
        }
    }
    stale
}

/// Leaves out the members of `struct kmem_cache` that are not pointers. Up to 6.14 a `__percpu`
/// pointer is a small number, and flags and sizes in caches have similar values.
fn skip_numbers_of_caches<M: StoppedMemory>(kernel: &Kernel, blocks: &mut Blocks<'_, M>) {
    let Some(numbers) = kernel.btf.as_ref().and_then(|btf| btf.numbers("kmem_cache")) else { return };
    for cache in slab::caches(kernel, blocks.memory).unwrap_or_default() {
        if let Some(block) = blocks.addresses.find(cache.0) {
            let at = cache.0 - blocks.blocks[block as usize].addr;
            let numbers = numbers.iter().map(|r| at + r.start..at + r.end);
            blocks.skip.extend(block, numbers);
        }
    }
}
