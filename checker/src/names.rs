//! Names of addresses, in the kernel and in its modules.

use crate::allocations::caller_of;
use detector::guest_tests::shown;
use detector::objects::Object;
use detector::report::{Frame, Function, Place};
use detector::stacks::{StackId, Stacks};
use guest_symbols::Kernel;
use guest_symbols::modules::Module;
use guest_symbols::symbols::Resolved;
use lines::Lines;
use std::sync::Arc;

/// A module or BPF program, at the time when it was loaded.
#[derive(Clone)]
pub struct Load {
    /// Sequence number of the next allocation at that time.
    pub sequence: u64,
    /// Its ranges and symbols.
    pub module: Arc<Module>,
}

/// Names at the time of a check.
#[derive(Clone, Copy)]
pub struct Names<'a> {
    /// The kernel.
    pub kernel: &'a Kernel,
    /// Modules as they were loaded, in this order.
    pub modules: &'a [Load],
    /// The stacks of allocations.
    pub stacks: &'a Stacks,
    /// The user's debugging information for this kernel.
    pub lines: Option<&'a Lines>,
}

impl Names<'_> {
    /// The frames of an allocation: the allocator and its callers. The call site within the
    /// allocator is not known.
    pub fn frames(&self, object: &Object) -> Vec<Frame> {
        match object.stack() {
            StackId::NONE => vec![Frame::default()],
            stack => self
                .stacks
                .frames(stack)
                .iter()
                .enumerate()
                .map(|(i, &at)| {
                    let frame = self.frame(at, object.sequence());
                    Frame { places: self.places(&frame, i == 0), ..frame }
                })
                .collect(),
        }
    }

    /// The source location of a frame, which is the call before its return address. Of the
    /// allocator only the start is known, so that is its location.
    fn places(&self, frame: &Frame, is_start: bool) -> Vec<Place> {
        let (Some(lines), Some(function)) = (self.lines, &frame.function) else { return Vec::new() };
        let after = u64::from(is_start);
        let places = match &function.module {
            Some(module) => lines.module(module, &function.name, function.offset + after, function.size),
            None => lines.kernel(self.kernel, frame.address + after),
        };
        places.into_iter().map(|p| Place { function: p.function, file: p.file, line: p.line }).collect()
    }

    /// The last module that was loaded before allocation `sequence`, by the sequence number of its
    /// load. 0 if there is none.
    ///
    /// Equal stacks have equal names as long as this number is the same. Forgotten modules that are
    /// in none of these stacks make no difference.
    pub fn loaded(&self, sequence: u64) -> u64 {
        let after = self.modules.partition_point(|load| load.sequence <= sequence);
        self.modules[..after].last().map_or(0, |load| load.sequence)
    }

    /// The caller of the allocator and of the wrappers around it. `None` if the allocation was not
    /// seen.
    pub fn caller(&self, object: &Object) -> Option<Frame> {
        let frames = self.stacks.frames(object.stack());
        let name = |at| self.kernel.symbols.resolve(at).map(|r| r.name);
        caller_of(&frames, name).map(|i| self.frame(frames[i], object.sequence()))
    }

    /// The allocator and its caller. Empty if the allocation was not seen.
    pub fn site(&self, object: &Object) -> Vec<Frame> {
        let allocator = self.stacks.frames(object.stack()).first().map(|&at| self.frame(at, object.sequence()));
        allocator.into_iter().chain(self.caller(object)).collect()
    }

    /// The name and the source location of a frame, at the time of allocation `sequence`.
    pub fn located(&self, at: u64, sequence: u64) -> Frame {
        let frame = self.frame(at, sequence);
        Frame { places: self.places(&frame, false), ..frame }
    }

    /// The name of an address at the time of allocation `sequence`.
    pub fn frame(&self, at: u64, sequence: u64) -> Frame {
        let function = |r: Resolved, module: Option<&str>| Function {
            name: shown(r.name).into_owned(),
            offset: r.offset,
            size: r.size,
            module: module.filter(|name| !name.is_empty()).map(|name| shown(name).into_owned()),
        };
        let frame = |function| Frame { address: at, function, places: Vec::new() };
        // The last module that was loaded there before. After rmmod, the kernel reuses the space.
        for Load { module, .. } in self.modules.iter().rev().filter(|load| load.sequence <= sequence) {
            if module.ranges.iter().any(|r| r.contains(&at)) {
                let unnamed = || Function { module: Some(shown(&module.name).into_owned()), ..Function::default() };
                return frame(Some(module.resolve(at).map_or_else(unnamed, |r| function(r, Some(&module.name)))));
            }
        }
        let end = self.kernel.symbols.lookup("_end").unwrap_or(u64::MAX);
        frame(self.kernel.symbols.resolve(at).filter(|_| at < end).map(|r| function(r, None)))
    }
}
