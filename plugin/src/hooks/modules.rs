//! Modules and BPF programs: those that are loaded, and unloaded ones that are in the stack of a
//! live object. A guest may load and unload them for days.

use super::table::PORT;
use checker::names::Load;
use guest_symbols::modules::Module;
use parking_lot::Mutex;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

/// Most modules and BPF programs.
pub(super) const MAX_MODULES: usize = 1 << 16;
/// Most bytes that they may take.
const MAX_BYTES: usize = 256 << 20;
/// From this many bytes on, unneeded modules are removed each time the size has doubled.
const MANY_BYTES: usize = 1 << 20;

/// Modules and BPF programs as they were loaded.
pub struct Modules {
    /// In the order of their loads.
    loads: Mutex<Vec<Load>>,
    /// Size in bytes at which unneeded modules are removed.
    many: AtomicUsize,
    /// Virtual address of [`PORT`] in a module; 0 for none.
    port: AtomicU64,
}

/// Whether there is room for a module.
pub(super) enum Room {
    /// There is; it is to be kept.
    Keep,
    /// The same module is kept already.
    Same,
    /// There are too many.
    None,
}

fn size(loads: &[Load]) -> usize {
    loads.iter().map(|load| load.module.size()).sum()
}

impl Modules {
    /// No modules.
    pub fn new() -> Modules {
        Modules { loads: Mutex::default(), many: AtomicUsize::new(MANY_BYTES), port: AtomicU64::new(0) }
    }

    /// A copy of all modules, because the guest may load more meanwhile.
    pub fn all(&self) -> Vec<Load> {
        self.loads.lock().clone()
    }

    /// Virtual address of [`PORT`], if a module has it; 0 for none.
    #[inline]
    pub fn port(&self) -> u64 {
        self.port.load(Ordering::Relaxed)
    }

    /// Whether there is room for a module. `forget` removes unneeded modules.
    pub(super) fn room_for(&self, module: &Module, forget: impl FnOnce(&mut Vec<Load>)) -> Room {
        let mut loads = self.loads.lock();
        let there = loads.iter().rev().map(|load| &load.module).find(|m| m.overlaps(module));
        if there.is_some_and(|m| m.is_same(module)) {
            return Room::Same;
        }
        let mut bytes = size(&loads);
        if bytes >= self.many.load(Ordering::Relaxed) {
            forget(&mut loads);
            bytes = size(&loads);
            self.many.store((2 * bytes).max(MANY_BYTES), Ordering::Relaxed);
        }
        if loads.len() >= MAX_MODULES || bytes + module.size() > MAX_BYTES { Room::None } else { Room::Keep }
    }

    /// Adds a module. `sequence` is the number of the next object.
    pub(super) fn add(&self, module: Module, sequence: u64) {
        if let Some(symbol) = module.symbols().find(|s| s.name == PORT) {
            self.port.store(symbol.addr, Ordering::Relaxed);
        }
        self.loads.lock().push(Load { sequence, module: Arc::new(module) });
    }
}
