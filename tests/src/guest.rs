//! Booting a guest under the plugin, through `scripts/boot`.

use crate::planted;
use crate::program::{self, Program, messages, scratch, workspace};
use crate::report::{self, Report, Unreferenced};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// A guest to boot.
#[derive(Debug, Clone)]
pub struct Guest {
    test: String,
    kernel: String,
    boot: Vec<String>,
    steps: Vec<String>,
    options: Option<Vec<String>>,
    groups: bool,
    qemu: Vec<String>,
    seconds: u32,
    losing: Option<Losses>,
    console: Option<PathBuf>,
    panics: Option<String>,
    alone: bool,
}

/// From a console, the addresses that a module says it lost.
type Losses = fn(&str) -> Vec<u64>;

/// Boots of a guest that loses something, at most.
const BOOTS: usize = 3;

/// A guest that ended.
#[derive(Debug)]
pub struct Boot {
    /// QEMU's status; 124 if the guest took too long.
    pub status: Option<i32>,
    /// The guest's console.
    pub console: String,
    /// What QEMU and the plugin said.
    pub stderr: String,
    steps: Vec<String>,
    folder: PathBuf,
}

impl Guest {
    /// A guest with that kernel (a name as in `scripts/lib/kernels.sh`), 2 vCPUs and 512 MiB, under the plugin
    /// with no option but `each=on`. `test` names the folder below `target/guests` that the output is left in.
    pub fn new(test: &str, kernel: &str) -> Guest {
        let no = Vec::new;
        Guest {
            test: test.to_owned(),
            kernel: kernel.to_owned(),
            boot: no(),
            steps: no(),
            options: Some(no()),
            groups: false,
            qemu: no(),
            seconds: 240,
            losing: None,
            console: None,
            panics: None,
            alone: false,
        }
        .smp(2)
    }

    fn boot_option(mut self, name: &str, value: &str) -> Guest {
        self.boot.extend([name.to_owned(), value.to_owned()]);
        self
    }

    /// Number of vCPUs.
    #[must_use]
    pub fn smp(self, vcpus: u32) -> Guest {
        // The last one counts.
        self.boot_option("--smp", &vcpus.to_string())
    }

    /// Memory.
    #[must_use]
    pub fn memory(self, mib: u32) -> Guest {
        self.boot_option("--memory", &mib.to_string())
    }

    /// Memory in QEMU's own words, such as `256M,slots=2,maxmem=1G`.
    #[must_use]
    pub fn memory_words(self, words: &str) -> Guest {
        self.boot_option("--memory", words)
    }

    /// Accelerator: `tcg` unless said.
    #[must_use]
    pub fn accel(self, words: &str) -> Guest {
        self.boot_option("--accel", words)
    }

    /// Machine type: `pc` unless said.
    #[must_use]
    pub fn machine(self, name: &str) -> Guest {
        self.boot_option("--machine", name)
    }

    /// CPU model: QEMU's own choice unless said.
    #[must_use]
    pub fn cpu(self, name: &str) -> Guest {
        self.boot_option("--cpu", name)
    }

    /// Writes the console to a file while the guest runs, for a test that waits for something there.
    #[must_use]
    pub fn console(mut self, file: &Path) -> Guest {
        self.console = Some(file.to_owned());
        self.boot_option("--console", file.to_str().expect("a path that is text"))
    }

    /// From a disk image, through firmware and GRUB, and not with QEMU's -kernel.
    #[must_use]
    pub fn from_disk(self) -> Guest {
        self.boot_option("--loader", "grub")
    }

    /// Seconds until QEMU is told to quit.
    #[must_use]
    pub fn limit(mut self, seconds: u32) -> Guest {
        self.seconds = seconds;
        self
    }

    /// Puts a test module into the guest, without loading it.
    #[must_use]
    pub fn module(self, name: &str) -> Guest {
        self.boot_option("--module", name)
    }

    /// The same, of a module that is built with debugging information, which stays on this side: see
    /// [`module_debug_folder`](crate::program::module_debug_folder).
    #[must_use]
    pub fn module_debug(self, name: &str) -> Guest {
        self.boot_option("--module-debug", name)
    }

    /// Puts a script into the guest, as a step of that name.
    #[must_use]
    pub fn script(self, name: &str, text: &str) -> Guest {
        // Not in the scratch folder of the test, which booting empties.
        let file = scratch(&format!("{}-script-{name}", self.test)).join(name);
        std::fs::write(&file, text).expect("the script is written");
        self.boot_option("--file", &format!("{}:/guest/{name}", file.display()))
    }

