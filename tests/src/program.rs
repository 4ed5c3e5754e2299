//! Programs that the tests run.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::process::Command;

/// The checkout.
pub fn workspace() -> PathBuf {
    let package = Path::new(env!("CARGO_MANIFEST_DIR"));
    package.parent().expect("the package lies in the workspace").to_owned()
}

fn target_folder() -> PathBuf {
    match std::env::var_os("CARGO_TARGET_DIR") {
        // Cargo takes a relative one from where it was started, which is not where it starts the tests.
        Some(folder) => workspace().join(folder),
        None => workspace().join("target"),
    }
}

/// The plugin.
///
/// # Panics
/// If it is not built.
pub fn plugin() -> PathBuf {
    built("release/libleak.so")
}

/// The plugin as `tests/faulty-plugin` makes it, which panics where LIBLEAK_PANIC says. Built when it is first asked for.
///
/// # Panics
/// If it cannot be built.
pub fn faulty_plugin() -> PathBuf {
    static BUILT: std::sync::Once = std::sync::Once::new();
    BUILT.call_once(|| {
        let cargo = Command::new(env!("CARGO"))
            .args(["build", "--profile=tests", "--quiet", "--package=faulty-plugin"])
            .current_dir(workspace())
            .status();
        assert!(cargo.expect("cargo starts").success(), "the faulty plugin is not built");
    });
    built("tests/libfaulty.so")
}

/// The program `leak`.
///
/// # Panics
/// If it is not built.
pub fn leak() -> PathBuf {
    built("release/leak")
}

fn built(name: &str) -> PathBuf {
    let path = target_folder().join(name);
    assert!(path.exists(), "{} is not there; run cargo build --release", path.display());
    path
}

/// Where the scripts keep what they fetched and built.
///
/// # Panics
/// If there is neither XDG_CACHE_HOME nor HOME.
pub fn cache() -> PathBuf {
    let chosen = std::env::var_os("XDG_CACHE_HOME").filter(|c| !c.is_empty()).map(PathBuf::from);
    let home = || PathBuf::from(std::env::var_os("HOME").expect("a home")).join(".cache");
    chosen.unwrap_or_else(home).join("libleak")
}

/// Where `scripts/boot --module-debug` leaves modules with their debugging information.
pub fn module_debug_folder(kernel: &str) -> PathBuf {
    cache().join("guests/modules").join(format!("{kernel}-debug"))
}

/// A folder for what one test writes, empty at first, and left for whoever wants to look.
///
/// # Panics
/// If it cannot be made.
pub fn scratch(test: &str) -> PathBuf {
    let folder = target_folder().join("guests").join(test);
    if folder.exists() {
        std::fs::remove_dir_all(&folder).expect("the old scratch folder goes away");
    }
    std::fs::create_dir_all(&folder).expect("a scratch folder");
    folder
}

/// QEMU's `-plugin` argument for the plugin with these options.
pub fn plugin_argument(options: &[String]) -> String {
    argument(&plugin(), options)
}

/// The same for another one.
pub fn argument(plugin: &Path, options: &[String]) -> String {
    let mut words = vec![plugin.display().to_string()];
    words.extend_from_slice(options);
    // QEMU's own way to have a comma in a value.
    words.iter().map(|w| w.replace(',', ",,")).collect::<Vec<_>>().join(",")
}

/// A QEMU by its name in `scripts/qemu`, as a command.
///
/// # Panics
/// If it cannot be had.
pub fn qemu(which: &str) -> String {
    let done = Program::new(workspace().join("scripts/qemu")).arg(which).limit(600).run();
    assert_eq!(done.status, Some(0), "scripts/qemu {which}: {}", done.stderr);
    done.stdout.trim().to_owned()
}

/// A command with a limit on its time.
pub struct Program {
    words: Vec<OsString>,
    environment: Vec<(String, String)>,
    seconds: u32,
    alone: bool,
}

/// What a program left behind.
#[derive(Debug, Clone)]
pub struct Finished {
    /// Its status; 124 if it took too long and ended when it was asked to, `None` if a signal killed it.
    pub status: Option<i32>,
    /// Its output, without carriage returns.
    pub stdout: String,
    /// Its other output.
    pub stderr: String,
}

impl Program {
    /// A program without arguments.
    pub fn new(program: impl AsRef<OsStr>) -> Program {
        Program { words: vec![program.as_ref().to_owned()], environment: Vec::new(), seconds: 60, alone: false }
    }

    /// Adds an argument.
    #[must_use]
    pub fn arg(mut self, word: impl AsRef<OsStr>) -> Program {
        self.words.push(word.as_ref().to_owned());
        self
    }

    /// Adds arguments, separated by white space.
    #[must_use]
    pub fn args(mut self, words: &str) -> Program {
        self.words.extend(words.split_whitespace().map(OsString::from));
        self
    }

    /// Sets a variable of its environment.
    #[must_use]
    pub fn env(mut self, name: &str, value: &str) -> Program {
        self.environment.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Seconds until it gets SIGTERM, which QEMU takes as the wish to quit.
    #[must_use]
    pub fn limit(mut self, seconds: u32) -> Program {
        self.seconds = seconds;
        self
    }

    /// Has nothing else that tests run run beside it: for what is to be busy, or is about time.
    #[must_use]
    pub fn alone(mut self) -> Program {
        self.alone = true;
        self
    }

    /// Runs it to the end, when nothing runs that is to be alone.
    ///
    /// # Panics
    /// If it cannot be started.
    pub fn run(&self) -> Finished {
        std::fs::create_dir_all(target_folder()).expect("the target folder");
        // How many guests there are at once is the number of the test program's threads. A lock that is a file, since cargo may run
        // several test programs.
        let sharing = if self.alone { "--exclusive" } else { "--shared" };
        let output = Command::new("flock")
            .args([sharing.as_ref(), "--close".as_ref(), target_folder().join("guests.lock").as_os_str()])
            .args(["timeout", "--kill-after=10", &self.seconds.to_string()])
            .args(&self.words)
            // The user's own wishes for the plugin's messages would be in the way of the tests.
            .env_remove("LIBLEAK_LOG")
            .envs(self.environment.iter().map(|(name, value)| (name, value)))
            .stdin(std::process::Stdio::null())
            .output()
            .expect("flock, of util-linux, starts");
        Finished { status: output.status.code(), stdout: text(&output.stdout), stderr: text(&output.stderr) }
    }
}

impl Finished {
    /// The plugin's lines on stderr that are no report: `libleak: error: ...` and the like.
    pub fn messages(&self) -> Vec<&str> {
        messages(&self.stderr)
    }
}

/// The plugin's own lines in `stderr`, but for summaries, which start with a number, what `audit=` and `why=` add, and notes.
pub fn messages(stderr: &str) -> Vec<&str> {
    let ours = stderr.lines().filter_map(|line| line.strip_prefix("libleak: "));
    let asked_for = |line: &str| ["audit: ", "why: ", "note: "].iter().any(|w| line.starts_with(w));
    ours.filter(|line| !line.starts_with(|c: char| c.is_ascii_digit()) && !asked_for(line)).collect()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).replace('\r', "")
}
