//! Programs that the tests run.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::process::Command;

/// The root of the checkout.
pub fn workspace() -> PathBuf {
    let package = Path::new(env!("CARGO_MANIFEST_DIR"));
    package.parent().expect("the package lies in the workspace").to_owned()
}

fn target_folder() -> PathBuf {
    match std::env::var_os("CARGO_TARGET_DIR") {
        // Cargo resolves a relative path in its own working folder, the tests run in another.
        Some(folder) => workspace().join(folder),
        None => workspace().join("target"),
    }
}

/// The plugin's file.
///
/// # Panics
/// If it is not built.
pub fn plugin() -> PathBuf {
    built("release/libleak.so")
}

/// The plugin of `tests/faulty-plugin`, which panics where LIBLEAK_PANIC says. The first call
/// builds it.
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

/// The folder in which the scripts keep what they fetch and build.
///
/// # Panics
/// If neither XDG_CACHE_HOME nor HOME is set.
pub fn cache() -> PathBuf {
    let chosen = std::env::var_os("XDG_CACHE_HOME").filter(|c| !c.is_empty()).map(PathBuf::from);
    let home = || PathBuf::from(std::env::var_os("HOME").expect("a home")).join(".cache");
    chosen.unwrap_or_else(home).join("libleak")
}

/// The folder in which `scripts/boot --module-debug` leaves modules with debugging information.
pub fn module_debug_folder(kernel: &str) -> PathBuf {
    cache().join("guests/modules").join(format!("{kernel}-debug"))
}

/// An empty folder for one test's files. It is kept for inspection.
///
/// # Panics
/// If it cannot be created.
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

/// QEMU's `-plugin` argument for another plugin.
pub fn argument(plugin: &Path, options: &[String]) -> String {
    let mut words = vec![plugin.display().to_string()];
    words.extend_from_slice(options);
    // QEMU's syntax for a comma in a value.
    words.iter().map(|w| w.replace(',', ",,")).collect::<Vec<_>>().join(",")
}

/// The command of a QEMU that `scripts/qemu` knows.
///
/// # Panics
/// If there is none.
pub fn qemu(which: &str) -> String {
    let done = Program::new(workspace().join("scripts/qemu")).arg(which).limit(600).run();
    assert_eq!(done.status, Some(0), "scripts/qemu {which}: {}", done.stderr);
    done.stdout.trim().to_owned()
}

/// A command with a time limit.
pub struct Program {
    words: Vec<OsString>,
    environment: Vec<(String, String)>,
    seconds: u32,
    alone: bool,
}

/// The result of a program.
#[derive(Debug, Clone)]
pub struct Finished {
    /// The exit status. 124 if it took too long and ended when told to. `None` if a signal killed
    /// it.
    pub status: Option<i32>,
    /// stdout without carriage returns.
    pub stdout: String,
    /// stderr without carriage returns.
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

    /// Sets the time in seconds until it gets SIGTERM, upon which QEMU quits.
    #[must_use]
    pub fn limit(mut self, seconds: u32) -> Program {
        self.seconds = seconds;
        self
    }

    /// Runs nothing else of the tests at the same time, for tests about load or time.
    #[must_use]
    pub fn alone(mut self) -> Program {
        self.alone = true;
        self
    }

    /// Runs the program to its end. Waits for programs that must be alone.
    ///
    /// # Panics
    /// If it cannot be started.
    pub fn run(&self) -> Finished {
        std::fs::create_dir_all(target_folder()).expect("the target folder");
        // The number of test threads limits the number of guests. Cargo may run several test
        // programs, so the lock is a file.
        let sharing = if self.alone { "--exclusive" } else { "--shared" };
        let output = Command::new("flock")
            .args([sharing.as_ref(), "--close".as_ref(), target_folder().join("guests.lock").as_os_str()])
            .args(["timeout", "--kill-after=10", &self.seconds.to_string()])
            .args(&self.words)
            // A user's setting would change the messages.
            .env_remove("LIBLEAK_LOG")
            .envs(self.environment.iter().map(|(name, value)| (name, value)))
            .stdin(std::process::Stdio::null())
            .output()
            .expect("flock, of util-linux, starts");
        Finished { status: output.status.code(), stdout: text(&output.stdout), stderr: text(&output.stderr) }
    }
}

impl Finished {
    /// The plugin's messages on stderr, such as `libleak: error: ...`.
    pub fn messages(&self) -> Vec<&str> {
        messages(&self.stderr)
    }
}

/// The plugin's messages in `stderr`. Summaries, which start with a number, notes, and the output
/// of `audit=` and `why=` are left out.
pub fn messages(stderr: &str) -> Vec<&str> {
    let ours = stderr.lines().filter_map(|line| line.strip_prefix("libleak: "));
    let asked_for = |line: &str| ["audit: ", "why: ", "note: "].iter().any(|w| line.starts_with(w));
    ours.filter(|line| !line.starts_with(|c: char| c.is_ascii_digit()) && !asked_for(line)).collect()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).replace('\r', "")
}
