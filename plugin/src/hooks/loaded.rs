//! Modules and BPF programs as they are loaded, and which of them are kept: those that are there, and those that an object that is
//! live was allocated by. A guest may load and unload them for days.

use super::table::PORT;
use super::tracker::Tracker;
use crate::ffi::inject;
use crate::hooks::troubles::Trouble;
use detector::objects::Object;
use guest_symbols::modules::{Module, at_places, replaced};
use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// Modules and BPF programs, and bytes of all that is kept of them.
const MAX_MODULES: usize = 1 << 16;
const MAX_BYTES: usize = 256 << 20;
/// From so many bytes on, those that are needed no more are looked for, each time there are twice as many.
pub(super) const MANY_BYTES: usize = 1 << 20;

/// Modules, each with the sequence number of the moment when it was loaded, in that order.
type Modules = Vec<(u64, Arc<Module>)>;

fn size(modules: &Modules) -> usize {
    modules.iter().map(|(_, m)| m.size()).sum()
}

impl Tracker {
    /// Code has come that is not the kernel's own.
    pub(super) fn loaded(&self, module: Option<Module>) {
        // Once nothing is entered any more, who allocates is not asked.
        let is_news = |module: &Module| !self.closed.load(Ordering::Relaxed) && self.is_news(module);
        let Some(mut module) = module.filter(is_news) else { return };
        inject("module");
        log::debug!("module {:?} with {} symbols", module.name, module.symbol_count());
        self.code.add(&module);
        // When it is gone no stack is unwound through it.
        module.orc = None;
        if let Some(symbol) = module.symbols().find(|s| s.name == PORT) {
            self.port.store(symbol.addr, Ordering::Relaxed);
        }
        self.modules.lock().push((self.sequence.load(Ordering::Relaxed), Arc::new(module)));
    }

    /// Whether a module is to be kept: it is another one than was there before, and there is room for it.
    fn is_news(&self, module: &Module) -> bool {
        let mut modules = self.modules.lock();
        let there = modules.iter().rev().map(|(_, m)| m).find(|m| m.overlaps(module));
        if there.is_some_and(|m| m.is_same(module)) {
            return false;
        }
        let mut bytes = size(&modules);
        if bytes >= self.many_modules.load(Ordering::Relaxed) {
            self.forget_modules(&mut modules);
            bytes = size(&modules);
            self.many_modules.store((2 * bytes).max(MANY_BYTES), Ordering::Relaxed);
        }
        if modules.len() >= MAX_MODULES || bytes + module.size() > MAX_BYTES {
            self.trouble(&Trouble::Modules(MAX_MODULES));
            return false;
        }
        true
    }

    /// Forgets those that were unloaded, as is known where others lie now, and that stand in the stack of no live object. What
    /// is allocated meanwhile is by none of them, for they are gone.
    #[cold]
    fn forget_modules(&self, modules: &mut Modules) {
        let replaced = replaced(modules.iter().map(|(_, m)| &**m));
        if !replaced.contains(&true) {
            return;
        }
        // As Names::frame() finds them.
        let (mut seen, mut places) = (HashSet::new(), Vec::new());
        let mut keep = |object: &Object| {
            let loaded = modules.partition_point(|(load, _)| *load <= object.sequence());
            if seen.insert((object.stack(), loaded)) {
                let frames = self.stacks.frames(object.stack());
                places.extend(frames.iter().filter(|at| !self.image.contains(at)).map(|at| (*at, loaded)));
            }
        };
        self.live.for_each(&mut keep);
        self.pages.iter().for_each(|pages| pages.map.for_each(&mut keep));
        let needed = at_places(modules.iter().map(|(_, m)| &**m), places);
        let before = modules.len();
        let mut number = 0..;
        modules.retain(|_| number.next().is_some_and(|i| !replaced[i] || needed.contains(&i)));
        log::debug!("{} modules of {before} are forgotten", before - modules.len());
    }
}
