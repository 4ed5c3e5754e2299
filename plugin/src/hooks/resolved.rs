//! The hooks of one kernel: the functions of the [table](super::table) that it has, and the
//! registers that hold their arguments.

use super::arch;
use super::arch::{Call, LONGEST_CALL, call_before};
use super::table::{
    Arg, CACHES, CODE, CONSOLE, Effect, Event, LATER, LOG, MARKERS, NONE_YET, ONLY_THROUGH, PAGES, PORT, Row, TABLE,
};
use crate::ffi::regs::Reg;
use detector::objects::Kind;
use guest_symbols::Kernel;
use guest_symbols::memory::{StoppedMemory, VirtAddr};
use std::collections::HashMap;
use std::ops::RangeInclusive;
use std::sync::atomic::AtomicBool;

/// Which hooks are wanted besides the allocators.
#[derive(Debug, Clone, Copy, Default)]
pub struct Wanted {
    /// [`PAGES`].
    pub pages: bool,
    /// [`MARKERS`].
    pub markers: bool,
    /// [`CONSOLE`].
    pub console: bool,
}

/// A hook of the running kernel.
#[derive(Debug)]
pub struct Hook {
    /// The function's name.
    pub name: &'static str,
    /// Its virtual address.
    pub addr: u64,
    /// What it does.
    pub action: Action,
}

/// An [`Effect`] with registers in place of arguments.
#[derive(Debug, Clone, Copy)]
pub enum Action {
    /// See [`Effect::Alloc`].
    Alloc(Kind, Option<Reg>),
    /// See [`Effect::AllocPages`].
    AllocPages(Option<Reg>),
    /// See [`Effect::AllocPagesBulk`].
    AllocPagesBulk(Reg),
    /// See [`Effect::AllocBulk`]. The last field is whether the function returns a bool.
    AllocBulk(Reg, Reg, bool),
    /// See [`Effect::Take`].
    Take,
    /// See [`Effect::TakeBulk`].
    TakeBulk(Reg, Reg),
    /// See [`Effect::Free`].
    Free(Reg),
    /// See [`Effect::FreeVmalloc`].
    FreeVmalloc(Reg),
    /// See [`Effect::FreeBulk`].
    FreeBulk(Reg, Reg),
    /// See [`Effect::FreeRcu`].
    FreeRcu(Reg, Reg),
    /// See [`Effect::ModuleLoad`].
    ModuleLoad(Reg),
    /// See [`Effect::BpfSymbol`].
    BpfSymbol(Reg),
    /// See [`Effect::SaveImage`].
    SaveImage,
    /// See [`Effect::Event`].
    Event(Event<Reg>),
}

impl Action {
    /// Whether the return of the function matters.
    pub fn allocates(&self) -> bool {
        use Action::{Alloc, AllocBulk, AllocPages, AllocPagesBulk, Take, TakeBulk};
        matches!(self, Alloc(..) | AllocPages(_) | AllocPagesBulk(_) | AllocBulk(..) | Take | TakeBulk(..))
    }

    /// Whether the hook counts in the summary's number of hooks.
    pub fn is_of_memory(&self) -> bool {
        !matches!(self, Action::Event(_) | Action::SaveImage)
    }
}

/// What was seen of a hook.
#[derive(Debug, Default)]
pub struct Seen {
    /// It was entered.
    pub hit: AtomicBool,
    /// It returned an object of an inner call.
    pub(super) wraps: AtomicBool,
}

/// The numbered hooks of the running kernel, and what was seen of each.
pub struct HookSet {
    hooks: Vec<(Hook, Seen)>,
    entries: HashMap<u64, u32>,
    /// Virtual addresses from the first entry to the last.
    range: RangeInclusive<u64>,
}

impl HookSet {
    /// Numbers the hooks.
    pub fn new(hooks: Vec<Hook>) -> HookSet {
        let addresses = hooks.iter().map(|h| h.addr).filter(|&addr| addr != LATER);
        let low = addresses.clone().min().unwrap_or(u64::MAX);
        let high = addresses.max().unwrap_or(0);
        HookSet {
            entries: hooks.iter().enumerate().map(|(i, h)| (h.addr, i as u32)).collect(),
            range: low..=high,
            hooks: hooks.into_iter().map(|h| (h, Seen::default())).collect(),
        }
    }

    /// The hook of that number.
    #[inline]
    pub(super) fn get(&self, number: u32) -> &(Hook, Seen) {
        &self.hooks[number as usize]
    }

    /// All hooks.
    pub fn iter(&self) -> impl Iterator<Item = &(Hook, Seen)> {
        self.hooks.iter()
    }

    /// Whether a hook's entry may lie between two virtual addresses.
    #[inline]
    pub(super) fn may_be_in(&self, start: u64, last: u64) -> bool {
        start <= *self.range.end() && last >= *self.range.start()
    }

    /// The number of the hook at a virtual address.
    #[inline]
    pub(super) fn at(&self, addr: u64) -> Option<u32> {
        self.entries.get(&addr).copied()
    }

    /// The number of the hook of [`PORT`], if that function is not in the kernel's image.
    pub(super) fn port(&self) -> Option<u32> {
        self.hooks.iter().position(|(h, _)| h.name == PORT && h.addr == LATER).map(|number| number as u32)
    }
}

