//! Checks of a stopped guest.
//!
//! Methods that need a stopped guest take a [`GuestStopped`]. They take a lock, so one runs at a
//! time. Names, text and files can wait until the guest runs again: [`Session::report`].

use super::{Session, collected};
use crate::broadcast;
use crate::diagnostics;
use crate::ffi::ram::StoppedRam;
use crate::ffi::witness::GuestStopped;
use crate::ffi::{allocator, inject, panics, signals};
use crate::hooks::tracker::Tracker;
use crate::hooks::troubles::Trouble;
use checker::guest_state::{Counters, GuestState};
use checker::loss::Traces;
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

/// Most marks that are kept, each of some hundred KiB. The oldest is dropped.
const MAX_MARKS: usize = 32;

/// Checks that the kernel can still be found, as a snapshot needs. This takes 1 to 4 ms.
fn look_at_image(stopped: &GuestStopped, tracker: &Tracker) {
    if tracker.guest.kernel.checksum(&tracker.guest.ram.stopped(stopped)) != tracker.guest.checksum
        && tracker.troubles.enter(&Trouble::Image)
    {
        diagnostics::warning(&Trouble::Image.to_string());
    }
}

/// Checks that the kernel is still the tracked one. This takes some 20 microseconds.
fn look_at_kernel(tracker: &Tracker) {
    if !tracker.guest.is_there() && tracker.troubles.enter(&Trouble::ReadOnlyData) {
        diagnostics::warning(&Trouble::ReadOnlyData.to_string());
    }
}

