//! `leak doctor`.

use crate::output;
use crate::qemu;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Check whether this machine has what libleak needs, and print what to do if not
///
/// The status is 0 if guests can be watched here, and 1 if not.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  leak doctor
  leak doctor --qemu /opt/qemu/bin/qemu-system-x86_64")]
pub struct Doctor {
    /// The plugin. The default is the variable LIBLEAK_PLUGIN, or the libleak.so beside this
    /// program
    #[arg(long, value_name = "FILE")]
    plugin: Option<PathBuf>,
    /// A QEMU that is not on PATH
    #[arg(long, value_name = "FILE")]
    qemu: Vec<PathBuf>,
}

/// The verdict on one requirement.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    /// The requirement is met.
    Ok,
    /// The requirement is not met, and only some features need it.
    Note,
    /// The requirement is not met.
    Bad,
}

struct Finding {
    verdict: Verdict,
    line: String,
}

fn ok(line: String) -> Finding {
    Finding { verdict: Verdict::Ok, line }
}

fn note(line: String) -> Finding {
    Finding { verdict: Verdict::Note, line }
}

fn bad(line: String) -> Finding {
    Finding { verdict: Verdict::Bad, line }
}

impl Doctor {
    /// Prints the findings.
    pub fn run(&self) -> ExitCode {
        let mut findings = Vec::new();
        let plugin = qemu::plugin(self.plugin.as_deref());
        findings.push(match &plugin {
            Ok(path) => ok(format!("plugin: {}", path.display())),
            Err(why) => bad(format!("plugin: {why}")),
        });
        let mut qemus = on_path("qemu-system-x86_64");
        qemus.extend(self.qemu.iter().cloned());
        if qemus.is_empty() {
            findings.push(bad(
                "QEMU: no qemu-system-x86_64 on PATH; install it (9.2 to 11.1), or give --qemu FILE".to_owned()
            ));
        }
        let tried: Vec<Finding> = qemus.iter().map(|qemu| with_plugin(qemu, plugin.as_deref().ok())).collect();
        // All are listed, since most programs start the first QEMU on PATH.
        findings.extend(tried);
        findings.push(kvm());
        findings.push(match on_path("vng").first() {
            Some(path) => ok(format!("virtme-ng: {}", path.display())),
            None => note(
                "virtme-ng: no vng on PATH; it is needed for recipes with vng alone (pip install virtme-ng)".to_owned(),
            ),
        });
        findings.push(temporary());
        findings.push(cache());
        for Finding { verdict, line } in &findings {
            let word = match verdict {
                Verdict::Ok => "ok  ",
                Verdict::Note => "note",
                Verdict::Bad => "bad ",
            };
            // A reader that closed the output is no error.
            let _ = output::print(&format!("{word}  {line}\n"));
        }
        if findings.iter().any(|f| f.verdict == Verdict::Bad) { ExitCode::FAILURE } else { ExitCode::SUCCESS }
    }
}

/// All files of this name on PATH, each once.
fn on_path(name: &str) -> Vec<PathBuf> {
    let mut seen = Vec::new();
    let path = std::env::var_os("PATH").unwrap_or_default();
    for file in std::env::split_paths(&path).map(|folder| folder.join(name)).filter(|file| file.is_file()) {
        let own = fs::canonicalize(&file).unwrap_or(file);
        if !seen.contains(&own) {
            seen.push(own);
        }
    }
    seen
}

fn with_plugin(qemu: &Path, plugin: Option<&Path>) -> Finding {
    let version = qemu::version(qemu).unwrap_or_else(|| "of an unknown version".to_owned());
    let name = format!("QEMU: {} {version}", qemu.display());
    match plugin.map(|plugin| qemu::probe(qemu, plugin)) {
        None => note(format!("{name}, not tried without the plugin")),
        Some(Ok(_)) => ok(format!("{name} loads the plugin")),
        Some(Err(why)) => bad(format!("{name} does not: {why}; take a QEMU of 9.2 to 11.1 that is built with plugins")),
    }
}

fn kvm() -> Finding {
    match fs::File::options().read(true).write(true).open("/dev/kvm") {
        Ok(_) => note(
            "KVM: is there; leak run removes it from command lines, since plugins see nothing under KVM".to_owned(),
        ),
        Err(_) => ok("KVM: is not there, and not needed".to_owned()),
    }
}

fn temporary() -> Finding {
    let folder = std::env::temp_dir();
    match tempfile::tempdir() {
        Ok(_) => ok(format!("temporary files: {}", folder.display())),
        Err(why) => {
            bad(format!("temporary files: {}: {why}; set TMPDIR to a folder that can be written", folder.display()))
        }
    }
}

/// The folder in which the scripts of the checkout keep kernels.
fn cache() -> Finding {
    let chosen = std::env::var_os("XDG_CACHE_HOME").filter(|c| !c.is_empty()).map(PathBuf::from);
    let Some(folder) = chosen.or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cache"))) else {
        return note("cache of the project's scripts: neither XDG_CACHE_HOME nor HOME is set".to_owned());
    };
    let folder = folder.join("libleak");
    match fs::read_dir(folder.join("kernels")) {
        Ok(kernels) => ok(format!(
            "cache of the project's scripts: {}, {} kernels",
            folder.display(),
            kernels.flatten().filter(|k| k.path().is_dir()).count()
        )),
        Err(_) => note(format!(
            "cache of the project's scripts: {} has no kernels yet; scripts/demo fetches one",
            folder.display()
        )),
    }
}
