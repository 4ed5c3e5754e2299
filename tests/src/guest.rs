//! Boots guests under the plugin, with `scripts/boot`.

use crate::boot::Boot;
use crate::hidden::Losses;
use crate::program::{self, Program, scratch, workspace};
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
    kmods: Option<String>,
    panics: Option<String>,
    alone: bool,
}

/// Most boots of a guest whose kernel dies of QEMU's stale breakpoint.
const BOOTS: usize = 3;

impl Guest {
    /// A guest with 2 vCPUs and 512 MiB, under the plugin with the option `each=on`.
    ///
    /// `kernel` is a name of `scripts/lib/kernels.sh`. `test` names the folder below
    /// `target/guests` for the output.
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
            kmods: None,
            panics: None,
            alone: false,
        }
        .smp(2)
    }

    fn boot_option(mut self, name: &str, value: &str) -> Guest {
        self.boot.extend([name.to_owned(), value.to_owned()]);
        self
    }

    /// Sets the number of vCPUs.
    #[must_use]
    pub fn smp(self, vcpus: u32) -> Guest {
        // The last option wins.
        self.boot_option("--smp", &vcpus.to_string())
    }

    /// Sets the memory in MiB.
    #[must_use]
    pub fn memory(self, mib: u32) -> Guest {
        self.boot_option("--memory", &mib.to_string())
    }

    /// Sets the memory in QEMU's syntax, such as `256M,slots=2,maxmem=1G`.
    #[must_use]
    pub fn memory_words(self, words: &str) -> Guest {
        self.boot_option("--memory", words)
    }

    /// Sets the accelerator. The default is `tcg`.
    #[must_use]
    pub fn accel(self, words: &str) -> Guest {
        self.boot_option("--accel", words)
    }

    /// Sets the machine type. The default is `pc`.
    #[must_use]
    pub fn machine(self, name: &str) -> Guest {
        self.boot_option("--machine", name)
    }

    /// Sets the CPU model. The default is QEMU's.
    #[must_use]
    pub fn cpu(self, name: &str) -> Guest {
        self.boot_option("--cpu", name)
    }

    /// Writes the console to a file while the guest runs, for tests that wait for a line.
    #[must_use]
    pub fn console(mut self, file: &Path) -> Guest {
        self.console = Some(file.to_owned());
        self.boot_option("--console", file.to_str().expect("a path that is text"))
    }

    /// Boots from a disk image through firmware and GRUB, instead of QEMU's -kernel.
    #[must_use]
    pub fn from_disk(self) -> Guest {
        self.boot_option("--loader", "grub")
    }

    /// Sets the time in seconds after which QEMU is told to quit.
    #[must_use]
    pub fn limit(mut self, seconds: u32) -> Guest {
        self.seconds = seconds;
        self
    }

    /// Adds a test module to the guest, without loading it.
    #[must_use]
    pub fn module(self, name: &str) -> Guest {
        self.boot_option("--module", name)
    }

    /// As [`Guest::module`], for a module with debugging information. That information stays on the
    /// host: see [`module_debug_folder`](crate::program::module_debug_folder).
    #[must_use]
    pub fn module_debug(self, name: &str) -> Guest {
        self.boot_option("--module-debug", name)
    }

    /// Adds modules of the distribution and their dependencies, for `modprobe` in the guest. Commas
    /// separate names. Drivers in the kernel image are left out.
    #[must_use]
    pub fn kmods(mut self, names: &str) -> Guest {
        self.kmods = Some(names.to_owned());
        self
    }

    /// Adds a script as a step.
    #[must_use]
    pub fn script(self, name: &str, text: &str) -> Guest {
        // Not in the test's own folder, which booting empties.
        let file = scratch(&format!("{}-script-{name}", self.test)).join(name);
        std::fs::write(&file, text).expect("the script is written");
        self.boot_option("--file", &format!("{}:/guest/{name}", file.display()))
    }

    /// Compiles a program of `tests/programs` and adds it as a step.
    ///
    /// # Panics
    /// If it cannot be compiled.
    #[must_use]
    pub fn program(self, name: &str) -> Guest {
        let source = workspace().join("tests/programs").join(format!("{name}.c"));
        self.compiled(name, &[source])
    }

    /// As [`Guest::program`], for a program of `tests/leaks`.
    ///
    /// # Panics
    /// If it cannot be compiled.
    #[must_use]
    pub fn leak(self, name: &str) -> Guest {
        let source = workspace().join("tests/leaks").join(format!("{name}.c"));
        self.compiled(name, &[source])
    }

    /// Compiles `leak-guest` and adds it as a step.
    ///
    /// # Panics
    /// If it cannot be compiled.
    #[must_use]
    pub fn leak_guest(self) -> Guest {
        let sources = ["leak-guest.c", "kmemleak-file.c"].map(|name| workspace().join("guest").join(name));
        self.compiled("leak-guest", &sources)
    }

    fn compiled(self, name: &str, sources: &[PathBuf]) -> Guest {
        let file = scratch(&format!("{}-{name}", self.test)).join(name);
        let gcc = Program::new("gcc").args("-O2 -static -Wall -Werror -o").arg(&file);
        let gcc = sources.iter().fold(gcc, |gcc, source| gcc.arg(source)).run();
        assert_eq!(gcc.status, Some(0), "{}", gcc.stderr);
        self.file(&file, &format!("/guest/{name}"))
    }

    /// Adds a file at a path in the guest.
    #[must_use]
    pub fn file(self, file: &Path, path: &str) -> Guest {
        self.boot_option("--file", &format!("{}:{path}", file.display()))
    }

    /// Adds to the kernel command line.
    #[must_use]
    pub fn append(self, words: &str) -> Guest {
        self.boot_option("--append", words)
    }

    /// Uses another QEMU: see `scripts/boot --qemu`.
    #[must_use]
    pub fn qemu(self, which: &str) -> Guest {
        self.boot_option("--qemu", which)
    }

    /// Adds steps such as `insmod:leaky`: see `scripts/guest/init`.
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

    /// Reports groups instead of single objects.
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

    /// Opens QEMU's monitor at a socket.
    #[must_use]
    pub fn monitor(self, socket: &Path) -> Guest {
        self.qemu_arg("-monitor").qemu_arg(&format!("unix:{},server=on,wait=off", socket.display()))
    }

    /// Lets the guest start again after a reboot.
    #[must_use]
    pub fn reboots(self) -> Guest {
        self.qemu_arg("-action").qemu_arg("reboot=reset")
    }

    /// Adds another kernel to the guest. The step `kexec` starts it and loads `leaky` there.
    #[must_use]
    pub fn kexec(self, kernel: &str) -> Guest {
        self.boot_option("--kexec", kernel).program("kexec")
    }

    /// Makes the plugin panic at these places: see `inject` in `plugin/src/ffi/panics.rs`.
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

    /// Declares what the guest loses. Lost objects that are in no report are printed and counted.
    /// Too many of them fail the test: see [`hidden`](crate::hidden).
    #[must_use]
    pub fn losing(mut self, losses: Losses) -> Guest {
        self.losing = Some(losses);
        self
    }

    /// Runs no other guest at the same time: see [`Program::alone`].
    #[must_use]
    pub fn alone(mut self) -> Guest {
        self.alone = true;
        self
    }

    /// Boots the guest and waits for its end.
    ///
    /// The guest is booted again only if QEMU killed its kernel by a stale breakpoint. That happens
    /// without any plugin, too.
    ///
    /// # Panics
    /// If too many lost objects are not reported: see [`Guest::losing`].
    pub fn boot(&self) -> Boot {
        let mut boot = self.boot_once();
        for number in 1..BOOTS {
            if !boot.met_a_stale_breakpoint() {
                break;
            }
            println!("boot {number} of {}: QEMU ran a breakpoint that was no longer there", self.test);
            boot = self.boot_once();
        }
        if let Some(losses) = self.losing {
            boot.count_hidden(losses);
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
        if let Some(names) = &self.kmods {
            program = program.env("KMODS", names);
        }
        if self.alone {
            program = program.alone();
        }
        // The additional time is for fetching and building the guest's parts.
        let done = program.limit(self.seconds + 900).run();
        let folder = scratch(&self.test);
        let console = match &self.console {
            Some(file) => String::from_utf8_lossy(&std::fs::read(file).unwrap_or_default()).replace('\r', ""),
            None => done.stdout,
        };
        std::fs::write(folder.join("console"), &console).expect("the console is saved");
        std::fs::write(folder.join("stderr"), &done.stderr).expect("the report is saved");
        Boot {
            status: done.status,
            console,
            stderr: done.stderr,
            steps: self.steps.clone(),
            folder,
            hidden: Vec::new(),
        }
    }
}
