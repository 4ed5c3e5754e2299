//! What is done of a guest that stands still.
//!
//! Whoever calls a method whose docstring says so has stopped every vCPU: the thread of the [triggers](crate::triggers), QEMU at
//! its exit, or a callback in an exclusive section. One at a time: they take a lock, so no caller may hold up the others
//! that wait for it. What can be done when the guest runs again (names, text, files) is left for then: [`Session::report`].

use super::Session;
use super::troubles::Trouble;
use crate::ffi::{inject, memory, panics, signals};
use crate::hooks::tracker::Tracker;
use crate::output;
use crate::stopped;
use crate::triggers::control::events;
use checker::moment::{Counters, Moment};
use checker::names::Names;
use checker::report::Asked;
use checker::sites::Sites;
use checker::why::Path;
use checker::{CheckError, Outcome, threads};
use detector::control::{Count, Marked};
use detector::report::Report;
use snapshot::WriteError;
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Marks that are kept to compare with, each of some hundred KiB; the oldest goes.
const MAX_MARKS: usize = 32;

/// The guest is stopped: whether the kernel could be found again, as it is in a snapshot. This takes 1 to 4 ms.
fn look_at_image(tracker: &Tracker) {
    // SAFETY: the vCPUs are stopped, by the contract of the methods below with their callers.
    #[expect(unsafe_code, reason = "says that the guest stands still")]
    let memory = unsafe { tracker.ram.stopped() };
    if tracker.kernel.checksum(&memory) != tracker.checksum && tracker.troubles.enter(&Trouble::Image) {
        output::warning(&Trouble::Image.to_string());
    }
}

/// The guest is stopped: whether the kernel is still the one that is tracked. This takes some 20 microseconds.
fn look_at_kernel(tracker: &Tracker) {
    if !tracker.is_there() && tracker.troubles.enter(&Trouble::ReadOnlyData) {
        output::warning(&Trouble::ReadOnlyData.to_string());
    }
}

/// Why there is no snapshot.
#[derive(Debug, thiserror::Error)]
pub enum SaveError {
    /// The live map cannot be copied.
    #[error(transparent)]
    Memory(#[from] CheckError),
    /// The file.
    #[error(transparent)]
    Write(#[from] WriteError),
}

/// What the guest is stopped for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum For {
    /// Less than a check.
    Less,
    Check,
    /// A check at QEMU's exit.
    LastCheck,
}

/// What a scan found.
pub struct Found {
    /// What is new, and the figures.
    pub outcome: Outcome,
    /// Events until then.
    pub counters: Counters,
}

/// A moment that later ones are held against.
pub struct Mark {
    /// Its name; marks without one are numbered.
    pub name: String,
    /// Live objects then.
    pub sites: Sites,
}

impl Mark {
    /// What clients are told of it.
    pub fn told(&self) -> Marked {
        Marked { name: self.name.clone(), at_ms: self.sites.at_ms(), live: self.sites.total() }
    }
}

/// Marks, and since when objects are reported.
#[derive(Default)]
pub(super) struct Marks {
    /// Objects with a lesser sequence number are no news.
    baseline: u64,
    /// Marks that were made.
    count: u64,
    kept: VecDeque<Arc<Mark>>,
}

impl Session {
    /// The guest is stopped: looks for leaks that are new, those that no scan has reported yet and that were allocated since
    /// the last mark, if there was one. Of those, none younger than `min_age` is taken.
    ///
    /// # Errors
    /// [`CheckError`].
    pub fn scan(&self, tracker: &Tracker, min_age: Duration) -> Result<Found, CheckError> {
        self.scan_for(tracker, min_age, For::Check)
    }

    /// As [`Session::scan`], at QEMU's exit: the live map may be gone after it.
    ///
    /// # Errors
    /// [`CheckError`].
    pub(super) fn last_scan(&self, tracker: &Tracker) -> Result<Found, CheckError> {
        self.scan_for(tracker, self.options.min_age.unwrap_or_default(), For::LastCheck)
    }

