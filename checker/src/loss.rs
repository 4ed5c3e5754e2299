//! Where leaks were lost, by the history of references.

use crate::allocations::is_wrapper;
use crate::blocks::{Block, Blocks};
use crate::names::Names;
use crate::why;
use detector::guest_tests::shown;
use detector::history::{Ending, Trace};
use detector::objects::{Kind, Object};
use detector::report::{Frame, How, Loss, Reference};
use detector::stacks::StackId;
use guest_symbols::Kernel;
use guest_symbols::memory::{PAGE_SIZE, PhysAddr, StoppedMemory, VirtAddr};
use guest_symbols::pages::{Maps, Pages, Use};
use guest_symbols::percpu::PerCpu;
use guest_symbols::slab::Cache;
use std::collections::HashMap;

/// Most pages of modules that are looked at.
const MAX_MODULE_PAGES: usize = 1 << 18;

/// Starts of the names of functions that change or free what they are given. Who calls them is
/// responsible. From lib/, mm/, kernel/ and arch/x86/lib/, 5.10 to 7.3.
const HELPERS: [&str; 50] = [
    "__list_",
    "list_",
    "hlist_",
    "__hlist_",
    "llist_",
    "klist_",
    "plist_",
    "rb_erase",
    "rb_insert",
    "rb_replace",
    "__rb_",
    "xa_",
    "__xa_",
    "xas_",
    "idr_",
    "ida_",
    "radix_tree_",
    "__radix_tree_",
    "mas_",
    "mtree_",
    "__mt_",
    "rht_",
    "rhashtable_",
    "__rhashtable_",
    "assoc_array_",
    "memcpy",
    "memmove",
    "memset",
    "__memcpy",
    "__memmove",
    "__memset",
    "clear_page",
    "copy_page",
    "strscpy",
    "__kfree",
    "kfree",
    "kvfree",
    "kmem_cache_free",
    "vfree",
    "__vfree",
    "free_percpu",
    "krealloc",
    "call_rcu",
    "__call_rcu",
    "kobject_put",
    "kref_put",
    "refcount_",
    "add_timer",
    "mod_timer",
    "__mod_timer",
];

/// The same for functions of headers, of which each module may have its own copy (include/linux,
/// 5.10 to 7.3).
const OF_HEADERS: [&str; 15] = [
    "__list_add",
    "__list_del",
    "list_add",
    "list_del",
    "list_move",
    "list_replace",
    "list_splice",
    "hlist_add",
    "hlist_del",
    "__hlist",
    "llist_",
    "rb_link",
    "xa_",
    "kref_put",
    "refcount_",
];

/// What follows references while the guest runs.
pub trait Traces: Sync {
    /// What is known about the object of that kind at virtual address `addr`.
    fn trace(&self, addr: u64, kind: Kind) -> Option<Trace>;
}

/// A word's place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// In a live object.
    Object {
        /// Virtual address of the object.
        addr: u64,
        /// Bytes.
        size: u64,
        /// The name of its slab cache.
        cache: Option<String>,
        /// Bytes from the object's start to the word.
        offset: u64,
        /// The object.
        object: Object,
    },
    /// In a variable of the kernel, or of a module.
    Variable {
        /// Its name.
        name: String,
        /// Bytes from its start to the word.
        offset: u64,
        /// The module.
        module: Option<String>,
    },
    /// In other memory.
    Memory {
        /// Guest physical address.
        phys: PhysAddr,
        /// Virtual address in the direct map.
        at: u64,
        /// Use of its page.
        usage: Use,
    },
}

/// What is known about a leak.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Traced {
    /// What the history tells.
    pub trace: Trace,
    /// Where the last reference is, or was.
    pub place: Option<Place>,
    /// Milliseconds from the end of the last reference to the check.
    pub age: u64,
}

/// What the history tells about block `number`.
pub(crate) fn traced<M: StoppedMemory>(
    kernel: &Kernel,
    memory: &M,
    pages: &Pages,
    blocks: &Blocks<'_, M>,
    traces: &dyn Traces,
    number: u32,
) -> Option<Traced> {
    let block = &blocks.blocks[number as usize];
    let trace = traces.trace(block.addr, block.kind)?;
    let word = match trace.lost {
        Some(lost) if trace.count == 0 || !trace.remains => Some(lost.word),
        _ => trace.reference.map(|(word, _)| word),
    };
    let place = word.map(|word| place(kernel, memory, pages, blocks, PhysAddr(8 * word as u64)));
    Some(Traced { trace, place, age: 0 })
}

