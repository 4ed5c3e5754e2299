//! A guest at one time, with everything that its report depends on. The plugin has it when it has
//! stopped the guest, and a snapshot saves it. Both make the same report.

use crate::allocations::Allocations;
use crate::blocks::Block;
pub use crate::counters::Counters;
use crate::loss::{self, Traces};
use crate::names::{Load, Names};
use crate::text::comm;
use crate::why::Path;
use crate::{CheckError, Outcome, Request};
use detector::frozen::Objects;
use detector::guest_tests::Tests;
use detector::objects::{Kind, Object};
use detector::stacks::{StackId, Stacks};
use detector::suppress::Suppressions;
use guest_symbols::Kernel;
use guest_symbols::memory::StoppedMemory;
use guest_symbols::percpu::PerCpu;
use lines::Lines;
use std::cell::RefCell;
use std::collections::HashMap;
use std::time::Duration;

/// The state of a stopped guest.
pub struct GuestState<'a, M> {
    /// The guest's kernel.
    pub kernel: &'a Kernel,
    /// Its RAM, which does not change.
    pub memory: &'a M,
    /// The live map's snapshot.
    pub objects: &'a Objects,
    /// Words held in the CPUs' registers.
    pub registers: &'a [u64],
    /// The stacks of allocations.
    pub stacks: &'a Stacks,
    /// The user's debugging information for this kernel.
    pub lines: Option<&'a Lines>,
    /// Modules as they were loaded, in this order.
    pub modules: &'a [Load],
    /// The tests that the guest has run before the check.
    pub tests: &'a Tests,
    /// Events before the check.
    pub counters: Counters,
    /// Reasons to doubt the report that the plugin found while it traced the guest.
    pub troubles: &'a [String],
    /// Milliseconds since the start of tracking, as in [`Objects::millis`].
    pub millis: u64,
    /// Objects younger than this are not reported.
    pub min_age: Duration,
    /// Whether objects whose allocation was not seen may be leaks.
    pub unseen: bool,
    /// Whether tracing had ended before the check. See [`Allocations::halted`].
    pub halted: bool,
    /// The history of references, if there is one. Snapshots do not keep it.
    pub traces: Option<&'a dyn Traces>,
}

impl<'a, M> GuestState<'a, M> {
    /// The same state with another memory.
    pub fn with_memory<'b, N>(&self, memory: &'b N) -> GuestState<'b, N>
    where
        'a: 'b,
    {
        GuestState {
            memory,
            kernel: self.kernel,
            objects: self.objects,
            registers: self.registers,
            stacks: self.stacks,
            lines: self.lines,
            modules: self.modules,
            tests: self.tests,
            counters: self.counters,
            troubles: self.troubles,
            millis: self.millis,
            min_age: self.min_age,
            unseen: self.unseen,
            halted: self.halted,
            traces: self.traces,
        }
    }
}

impl<'a, M: StoppedMemory> GuestState<'a, M> {
    /// Names of addresses.
    pub fn names(&self) -> Names<'a> {
        Names { kernel: self.kernel, modules: self.modules, stacks: self.stacks, lines: self.lines }
    }

    /// The live map with its stacks.
    pub fn allocations(&self) -> Allocations<'a> {
        Allocations { objects: self.objects, stacks: self.stacks, halted: self.halted }
    }

    /// Makes the check. Objects that were reported before, are too young, or match `suppressions`
    /// are left out, with everything reachable from them. If `why` is given, live objects whose
    /// function, module or task name contains it are explained.
    ///
    /// # Errors
    /// [`CheckError`].
    pub fn check(&self, why: Option<&str>, suppressions: &Suppressions) -> Result<Outcome, CheckError> {
        let names = self.names();
        let wanted = |block: &Block, object: &Object| {
            let site = names.site(object).into_iter().map(|frame| frame.to_string());
            let named = |part| [comm(self.objects, object)].into_iter().chain(site).any(|name| name.contains(part));
            block.seen() && why.is_some_and(named)
        };
        let wanted: Option<&crate::Wanted> = if why.is_some() { Some(&wanted) } else { None };
        // One stack may have allocated a hundred thousand leaks.
        let found: RefCell<HashMap<(StackId, u64), Option<usize>>> = RefCell::default();
        let suppressed = |object: &Object| {
            let loaded = names.loaded(object.sequence());
            let find = || suppressions.find(&names.frames(object));
            *found.borrow_mut().entry((object.stack(), loaded)).or_insert_with(find)
        };
        let suppressed: Option<&crate::Suppressed> = if suppressions.is_empty() { None } else { Some(&suppressed) };
        let request = Request {
            allocations: self.allocations(),
            registers: self.registers,
            unseen: self.unseen,
            wanted,
            suppressed,
            traces: self.traces,
        };
        let mut outcome = crate::check(self.kernel, self.memory, request)?;
        outcome.troubles.splice(..0, self.troubles.iter().cloned());
        outcome.tests = self.tests.clone();
        outcome.suppressed.keys().for_each(|number| suppressions.set_used(*number));
        loss::name_variables(names, self.memory, outcome.unreferenced.iter_mut().filter_map(|u| u.traced.as_mut()));
        outcome.unreferenced.retain_mut(|u| {
            u.leak.age = self.millis.saturating_sub(self.objects.millis(&u.object));
            if let Some(traced) = &mut u.traced {
                let lost = traced.trace.lost.map_or(0, |lost| self.objects.millis_at(lost.time));
                traced.age = self.millis.saturating_sub(lost);
            }
            !u.object.is_reported() && Duration::from_millis(u.leak.age) >= self.min_age
        });
        Ok(outcome)
    }

    /// The paths to the live objects that contain virtual address or `__percpu` pointer `address`.
    /// There are two if pages that were allocated as such contain another object.
    ///
    /// # Errors
    /// [`CheckError`].
    pub fn why(&self, address: u64) -> Result<Vec<Path>, CheckError> {
        let copies = PerCpu::read(self.kernel, self.memory).offsets;
        let wanted = |block: &Block, _: &Object| {
            let has = |address: u64| address.checked_sub(block.addr).is_some_and(|offset| offset < block.size);
            let is_percpu = block.kind == Kind::Percpu;
            has(address) || is_percpu && copies.iter().any(|copy| has(address.wrapping_sub(*copy)))
        };
        let request = Request {
            allocations: self.allocations(),
            registers: self.registers,
            unseen: self.unseen,
            wanted: Some(&wanted),
            suppressed: None,
            traces: None,
        };
        Ok(crate::check(self.kernel, self.memory, request)?.paths)
    }
}