    fn scan_for(&self, tracker: &Tracker, min_age: Duration, what_for: For) -> Result<Found, CheckError> {
        if self.options.snapshot.is_some() {
            look_at_image(tracker);
        }
        self.stopped(tracker, min_age, what_for, |moment| {
            // First, for whoever looks into why the check fails.
            if let Some(Err(why)) = self.options.snapshot.as_deref().map(|path| stopped::save(path, moment)) {
                output::warning(&why.to_string());
            }
            inject("check");
            let outcome = self.shared(|| moment.check(self.options.why.as_deref(), &self.suppressions))?;
            self.settle(tracker, &outcome);
            let mut tests = tracker.tests.lock();
            // Others may have ended meanwhile, on QEMU that cannot stop all.
            let told = outcome.tests.finished.len().min(tests.finished.len());
            tests.finished.drain(..told);
            drop(tests);
            Ok(Found { outcome, counters: moment.counters })
        })?
    }

    /// Makes a check where several threads can share the work.
    fn shared<T: Send>(&self, check: impl FnOnce() -> T + Send) -> T {
        // Started when it is needed: QEMU may fork before.
        let pool = self.pool.get_or_init(|| signals::while_blocked(|| threads::pool(self.options.threads)));
        match pool {
            Some(pool) => pool.install(|| {
                inject("workers");
                check()
            }),
            None => check(),
        }
    }

    /// The guest is stopped: takes all that is live now as the state of things. No later scan reports any of it, though it
    /// is searched for references as ever, and what is allocated later and hangs from it is reported if it leaks. This costs nothing.
    pub fn set_baseline(&self, tracker: &Tracker) {
        self.marks.lock().baseline = tracker.sequence();
    }

    /// The guest is stopped: as [`Session::set_baseline`], and counts the live objects by site, for later comparison. A
    /// mark of the same name is replaced.
    ///
    /// # Errors
    /// [`CheckError`], and there is no mark then.
    pub fn mark(&self, tracker: &Tracker, name: Option<&str>) -> Result<Arc<Mark>, CheckError> {
        let sites = self.sites(tracker)?;
        self.set_baseline(tracker);
        let mut marks = self.marks.lock();
        marks.count += 1;
        let name = name.map_or_else(|| marks.count.to_string(), str::to_owned);
        let mark = Arc::new(Mark { name, sites });
        marks.kept.retain(|m| m.name != mark.name);
        if marks.kept.len() == MAX_MARKS {
            marks.kept.pop_front();
        }
        marks.kept.push_back(Arc::clone(&mark));
        Ok(mark)
    }

    /// The mark of that name, or the last one. Needs no stopped guest.
    pub fn find_mark(&self, name: Option<&str>) -> Option<Arc<Mark>> {
        let marks = self.marks.lock();
        marks.kept.iter().rev().find(|m| name.is_none_or(|name| m.name == name)).cloned()
    }

    /// The names of all marks that are kept, the oldest first. Needs no stopped guest.
    pub fn mark_names(&self) -> Vec<String> {
        self.marks.lock().kept.iter().map(|m| m.name.clone()).collect()
    }

    /// The guest is stopped: what is unreferenced now is reported by no later scan, as after `echo clear` for kmemleak. Says
    /// how much that is.
    ///
    /// # Errors
    /// [`CheckError`].
    pub fn clear(&self, tracker: &Tracker) -> Result<Count, CheckError> {
        self.stopped(tracker, Duration::ZERO, For::Check, |moment| {
            let outcome = self.shared(|| moment.check(None, &self.suppressions))?;
            self.settle(tracker, &outcome);
            let unreferenced = &outcome.unreferenced;
            Ok(Count { objects: unreferenced.len() as u64, bytes: unreferenced.iter().map(|u| u.leak.size).sum() })
        })?
    }

    /// The guest is stopped: counts the live objects by site, reachable or not.
    ///
    /// # Errors
    /// [`CheckError`].
    pub fn sites(&self, tracker: &Tracker) -> Result<Sites, CheckError> {
        self.stopped(tracker, Duration::ZERO, For::Check, |moment| {
            let sites = Sites::of(moment)?;
            log::debug!("{} objects live", sites.total().objects);
            Ok(sites)
        })?
    }

    /// The guest is stopped: who refers to the live object that has an address in it, step by step to the root; none if
    /// there is no such object.
    ///
    /// # Errors
    /// [`CheckError`].
    pub fn why(&self, tracker: &Tracker, address: u64) -> Result<Vec<Path>, CheckError> {
        self.stopped(tracker, Duration::ZERO, For::Check, |moment| moment.why(address))?
    }