/// Why there is no snapshot.
#[derive(Debug, thiserror::Error)]
pub enum SaveError {
    /// The live map cannot be copied.
    #[error(transparent)]
    Memory(#[from] CheckError),
    /// The file cannot be written.
    #[error(transparent)]
    Write(#[from] WriteError),
}

/// The purpose of a stop.
#[derive(Clone, Copy, PartialEq, Eq)]
enum For {
    /// Something that needs less memory than a check.
    Less,
    Check,
    /// A check at QEMU's exit.
    LastCheck,
}

/// The result of a scan.
pub struct ScanResult {
    /// New leaks, and the figures of the scan.
    pub outcome: Outcome,
    /// Counted events until the scan.
    pub counters: Counters,
}

/// A mark, to compare later moments with.
pub struct Mark {
    /// Its name; marks without one are numbered.
    pub name: String,
    /// Live objects at the mark, by allocation site.
    pub sites: Sites,
}

impl Mark {
    /// The mark as clients get it.
    pub fn told(&self) -> Marked {
        Marked { name: self.name.clone(), at_ms: self.sites.at_ms(), live: self.sites.total() }
    }
}

/// Marks, and the baseline.
#[derive(Default)]
pub(super) struct Marks {
    /// Objects with a lower sequence number are not reported.
    baseline: u64,
    /// How many marks were made.
    count: u64,
    kept: VecDeque<Arc<Mark>>,
}

impl Session {
    /// Finds new leaks: objects that no scan has reported, that were allocated after the last mark,
    /// and that are not younger than `min_age`.
    ///
    /// # Errors
    /// [`CheckError`].
    pub fn scan(&self, stopped: &GuestStopped, tracker: &Tracker, min_age: Duration) -> Result<ScanResult, CheckError> {
        self.scan_for(stopped, tracker, min_age, For::Check)
    }

    /// As [`Session::scan`], at QEMU's exit or a kernel's end. It may release the live map.
    ///
    /// # Errors
    /// [`CheckError`].
    pub(super) fn last_scan(&self, stopped: &GuestStopped, tracker: &Tracker) -> Result<ScanResult, CheckError> {
        self.scan_for(stopped, tracker, self.options.min_age.unwrap_or_default(), For::LastCheck)
    }

    fn scan_for(
        &self,
        stopped: &GuestStopped,
        tracker: &Tracker,
        min_age: Duration,
        what_for: For,
    ) -> Result<ScanResult, CheckError> {
        if self.options.snapshot.is_some() {
            look_at_image(stopped, tracker);
        }
        self.at_moment(stopped, tracker, min_age, what_for, |moment| {
            // Written first: it helps to find out why a check fails.
            if let Some(Err(why)) = self.options.snapshot.as_deref().map(|path| collected::save(path, moment)) {
                diagnostics::warning(&why.to_string());
            }
            inject("check");
            let outcome = self.shared(|| moment.check(self.options.why.as_deref(), &self.suppressions))?;
            self.settle(tracker, &outcome);
            let mut tests = tracker.tests.lock();
            // More tests may have ended since, on a QEMU that cannot stop all vCPUs.
            let told = outcome.tests.finished.len().min(tests.finished.len());
            tests.finished.drain(..told);
            drop(tests);
            Ok(ScanResult { outcome, counters: moment.counters })
        })?
    }

    /// Runs `check` in the pool of threads, if there is one.
    fn shared<T: Send>(&self, check: impl FnOnce() -> T + Send) -> T {
        // Started when it is first needed, because QEMU may fork before.
        let pool = self.pool.get_or_init(|| signals::while_blocked(|| threads::pool(self.options.threads)));
        match pool {
            Some(pool) => pool.install(|| {
                inject("workers");
                check()
            }),
            None => check(),
        }
    }

    /// Sets the baseline: no later scan reports objects that are live now. They are still searched
    /// for references, and later objects that only they refer to are still reported. This costs
    /// nothing.
    pub fn set_baseline(&self, tracker: &Tracker) {
        self.marks.lock().baseline = tracker.objects.sequence();
    }

    /// As [`Session::set_baseline`], and counts the live objects by site, for later comparison. A
    /// mark of the same name is replaced.
    ///
    /// # Errors
    /// [`CheckError`]; no mark is made then.
    pub fn mark(&self, stopped: &GuestStopped, tracker: &Tracker, name: Option<&str>) -> Result<Arc<Mark>, CheckError> {
        let sites = self.sites(stopped, tracker)?;
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

    /// The mark of that name, or the last one.
    pub fn find_mark(&self, name: Option<&str>) -> Option<Arc<Mark>> {
        let marks = self.marks.lock();
        marks.kept.iter().rev().find(|m| name.is_none_or(|name| m.name == name)).cloned()
    }

    /// The names of all marks, the oldest first.
    pub fn mark_names(&self) -> Vec<String> {
        self.marks.lock().kept.iter().map(|m| m.name.clone()).collect()
    }

    /// Makes later scans ignore what is unreferenced now, like `echo clear` for kmemleak. Returns
    /// how much that is.
    ///
    /// # Errors
    /// [`CheckError`].
    pub fn clear(&self, stopped: &GuestStopped, tracker: &Tracker) -> Result<Count, CheckError> {
        self.at_moment(stopped, tracker, Duration::ZERO, For::Check, |moment| {
            let outcome = self.shared(|| moment.check(None, &self.suppressions))?;
            self.settle(tracker, &outcome);
            let unreferenced = &outcome.unreferenced;
            Ok(Count { objects: unreferenced.len() as u64, bytes: unreferenced.iter().map(|u| u.leak.size).sum() })
        })?
    }

    /// Counts the live objects by site, reachable or not.
    ///
    /// # Errors
    /// [`CheckError`].
    pub fn sites(&self, stopped: &GuestStopped, tracker: &Tracker) -> Result<Sites, CheckError> {
        self.at_moment(stopped, tracker, Duration::ZERO, For::Check, |moment| {
            let sites = Sites::of(moment)?;
            log::debug!("{} objects live", sites.total().objects);
            Ok(sites)
        })?
    }

    /// Finds the chains of references from roots to the live object that contains virtual address
    /// `address`; empty if there is no such object.
    ///
    /// # Errors
    /// [`CheckError`].
    pub fn why(&self, stopped: &GuestStopped, tracker: &Tracker, address: u64) -> Result<Vec<Path>, CheckError> {
        self.at_moment(stopped, tracker, Duration::ZERO, For::Check, |moment| moment.why(address))?
    }

    /// Writes a snapshot.
    ///
    /// # Errors
    /// [`SaveError`].
    pub fn save(&self, stopped: &GuestStopped, tracker: &Tracker, path: &std::path::Path) -> Result<(), SaveError> {
        let min_age = self.options.min_age.unwrap_or_default();
        look_at_image(stopped, tracker);
        Ok(self.at_moment(stopped, tracker, min_age, For::Less, |moment| collected::save(path, moment))??)
    }

    /// Calls `look` with the [`GuestState`] of the stopped guest.
    ///
    /// # Errors
    /// [`CheckError::NoMemory`], if the host has too little memory. Nothing was done then.
    fn at_moment<T>(
        &self,
        stopped: &GuestStopped,
        tracker: &Tracker,
        min_age: Duration,
        what_for: For,
        look: impl FnOnce(&GuestState<'_, StoppedRam<'_>>) -> T,
    ) -> Result<T, CheckError> {
        let _one = self.checking.lock();
        let needs = tracker.needs();
        let rest = if what_for == For::Less { 0 } else { needs.rest };
        let whole = needs.copy + rest;
        let fits =
            |bytes| allocator::may_have(bytes).then_some(()).ok_or(CheckError::NoMemory(whole.div_ceil(1 << 20)));
        log::debug!("{} MiB in use, and a check needs {} MiB", allocator::used() >> 20, whole >> 20);
        // After the last copy the live map is not needed.
        let in_parts = what_for == For::LastCheck && !allocator::may_have(whole);
        fits(if in_parts { needs.copy } else { whole })?;
        let baseline = self.marks.lock().baseline;
        let mut objects = self.shared(|| tracker.copy_objects());
        if in_parts {
            tracker.objects.release();
            allocator::give_back();
            fits(rest)?;
        }
        // Objects before the baseline count as reported. A snapshot contains this, so that its
        // report is the same.
        objects.set_reported_before(baseline);
        let modules = tracker.modules.all();
        let memory = tracker.guest.ram.stopped(stopped);
        look_at_kernel(tracker);
        tracker.report_limits();
        let mut tests = tracker.tests.lock().clone();
        tests.at = tests.at.or_else(|| tests.running.clone());
        Ok(look(&GuestState {
            kernel: &tracker.guest.kernel,
            memory: &memory,
            objects: &objects,
            stacks: tracker.unwinder.stacks(),
            lines: self.lines().as_deref(),
            registers: &collected::registers(stopped),
            modules: &modules,
            tests: &tests,
            counters: collected::counters(tracker),
            troubles: &tracker.troubles.all(),
            millis: tracker.time.millis(),
            min_age,
            // The time of their allocation is not known, so after a mark they count as older.
            unseen: self.options.live_slab && baseline == 0,
            halted: panics::halted().is_some(),
            traces: tracker.history.as_ref().map(|history| history as &dyn Traces),
        }))
    }

    /// Remembers in the live map what was reported.
    fn settle(&self, tracker: &Tracker, outcome: &Outcome) {
        outcome.unreferenced.iter().for_each(|u| tracker.objects.set_reported(u.leak.addr, u.object.kind()));
    }

    /// Writes a scan's report to all destinations, and returns it. `pause` is how long the guest
    /// was stopped, and `last` is whether no scan follows. The guest may run.
    pub fn report(&self, tracker: &Tracker, found: &ScanResult, pause: Duration, last: bool) -> Report {
        let began = Instant::now();
        let asked =
            Asked { audit: self.options.audit, pause: Some(pause), suppressions: &self.suppressions, unused: last };
        let report =
            self.named(tracker, |names| checker::report::report(names, &found.outcome, &found.counters, asked));
        self.output.write(&report);
        self.history.lock().add(&report);
        broadcast::publish(|| broadcast::scan(&report));
        let problems = self.lines().map(|lines| lines.take_problems());
        problems.into_iter().flatten().for_each(|why| diagnostics::warning(&why.to_string()));
        log::info!("report of {} objects written in {:?}", found.outcome.unreferenced.len(), began.elapsed());
        if !last {
            allocator::give_back_at_times();
        }
        report
    }

    /// Calls `tell` with the names of the tracked kernel and its modules. The guest may run.
    pub fn named<T>(&self, tracker: &Tracker, tell: impl FnOnce(Names<'_>) -> T) -> T {
        tell(Names {
            kernel: &tracker.guest.kernel,
            modules: &tracker.modules.all(),
            stacks: tracker.unwinder.stacks(),
            lines: self.lines().as_deref(),
        })
    }
}
