//! Finds the plugin, and checks whether a QEMU can load it.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// The environment variable with the plugin's path.
const VARIABLE: &str = "LIBLEAK_PLUGIN";
/// The file name of the plugin.
const NAME: &str = "libleak.so";

/// The plugin was not found.
#[derive(Debug, thiserror::Error)]
#[error(
    "there is no plugin at {path}: {why}; build it with cargo build --release, or give --plugin FILE or {VARIABLE}"
)]
pub struct PluginError {
    /// The path that was tried.
    pub path: PathBuf,
    /// The error of the system.
    pub why: std::io::Error,
}

/// Why a QEMU does not load the plugin.
#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    /// QEMU cannot be started.
    #[error("cannot run {path}: {why}")]
    Start {
        /// QEMU.
        path: PathBuf,
        /// The error of the system.
        why: std::io::Error,
    },
    /// QEMU or the plugin refused. The field is the message.
    #[error("{0}")]
    Refused(String),
}

/// The absolute path of the plugin: as given, or from the environment, or beside this program.
///
/// # Errors
/// [`PluginError`].
pub fn plugin(given: Option<&Path>) -> Result<PathBuf, PluginError> {
    let beside = || std::env::current_exe().and_then(std::fs::canonicalize).unwrap_or_default().with_file_name(NAME);
    let of_environment = || std::env::var_os(VARIABLE).filter(|v| !v.is_empty()).map(PathBuf::from);
    let path = given.map(Path::to_owned).or_else(of_environment).unwrap_or_else(beside);
    std::fs::canonicalize(&path).map_err(|why| PluginError { path, why })
}

/// Has QEMU load the plugin without a guest. Returns the plugin's list of options.
///
/// # Errors
/// [`ProbeError`], with the message of QEMU or the plugin.
pub fn probe(qemu: &Path, plugin: &Path) -> Result<String, ProbeError> {
    let plugin = plugin.display().to_string().replace(',', ",,");
    let output = Command::new(qemu)
        .args(["-machine", "none", "-display", "none", "-nodefaults", "-accel", "tcg", "-plugin"])
        .arg(format!("{plugin},help=on"))
        .stdin(Stdio::null())
        .output()
        .map_err(|why| ProbeError::Start { path: qemu.into(), why })?;
    let said = String::from_utf8_lossy(&output.stderr);
    if said.contains("usage: -plugin") {
        return Ok(said.into_owned());
    }
    let ours = said.lines().find_map(|line| line.strip_prefix("libleak: error: "));
    let last = || said.lines().rfind(|line| !line.trim().is_empty()).map_or("it said nothing", str::trim);
    Err(ProbeError::Refused(ours.unwrap_or_else(last).to_owned()))
}

/// The version of a QEMU, such as `10.0.2`.
pub fn version(qemu: &Path) -> Option<String> {
    let output = Command::new(qemu).arg("--version").stdin(Stdio::null()).output().ok()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let word = text.split("version ").nth(1)?.split_whitespace().next()?;
    Some(word.to_owned())
}