    /// The guest is stopped: writes a snapshot.
    ///
    /// # Errors
    /// [`SaveError`].
    pub fn save(&self, tracker: &Tracker, path: &std::path::Path) -> Result<(), SaveError> {
        let min_age = self.options.min_age.unwrap_or_default();
        look_at_image(tracker);
        Ok(self.stopped(tracker, min_age, For::Less, |moment| stopped::save(path, moment))??)
    }

    /// The guest is stopped: makes a [`Moment`] of it, for a check or for less. One at a time.
    ///
    /// # Errors
    /// [`CheckError::NoMemory`], before anything was done that may fail for it.
    fn stopped<T>(
        &self,
        tracker: &Tracker,
        min_age: Duration,
        what_for: For,
        look: impl FnOnce(&Moment<'_, crate::ffi::ram::Stopped<'_>>) -> T,
    ) -> Result<T, CheckError> {
        let _one = self.checking.lock();
        let needs = tracker.needs();
        let rest = if what_for == For::Less { 0 } else { needs.rest };
        let whole = needs.copy + rest;
        let fits = |bytes| memory::may_have(bytes).then_some(()).ok_or(CheckError::NoMemory(whole.div_ceil(1 << 20)));
        log::debug!("{} MiB in use, and a check needs {} MiB", memory::used() >> 20, whole >> 20);
        // Nobody needs the live map any more when it has been copied.
        let in_parts = what_for == For::LastCheck && !memory::may_have(whole);
        fits(if in_parts { needs.copy } else { whole })?;
        let baseline = self.marks.lock().baseline;
        let mut objects = self.shared(|| tracker.objects());
        if in_parts {
            tracker.live.release();
            tracker.pages.iter().for_each(|pages| pages.map.release());
            memory::give_back();
            fits(rest)?;
        }
        // As if they had been reported. A snapshot keeps that, and so the report made of it is the same.
        objects.set_reported_before(baseline);
        let modules = tracker.modules();
        // SAFETY: the vCPUs are stopped, by the contract of the methods above with their callers.
        #[expect(unsafe_code, reason = "says that the guest stands still")]
        let memory = unsafe { tracker.ram.stopped() };
        look_at_kernel(tracker);
        tracker.tell_of_bounds();
        let mut tests = tracker.tests.lock().clone();
        tests.at = tests.at.or_else(|| tests.running.clone());
        Ok(look(&Moment {
            kernel: &tracker.kernel,
            memory: &memory,
            objects: &objects,
            stacks: &tracker.stacks,
            lines: self.lines().as_deref(),
            registers: &stopped::registers(),
            modules: &modules,
            tests: &tests,
            counters: stopped::counters(tracker),
            troubles: &tracker.troubles.all(),
            millis: tracker.millis(),
            min_age,
            // When they were allocated is not known, so after a mark it counts as before.
            unseen: self.options.live_slab && baseline == 0,
            halted: panics::halted().is_some(),
        }))
    }

    /// Enters into the live map what a check has found out.
    fn settle(&self, tracker: &Tracker, outcome: &Outcome) {
        outcome.unreferenced.iter().for_each(|u| tracker.set_reported(u.leak.addr, u.object.kind()));
    }

    /// Writes what a scan found to all destinations of reports, and gives it back. `pause` is how long the guest stood still
    /// for it, and `last` is whether no scan follows. The guest may run again.
    pub fn report(&self, tracker: &Tracker, found: &Found, pause: Duration, last: bool) -> Report {
        let began = Instant::now();
        let asked =
            Asked { audit: self.options.audit, pause: Some(pause), suppressions: &self.suppressions, unused: last };
        let report =
            self.named(tracker, |names| checker::report::report(names, &found.outcome, &found.counters, asked));
        self.output.write(&report);
        self.history.lock().add(&report);
        events::publish(|| events::scan(&report));
        let problems = self.lines().map(|lines| lines.take_problems());
        problems.into_iter().flatten().for_each(|why| output::warning(&why.to_string()));
        log::info!("report of {} objects written in {:?}", found.outcome.unreferenced.len(), began.elapsed());
        if !last {
            memory::give_back_at_times();
        }
        report
    }

    /// Gives the names of the tracked kernel and its modules. The guest may run.
    pub fn named<T>(&self, tracker: &Tracker, tell: impl FnOnce(Names<'_>) -> T) -> T {
        tell(Names {
            kernel: &tracker.kernel,
            modules: &tracker.modules(),
            stacks: &tracker.stacks,
            lines: self.lines().as_deref(),
        })
    }
}
