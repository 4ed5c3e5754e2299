//! Enters modules and BPF programs when they are loaded, and forgets those that are no longer
//! needed.

use super::modules::{MAX_MODULES, Room};
use super::tracker::Tracker;
use super::troubles::Trouble;
use crate::ffi::inject;
use checker::names::Load;
use detector::objects::Object;
use guest_symbols::modules::{Module, at_places, replaced};
use std::collections::HashSet;

impl Tracker {
    /// A module or BPF program was loaded.
    pub(super) fn loaded(&self, module: Option<Module>) {
        // A closed map gets no objects, so names of functions are not needed.
        let is_news = |module: &Module| !self.objects.is_closed() && self.is_news(module);
        let Some(mut module) = module.filter(is_news) else { return };
        inject("module");
        log::debug!("module {:?} with {} symbols", module.name, module.symbol_count());
        self.unwinder.code().add(&module);
        // The unwinder has a copy. Stacks are not unwound through unloaded modules.
        module.orc = None;
        self.modules.add(module, self.objects.sequence());
    }

    /// Whether to keep a module: it is new, and there is room for it.
    fn is_news(&self, module: &Module) -> bool {
        match self.modules.room_for(module, |loads| self.forget_modules(loads)) {
            Room::Keep => true,
            Room::Same => false,
            Room::None => {
                self.troubles.warn(&Trouble::Modules(MAX_MODULES));
                false
            }
        }
    }

    /// Forgets modules that were replaced at their addresses and are in no live object's stack.
    /// They are unloaded, so no new stack contains them.
    #[cold]
    fn forget_modules(&self, modules: &mut Vec<Load>) {
        let replaced = replaced(modules.iter().map(|load| &*load.module));
        if !replaced.contains(&true) {
            return;
        }
        // The same search as in Names::frame().
        let (mut seen, mut places) = (HashSet::new(), Vec::new());
        let mut keep = |object: &Object| {
            let loaded = modules.partition_point(|load| load.sequence <= object.sequence());
            if seen.insert((object.stack(), loaded)) {
                let frames = self.unwinder.stacks().frames(object.stack());
                places.extend(frames.iter().filter(|at| !self.guest.is_in_image(**at)).map(|at| (*at, loaded)));
            }
        };
        self.objects.for_each(&mut keep);
        self.time.hibernated().iter().for_each(|image| image.for_each(&mut keep));
        let needed = at_places(modules.iter().map(|load| &*load.module), places);
        let before = modules.len();
        let mut number = 0..;
        modules.retain(|_| number.next().is_some_and(|i| !replaced[i] || needed.contains(&i)));
        log::debug!("{} modules of {before} are forgotten", before - modules.len());
    }
}