    /// Puts a program of `tests/programs` into the guest, as a step of that name.
    ///
    /// # Panics
    /// If it cannot be built.
    #[must_use]
    pub fn program(self, name: &str) -> Guest {
        let file = scratch(&format!("{}-{name}", self.test)).join(name);
        let source = workspace().join("tests/programs").join(format!("{name}.c"));
        let gcc = Program::new("gcc").args("-O2 -static -Wall -Werror -o").arg(&file).arg(source).run();
        assert_eq!(gcc.status, Some(0), "{}", gcc.stderr);
        self.boot_option("--file", &format!("{}:/guest/{name}", file.display()))
    }

    /// Adds to the kernel command line.
    #[must_use]
    pub fn append(self, words: &str) -> Guest {
        self.boot_option("--append", words)
    }

    /// Another QEMU than the installed one: see `scripts/boot --qemu`.
    #[must_use]
    pub fn qemu(self, which: &str) -> Guest {
        self.boot_option("--qemu", which)
    }

    /// Adds steps for the guest, such as `insmod:leaky`: see `scripts/guest/init`.
    #[must_use]
    pub fn run(mut self, steps: &[&str]) -> Guest {
        self.steps.extend(steps.iter().map(|&s| s.to_owned()));
        self
    }

    /// Adds an option for the plugin.
    #[must_use]
    pub fn option(mut self, word: &str) -> Guest {
        self.options.get_or_insert_default().push(word.to_owned());
        self
    }

    /// Has reports of groups, and not of each object.
    #[must_use]
    pub fn groups(mut self) -> Guest {
        self.groups = true;
        self
    }

    /// Boots without the plugin.
    #[must_use]
    pub fn without_plugin(mut self) -> Guest {
        self.options = None;
        self
    }

    /// Has QEMU's monitor at a socket.
    #[must_use]
    pub fn monitor(self, socket: &Path) -> Guest {
        self.qemu_arg("-monitor").qemu_arg(&format!("unix:{},server=on,wait=off", socket.display()))
    }

    /// Lets a guest that reboots start again.
    #[must_use]
    pub fn reboots(self) -> Guest {
        self.qemu_arg("-action").qemu_arg("reboot=reset")
    }

    /// Puts another kernel into the guest, for the step `kexec`, which starts it and there loads `leaky`.
    #[must_use]
    pub fn kexec(self, kernel: &str) -> Guest {
        self.boot_option("--kexec", kernel).program("kexec")
    }

    /// Has the plugin panic at these places: see `inject` in `plugin/src/ffi/panics.rs`.
    #[must_use]
    pub fn panics(mut self, places: &str) -> Guest {
        self.panics = Some(places.to_owned());
        self
    }

    /// Adds an argument for QEMU.
    #[must_use]
    pub fn qemu_arg(mut self, word: &str) -> Guest {
        self.qemu.push(word.to_owned());
        self
    }

    /// Says what the guest will lose, so that it is booted again when that is not all reported, thrice at most.
    ///
    /// A scan that takes words for pointers can be fooled: some dead word somewhere may happen to equal an
    /// address that was lost. That is rare and different in each boot, so a leak that libleak does not see for
    /// another reason still fails the test. What is reported and not lost always does.
    #[must_use]
    pub fn losing(mut self, losses: Losses) -> Guest {
        self.losing = Some(losses);
        self
    }

    /// Has no other guest beside it: see [`Program::alone`].
    #[must_use]
    pub fn alone(mut self) -> Guest {
        self.alone = true;
        self
    }

    /// Boots the guest and waits for its end.
    pub fn boot(&self) -> Boot {
        let mut boot = self.boot_once();
        for again in 1..BOOTS {
            let hidden = boot.hidden(self.losing);
            let why = match boot.met_a_stale_breakpoint() {
                true => "QEMU ran a breakpoint that was no longer there".to_owned(),
                false if hidden.is_empty() => break,
                false => format!("lost and not reported {hidden:x?}"),
            };
            println!("boot {again} of {}: {why}", self.test);
            boot = self.boot_once();
        }
        boot
    }

    fn boot_once(&self) -> Boot {
        let mut program = Program::new(workspace().join("scripts/boot")).arg(&self.kernel);
        for word in &self.boot {
            program = program.arg(word);
        }
        if !self.steps.is_empty() {
            program = program.arg("--run").arg(self.steps.join(","));
        }
        program = program.arg("--timeout").arg(self.seconds.to_string()).arg("--");
        if let Some(options) = &self.options {
            let mut options = options.clone();
            options.extend((!self.groups).then(|| "each=on".to_owned()));
            let plugin = if self.panics.is_some() { program::faulty_plugin() } else { program::plugin() };
            program = program.arg("-plugin").arg(program::argument(&plugin, &options));
        }
        for word in &self.qemu {
            program = program.arg(word);
        }
        if let Some(places) = &self.panics {
            program = program.env("LIBLEAK_PANIC", places);
        }
        if self.alone {
            program = program.alone();
        }
        // Beyond the guest's own limit there is only the time to fetch and build its parts.
        let done = program.limit(self.seconds + 900).run();
        let folder = scratch(&self.test);
        let console = match &self.console {
            Some(file) => String::from_utf8_lossy(&std::fs::read(file).unwrap_or_default()).replace('\r', ""),
            None => done.stdout,
        };
        std::fs::write(folder.join("console"), &console).expect("the console is saved");
        std::fs::write(folder.join("stderr"), &done.stderr).expect("the report is saved");
        Boot { status: done.status, console, stderr: done.stderr, steps: self.steps.clone(), folder }
    }
}

