//! Modules and BPF programs as they are loaded: they are entered, and those that are needed no more
//! are forgotten.

use super::modules::{Loads, MAX_MODULES, Room};
use super::tracker::Tracker;
use super::troubles::Trouble;
use crate::ffi::inject;
use detector::objects::Object;
use guest_symbols::modules::{Module, at_places, replaced};
use std::collections::HashSet;

impl Tracker {
    /// Code has come that is not the kernel's own.
    pub(super) fn loaded(&self, module: Option<Module>) {
        // Once nothing is entered any more, who allocates is not asked.
        let is_news = |module: &Module| !self.objects.is_closed() && self.is_news(module);
        let Some(mut module) = module.filter(is_news) else { return };
        inject("module");
        log::debug!("module {:?} with {} symbols", module.name, module.symbol_count());
        self.unwinder.code().add(&module);
        // When it is gone no stack is unwound through it.
        module.orc = None;
        self.modules.add(module, self.objects.sequence());
    }

    /// Whether a module is to be kept: it is another one than was there before, and there is room
    /// for it.
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

    /// Forgets those that were unloaded, as is known where others lie now, and that stand in the
    /// stack of no live object. What is allocated meanwhile is by none of them, for they are gone.
    #[cold]
    fn forget_modules(&self, modules: &mut Loads) {
        let replaced = replaced(modules.iter().map(|(_, m)| &**m));
        if !replaced.contains(&true) {
            return;
        }
        // As Names::frame() finds them.
        let (mut seen, mut places) = (HashSet::new(), Vec::new());
        let keep = |object: &Object| {
            let loaded = modules.partition_point(|(load, _)| *load <= object.sequence());
            if seen.insert((object.stack(), loaded)) {
                let frames = self.unwinder.stacks().frames(object.stack());
                places.extend(frames.iter().filter(|at| !self.guest.is_in_image(**at)).map(|at| (*at, loaded)));
            }
        };
        self.objects.for_each(keep);
        let needed = at_places(modules.iter().map(|(_, m)| &**m), places);
        let before = modules.len();
        let mut number = 0..;
        modules.retain(|_| number.next().is_some_and(|i| !replaced[i] || needed.contains(&i)));
        log::debug!("{} modules of {before} are forgotten", before - modules.len());
    }
}
