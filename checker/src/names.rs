//! What addresses are called, in the kernel and in its modules.

use detector::objects::Object;
use detector::report::{Frame, Function};
use detector::stacks::{StackId, Stacks};
use guest_symbols::Kernel;
use guest_symbols::modules::Module;
use guest_symbols::symbols::Resolved;
use std::sync::Arc;

/// Names of a moment.
#[derive(Clone, Copy)]
pub struct Names<'a> {
    /// The kernel.
    pub kernel: &'a Kernel,
    /// Modules as they were loaded, each with the sequence number of that load.
    pub modules: &'a [(u64, Arc<Module>)],
    /// The stacks of allocations.
    pub stacks: &'a Stacks,
}

impl Names<'_> {
    /// The frames of an allocation: the allocator, whose own place of call is not known from outside, and its callers.
    pub fn frames(&self, object: &Object) -> Vec<Frame> {
        match object.stack {
            StackId::NONE => vec![Frame::default()],
            stack => self.stacks.frames(stack).iter().map(|&at| self.frame(at, object.sequence)).collect(),
        }
    }

    /// How many modules had been loaded at allocation `sequence`: equal stacks have equal names as long as that is the same.
    pub fn loaded(&self, sequence: u64) -> usize {
        self.modules.partition_point(|(load, _)| *load <= sequence)
    }

    /// An address as it was called at the time of allocation `sequence`.
    pub fn frame(&self, at: u64, sequence: u64) -> Frame {
        let function = |r: Resolved, module: Option<&str>| Function {
            name: r.name.to_owned(),
            offset: r.offset,
            size: r.size,
            module: module.filter(|name| !name.is_empty()).map(str::to_owned),
        };
        let frame = |function| Frame { address: at, function, places: Vec::new() };
        // The last module that was loaded there before: space is used again after rmmod.
        let module = self.modules.iter().rev().filter(|(loaded, _)| *loaded <= sequence);
        for (_, module) in module {
            if module.ranges.iter().any(|r| r.contains(&at)) {
                let unnamed = || Function { module: Some(module.name.clone()), ..Function::default() };
                return frame(Some(module.resolve(at).map_or_else(unnamed, |r| function(r, Some(&module.name)))));
            }
        }
        let end = self.kernel.symbols.lookup("_end").unwrap_or(u64::MAX);
        frame(self.kernel.symbols.resolve(at).filter(|_| at < end).map(|r| function(r, None)))
    }
}