fn place<M: StoppedMemory>(
    kernel: &Kernel,
    memory: &M,
    pages: &Pages,
    blocks: &Blocks<'_, M>,
    phys: PhysAddr,
) -> Place {
    let at = Maps::read(kernel, memory).direct_map.wrapping_add(phys.0);
    if let Some(number) = blocks.addresses.find(at) {
        let block = &blocks.blocks[number as usize];
        let cache = Some(block.addr).filter(|_| block.kind == Kind::Slab);
        let cache = cache.and_then(|addr| Cache::read(kernel, memory, pages.slab_cache(memory, VirtAddr(addr))?));
        return Place::Object {
            addr: block.addr,
            size: block.size,
            cache: cache.map(|cache| shown(&cache.name).into_owned()),
            offset: offset(block, &blocks.percpu, at),
            object: *blocks.object(block),
        };
    }
    match (why::variable(kernel, memory, &blocks.percpu, phys), pages.usage(phys.pfn())) {
        // The kernel frees parts of its image after boot.
        (Some((name, offset)), Use::Reserved) => Place::Variable { name, offset, module: None },
        (_, usage) => Place::Memory { phys, at, usage },
    }
}

/// The offset of an address in a block. A per-CPU block has a copy for each CPU.
fn offset(block: &Block, percpu: &PerCpu, at: u64) -> u64 {
    let within = |start: u64| Some(at.wrapping_sub(start)).filter(|offset| *offset < block.size);
    let copies = || percpu.offsets.iter().find_map(|copy| within(block.addr.wrapping_add(*copy)));
    within(block.addr).or_else(copies).unwrap_or(0)
}

/// Finds the variables of modules among the places of leaks.
pub(crate) fn name_variables<'t, M: StoppedMemory>(
    names: Names<'_>,
    memory: &M,
    traced: impl Iterator<Item = &'t mut Traced>,
) {
    // The virtual address of each page of a module, by frame. The last module comes first.
    let mut pages: Option<HashMap<u64, u64>> = None;
    let find = || {
        let mut pages = HashMap::new();
        let ranges = names.modules.iter().rev().flat_map(|load| &load.module.ranges);
        let starts = ranges.flat_map(|range| (range.start & !(PAGE_SIZE - 1)..range.end).step_by(PAGE_SIZE as usize));
        for at in starts.take(MAX_MODULE_PAGES) {
            if let Ok(found) = names.kernel.translate(memory, VirtAddr(at)) {
                pages.entry(found.phys.pfn()).or_insert(at);
            }
        }
        pages
    };
    for traced in traced {
        let Some(Place::Memory { phys, usage: Use::Kernel, .. }) = traced.place else { continue };
        let Some(page) = pages.get_or_insert_with(find).get(&phys.pfn()) else { continue };
        let at = page + phys.0 % PAGE_SIZE;
        let mut modules = names.modules.iter().rev();
        if let Some((module, symbol)) = modules.find_map(|load| Some((&load.module, load.module.resolve(at)?))) {
            let [name, module] = [symbol.name, &module.name].map(|name| shown(name).into_owned());
            traced.place = Some(Place::Variable { name, offset: symbol.offset, module: Some(module) });
        }
    }
}

/// The whole address of an instruction of the kernel, given the lower half. All code lies in the
/// uppermost 2 GiB.
fn code(half: u32) -> u64 {
    u64::from(half) | !0 << 32
}

/// Whether two frames are of the same function.
fn is_same(a: &Frame, b: &Frame) -> bool {
    match (&a.function, &b.function) {
        (Some(a), Some(b)) => !a.name.is_empty() && a.name == b.name && a.module == b.module,
        _ => false,
    }
}

/// Whether the frame is of a function that does what its caller asks for.
fn is_helper(frame: &Frame) -> bool {
    let Some(function) = &frame.function else { return false };
    let is_one_of = |starts: &[&str]| starts.iter().any(|start| function.name.starts_with(start));
    match function.module {
        Some(_) => is_one_of(&OF_HEADERS),
        None => is_one_of(&HELPERS) || is_wrapper(&function.name),
    }
}

/// The frames of a stack. The first is the instruction itself, or the function that was entered.
fn frames(names: Names<'_>, stack: StackId, sequence: u64) -> Vec<Frame> {
    let addresses = names.stacks.frames(stack);
    // A store's address stands there twice, since stacks of calls start with the function called.
    let is_twice = addresses.len() > 1 && addresses[0].wrapping_add(1) == addresses[1];
    addresses.iter().skip(usize::from(is_twice)).map(|&at| names.located(at, sequence)).collect()
}