/// Chooses the hooks that the running kernel has. Also returns the families of allocators without
/// any function.
pub fn choose(kernel: &Kernel, memory: &impl StoppedMemory, wanted: Wanted) -> (Vec<Hook>, Vec<&'static str>) {
    let (mut hooks, mut missing) = (Vec::new(), Vec::new());
    let unneeded = unneeded(kernel, memory);
    let some = |rows: &'static [Row], wanted: bool| rows.iter().filter(move |_| wanted);
    let markers = some(MARKERS, wanted.markers).chain(some(LOG, wanted.markers || wanted.console));
    let others = CACHES.iter().chain(CODE).chain(markers).chain(some(CONSOLE, wanted.console));
    for (row, needed) in
        TABLE.iter().chain(some(PAGES, wanted.pages)).map(|r| (r, true)).chain(others.map(|r| (r, false)))
    {
        let before = hooks.len();
        for &name in row.names {
            let addr = kernel.symbols.lookup(name).or((name == PORT).then_some(LATER));
            let Some(addr) = addr.filter(|_| !unneeded.contains(&name)) else { continue };
            match action(kernel, name, row.effect) {
                Some(action) => hooks.push(Hook { name, addr, action }),
                None => log::warn!("{name} is not hooked: an argument is not in a register"),
            }
        }
        let mut older = NONE_YET.iter().filter(|(family, _)| *family == row.family);
        let is_none_yet = older.any(|(_, function)| kernel.symbols.lookup(function).is_some());
        if needed && hooks.len() == before && !is_none_yet {
            missing.push(row.family);
        }
    }
    (hooks, missing)
}

/// Functions of [`ONLY_THROUGH`] that need no hook in this kernel: their code calls the function
/// that takes the object, or another function that needs no hook.
fn unneeded(kernel: &Kernel, memory: &impl StoppedMemory) -> Vec<&'static str> {
    let mut found = Vec::new();
    for (taker, callers) in ONLY_THROUGH {
        let Some(taker) = kernel.symbols.lookup(taker) else { continue };
        let mut targets = vec![taker];
        for &caller in *callers {
            let Some(addr) = kernel.symbols.lookup(caller) else { continue };
            if calls_any(kernel, memory, addr, &targets) {
                targets.push(addr);
                found.push(caller);
            }
        }
    }
    found
}

/// Most bytes of a function that [`calls_any`] reads.
const LONGEST_FUNCTION: u64 = 1 << 14;

/// Whether the function at virtual address `function` calls one of `targets` directly.
fn calls_any(kernel: &Kernel, memory: &impl StoppedMemory, function: u64, targets: &[u64]) -> bool {
    let next = kernel.symbols.iter().map(|s| s.addr).filter(|&addr| addr > function).min().unwrap_or(function);
    let length = (next - function).min(LONGEST_FUNCTION) as usize;
    let code = memory.run(kernel.image_phys(VirtAddr(function)), length);
    code.windows(LONGEST_CALL).enumerate().any(|(at, before)| {
        let before = before.try_into().unwrap_or(&[0; LONGEST_CALL]);
        let end = function + (at + LONGEST_CALL) as u64;
        matches!(call_before(end, before), Some(Call::Direct(target)) if targets.contains(&target))
    })
}

fn action(kernel: &Kernel, function: &str, effect: Effect) -> Option<Action> {
    let prototype = kernel.btf.as_ref().and_then(|b| b.parameters(function));
    let reg = |arg: Arg| {
        let named = prototype.as_ref().and_then(|p| p.iter().position(|name| arg.names.contains(name)));
        arch::argument(named.unwrap_or(arg.position))
    };
    Some(match effect {
        Effect::Alloc(kind, size) => Action::Alloc(kind, size.map(reg).map_or(Some(None), |r| r.map(Some))?),
        Effect::AllocPages(order) => Action::AllocPages(order.map(reg).map_or(Some(None), |r| r.map(Some))?),
        Effect::AllocPagesBulk { array } => Action::AllocPagesBulk(reg(array)?),
        Effect::AllocBulk { count, array } => {
            let boolean = kernel.btf.as_ref().and_then(|b| b.return_size(function)) == Some(1);
            Action::AllocBulk(reg(count)?, reg(array)?, boolean)
        }
        Effect::Take => Action::Take,
        Effect::TakeBulk { count, array } => Action::TakeBulk(reg(count)?, reg(array)?),
        Effect::Free(object) => Action::Free(reg(object)?),
        Effect::FreeVmalloc(addr) => Action::FreeVmalloc(reg(addr)?),
        Effect::FreeBulk { count, array } => Action::FreeBulk(reg(count)?, reg(array)?),
        Effect::FreeRcu { head, object } => Action::FreeRcu(reg(head)?, reg(object)?),
        Effect::ModuleLoad(module) => Action::ModuleLoad(reg(module)?),
        Effect::BpfSymbol(symbol) => Action::BpfSymbol(reg(symbol)?),
        Effect::SaveImage => Action::SaveImage,
        Effect::Event(event) => Action::Event(event.map(reg)?),
    })
}