impl Boot {
    /// Whether the guest's kernel died of a breakpoint that it had taken away again: QEMU with a thread for each vCPU may run it all the
    /// same, without any plugin too (README.md).
    fn met_a_stale_breakpoint(&self) -> bool {
        self.console.contains("Oops: int3:") && self.console.contains("Kernel panic")
    }

    /// What was lost and is in no report.
    fn hidden(&self, losing: Option<Losses>) -> Vec<u64> {
        let Some(losses) = losing.filter(|_| self.stderr.contains("libleak: ")) else { return Vec::new() };
        let objects: Vec<_> = self.reports().into_iter().flat_map(|r| r.objects).collect();
        let reported: BTreeSet<u64> = objects.iter().map(|o| o.address).collect();
        let lost = losses(&self.console);
        // Of a group one address is told, and how many there are.
        if objects.iter().map(Unreferenced::count).sum::<u64>() >= lost.len() as u64 && reported.len() < lost.len() {
            return Vec::new();
        }
        lost.into_iter().filter(|address| !reported.contains(address)).collect()
    }

    /// Where to look, for the message of a test that fails, and how the guest ended: a machine of CI is gone when
    /// somebody reads it.
    pub fn hint(&self) -> String {
        let lines: Vec<&str> = self.console.lines().collect();
        let last = lines[lines.len().saturating_sub(12)..].join("\n    ");
        format!("see {}/console and stderr there; its last lines:\n    {last}\n", self.folder.display())
    }

    /// Every report on stderr, in their order.
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

    /// The plugin's lines that are no report.
    pub fn messages(&self) -> Vec<&str> {
        messages(&self.stderr)
    }

    /// The guest did all its steps and turned itself off, and QEMU and the plugin had no complaint.
    ///
    /// # Panics
    /// If not.
    pub fn assert_ended_well(&self) {
        assert_eq!(self.status, Some(0), "{}\n{}", self.hint(), self.stderr);
        for step in &self.steps {
            let done = format!("libleak-guest: end {step} 0");
            assert!(self.console.contains(&done), "no \"{done}\"; {}", self.hint());
        }
        assert!(self.console.contains("libleak-guest: off"), "{}", self.hint());
        assert_eq!(self.messages(), [""; 0], "{}", self.hint());
        // Whatever was reported, the guest itself must have been well.
        for trouble in ["Oops", "BUG:", "Kernel panic", "WARNING: CPU", "soft lockup", "rcu_sched self-detected"] {
            assert!(!self.console.contains(trouble), "\"{trouble}\" on the console; {}", self.hint());
        }
    }

    /// The counters that speak against the last report are all 0.
    ///
    /// # Panics
    /// If not.
    pub fn assert_trustworthy(&self) {
        let reports = self.reports();
        let summary = &reports.last().unwrap_or_else(|| panic!("no report; {}\n{}", self.hint(), self.stderr)).summary;
        assert!(summary.is_trustworthy(), "{}; {}", summary.line, self.hint());
        // A plugin that saw nothing would have no doubts either.
        assert!(summary.allocations > 10_000 && summary.live > 1_000, "{}; {}", summary.line, self.hint());
    }

    /// The objects are exactly what the module `leaky` planted.
    ///
    /// # Panics
    /// If not.
    pub fn assert_planted(&self, objects: &[Unreferenced]) {
        let planted = planted::planted(&self.console);
        assert_eq!(planted.len(), 8, "leaky.c plants 8; {}", self.hint());
        let differences = planted::differences(&planted, objects);
        assert!(differences.is_empty(), "{}\n{}", self.hint(), differences.join("\n"));
    }

    /// All reports together have exactly what `leaky` planted, each object once, and not first in the last one,
    /// which is made when the guest has ended.
    ///
    /// # Panics
    /// If not.
    pub fn assert_planted_while_running(&self) {
        let reports = self.reports();
        assert!(reports.len() > 2, "{} reports; {}", reports.len(), self.hint());
        let objects: Vec<Unreferenced> = reports.iter().flat_map(|r| r.objects.clone()).collect();
        self.assert_planted(&objects);
        // All but what some dead word hid until then.
        assert!(reports[reports.len() - 1].objects.len() < 2, "{}", self.hint());
    }
}