/// The innermost frame of `later` whose function is in `earlier` too, and does not work for others.
fn common(later: &[Frame], earlier: &[Frame]) -> Option<Frame> {
    let in_both = |frame: &&Frame| !is_helper(frame) && earlier.iter().any(|other| is_same(other, frame));
    later.iter().find(in_both).cloned()
}

/// The part of the report. `allocation` is the stack of the allocation.
pub(crate) fn tell(names: Names<'_>, traced: &Traced, allocation: &[Frame]) -> Loss {
    // Modules at the time of the report: they may have been loaded after the allocation.
    let now = u64::MAX;
    let Trace { lost, reference, remains, held, count } = traced.trace;
    let held = frames(names, held, now);
    let reference = reference.zip(traced.place.as_ref()).map(|((_, ip), place)| Reference {
        place: describe(names, place, lost.filter(|_| !remains).map(|lost| lost.ending)),
        stored_by: names.located(code(ip), now),
    });
    let mut loss = Loss { how: How::Frame, by: None, age_ms: None, stack: Vec::new(), held, reference };
    match lost {
        Some(lost) if !remains => {
            loss.how = match lost.ending {
                Ending::Overwritten => How::Overwritten,
                Ending::Freed => How::Freed,
                Ending::Reused => How::Reused,
            };
            loss.age_ms = Some(traced.age);
            loss.stack = match lost.stack {
                StackId::NONE => vec![names.located(code(lost.ip), now)],
                stack => frames(names, stack, now),
            };
            let first = || loss.stack.iter().find(|frame| !is_helper(frame)).cloned();
            loss.by = common(&loss.held, &loss.stack).or_else(first);
        }
        _ if count > 0 => loss.how = How::Held,
        _ => {
            let first = || allocation.iter().skip(1).find(|frame| !is_helper(frame)).cloned();
            loss.by = common(&loss.held, allocation).or_else(first);
        }
    }
    loss
}

/// A place in words.
fn describe(names: Names<'_>, place: &Place, ending: Option<Ending>) -> String {
    match place {
        Place::Object { addr, size, cache, offset, object } => {
            let what = match ending {
                Some(Ending::Freed | Ending::Reused) => "a freed object, where now is ",
                _ => "",
            };
            let cache = cache.as_ref().map_or(format!("{:?}", object.kind()).to_lowercase(), Clone::clone);
            let by = names.caller(object).map_or(String::new(), |caller| format!(", by {caller}"));
            format!("{what}+{offset:#x} of {addr:#x} (size {size}, {cache}{by})")
        }
        Place::Variable { name, offset, module: None } => format!("{name}+{offset:#x}"),
        Place::Variable { name, offset, module: Some(module) } => format!("{name}+{offset:#x} [{module}]"),
        Place::Memory { at, .. } if ending == Some(Ending::Freed) => format!("a freed object, at {at:#x}"),
        Place::Memory { at, usage, .. } => format!("{at:#x} (page: {usage:?})"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use detector::report::Function;

    fn frame(name: &str, module: Option<&str>) -> Frame {
        let function = Function { name: name.to_owned(), module: module.map(str::to_owned), ..Function::default() };
        Frame { function: Some(function), ..Frame::default() }
    }

    fn name(frame: Option<Frame>) -> Option<String> {
        Some(frame?.function?.name)
    }

    #[test]
    fn the_innermost_function_of_both_stacks() {
        let stack = |names: &[&str]| names.iter().map(|name| frame(name, None)).collect::<Vec<_>>();
        let lost = stack(&["rb_erase", "pop", "take", "run"]);
        let found = |held: &[&str]| name(common(&stack(held), &lost));
        assert_eq!(found(&["_printk", "take", "run"]).as_deref(), Some("take"));
        assert_eq!(found(&["rb_erase", "pop", "take", "run"]).as_deref(), Some("pop"));
        assert_eq!(found(&["other"]), None);
        // Functions without names are not the same one.
        assert_eq!(name(common(&stack(&[""]), &stack(&[""]))), None);
    }

    #[test]
    fn helpers_are_functions_of_the_kernel_or_its_headers() {
        for name in ["xas_store", "kfree", "memset_orig", "list_lru_del", "__kmalloc_noprof"] {
            assert!(is_helper(&frame(name, None)) && !is_helper(&frame(name, Some("lost"))), "{name}");
        }
        assert!(is_helper(&frame("__list_del_entry", Some("lost"))));
        assert!(["free_pipe_info", "sock_release", "pop"].iter().all(|name| !is_helper(&frame(name, None))));
        assert!(!is_helper(&Frame::default()));
    }

    #[test]
    fn a_half_address_is_made_whole() {
        assert_eq!(code(0x8123_4567), 0xffff_ffff_8123_4567);
    }
}
