//! The output of a guest, and assertions about it.

use crate::hidden::{self, Losses, Lost};
use crate::planted::{self, Differences};
use crate::program::messages;
use crate::report::{self, Report, Unreferenced};
use std::path::PathBuf;

/// A guest that ended.
#[derive(Debug)]
pub struct Boot {
    /// QEMU's exit status. 124 if the guest took too long.
    pub status: Option<i32>,
    /// The guest's console.
    pub console: String,
    /// stderr: messages of QEMU and the plugin, and the report.
    pub stderr: String,
    pub(crate) steps: Vec<String>,
    pub(crate) folder: PathBuf,
    /// Lost objects that are in no report. They are counted: see [`hidden`].
    pub(crate) hidden: Vec<Lost>,
}

impl Boot {
    /// Whether the guest's kernel died of a breakpoint that it had removed. QEMU with one thread
    /// per vCPU may execute such a breakpoint, also without any plugin (docs/qemu-support.md).
    pub(crate) fn met_a_stale_breakpoint(&self) -> bool {
        self.console.contains("Oops: int3:") && self.console.contains("Kernel panic")
    }

    /// Counts the lost objects that are in no report. Without any report none is counted, and the
    /// test asserts whether there is a report.
    ///
    /// # Panics
    /// If there are too many: see [`hidden::count`].
    pub(crate) fn count_hidden(&mut self, losses: Losses) {
        if !self.reports().is_empty() {
            self.hidden = self.find_hidden(losses);
            hidden::count(&self.test(), &self.hidden, &self.hint());
        }
    }

    /// Whether an object was lost, is in no report, and was counted as hidden.
    pub fn is_hidden(&self, address: u64) -> bool {
        self.hidden.iter().any(|lost| lost.address == address)
    }

    /// The number of lost objects that are in no report and were counted as hidden.
    pub fn hidden_objects(&self) -> u64 {
        self.hidden.len() as u64
    }

    fn test(&self) -> String {
        self.folder.file_name().unwrap_or_default().to_string_lossy().into_owned()
    }

    fn find_hidden(&self, losses: Losses) -> Vec<Lost> {
        let objects: Vec<_> = self.reports().into_iter().flat_map(|r| r.objects).collect();
        let lost = losses(&self.console);
        let (reported, missing): (Vec<Lost>, Vec<Lost>) =
            lost.iter().cloned().partition(|lost| objects.iter().any(|o| o.address == lost.address));
        if objects.iter().all(|o| o.group.is_none()) {
            return missing;
        }
        // A group has one address and the number of its objects, which may be all that are missing.
        if objects.iter().map(Unreferenced::count).sum::<u64>() >= lost.len() as u64 {
            return Vec::new();
        }
        missing.into_iter().filter(|lost| !reported.iter().any(|r| r.structure == lost.structure)).collect()
    }

    /// For the message of a failed test: the folder of the output, and the last lines of the
    /// console. A CI machine no longer exists when the message is read.
    pub fn hint(&self) -> String {
        let lines: Vec<&str> = self.console.lines().collect();
        let last = lines[lines.len().saturating_sub(12)..].join("\n    ");
        format!("see {}/console and stderr there; its last lines:\n    {last}\n", self.folder.display())
    }

    /// All reports on stderr, in their order.
    pub fn reports(&self) -> Vec<Report> {
        report::parse(&self.stderr)
    }

    /// The only report.
    ///
    /// # Panics
    /// If there is not exactly one.
    pub fn report(&self) -> Report {
        let mut reports = self.reports();
        let n = reports.len();
        reports.pop().filter(|_| n == 1).unwrap_or_else(|| panic!("{n} reports; {}\n{}", self.hint(), self.stderr))
    }

    /// The plugin's lines outside of reports.
    pub fn messages(&self) -> Vec<&str> {
        messages(&self.stderr)
    }

    /// Asserts that all steps succeeded, that the guest turned itself off, and that QEMU and the
    /// plugin printed no message.
    ///
    /// If one of these fails.
    pub fn assert_ended_well(&self) {
        assert_eq!(self.status, Some(0), "{}\n{}", self.hint(), self.stderr);
        for step in &self.steps {
            let done = format!("libleak-guest: end {step} 0");
            assert!(self.console.contains(&done), "no \"{done}\"; {}", self.hint());
        }
        assert!(self.console.contains("libleak-guest: off"), "{}", self.hint());
        assert_eq!(self.messages(), [""; 0], "{}", self.hint());
        // The guest itself must be well. Some consoles contain base64, which cannot contain these
        // strings.
        for trouble in ["Oops: ", "BUG:", "Kernel panic", "WARNING: CPU", "soft lockup", "rcu_sched self-detected"] {
            assert!(!self.console.contains(trouble), "\"{trouble}\" on the console; {}", self.hint());
        }
    }

    /// Asserts that all counters that speak against the last report are 0.
    ///
    /// # Panics
    /// If one is not.
    pub fn assert_trustworthy(&self) {
        let reports = self.reports();
        let summary = &reports.last().unwrap_or_else(|| panic!("no report; {}\n{}", self.hint(), self.stderr)).summary;
        assert!(summary.is_trustworthy(), "{}; {}", summary.line, self.hint());
        // A plugin that saw no event would have no such counters either.
        assert!(summary.allocations > 10_000 && summary.live > 1_000, "{}; {}", summary.line, self.hint());
    }

    /// Asserts that the objects are those that the module `leaky` planted, except for hidden ones.
    ///
    /// # Panics
    /// If they differ.
    pub fn assert_planted(&self, objects: &[Unreferenced]) {
        let planted = planted::planted(&self.console);
        assert_eq!(planted.len(), 8, "leaky.c plants 8; {}", self.hint());
        self.assert_agrees(&planted::differences(&planted, objects));
    }

    /// Asserts that nothing differs except for hidden objects. Hidden objects that were not counted
    /// at the guest's end are counted here.
    ///
    /// # Panics
    /// If something else differs, or if there are too many hidden objects.
    pub fn assert_agrees(&self, differences: &Differences) {
        assert!(differences.others.is_empty(), "{}\n{}", differences.others.join("\n"), self.hint());
        let lost = differences.missing.iter().map(planted::Planted::lost);
        let more: Vec<Lost> = lost.filter(|lost| !self.is_hidden(lost.address)).collect();
        hidden::count(&self.test(), &more, &self.hint());
    }

    /// Asserts that all reports together have what `leaky` planted, each object once. Scans must
    /// have found the objects: the last report, made at the guest's end, has at most one.
    ///
    /// # Panics
    /// If they differ.
    pub fn assert_planted_while_running(&self) {
        let reports = self.reports();
        assert!(reports.len() > 2, "{} reports; {}", reports.len(), self.hint());
        let objects: Vec<Unreferenced> = reports.iter().flat_map(|r| r.objects.clone()).collect();
        self.assert_planted(&objects);
        // A stale word may have hidden one until then.
        assert!(reports[reports.len() - 1].objects.len() < 2, "{}", self.hint());
    }
}
