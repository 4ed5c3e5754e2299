//! The command line of the soak test.

use ::tests::program::workspace;
use std::path::PathBuf;
use std::time::Duration;

/// The options.
pub struct Arguments {
    /// The kernel: a name of `scripts/lib/kernels.sh`.
    pub kernel: String,
    /// The duration of all boots together.
    pub run: Duration,
    /// The approximate time between two resets.
    pub reset_every: Duration,
    /// The folder for samples, console and reports.
    pub out: PathBuf,
    /// The seed of all random choices.
    pub seed: u64,
    /// The size of QEMU's translation cache in MiB. QEMU keeps records outside of the cache for
    /// each block, so its memory grows until the cache is full. With the default size that takes
    /// hours.
    pub tb_size: u32,
    /// The QEMU, as for `scripts/boot`.
    pub qemu: Option<String>,
    /// The plugin.
    pub plugin: Plugin,
}

/// The plugin that QEMU loads.
#[derive(PartialEq, Eq)]
pub enum Plugin {
    /// The plugin of `cargo build --release`.
    Built,
    /// None, to see how QEMU's own memory behaves.
    None,
    /// Another build of the plugin.
    File(String),
}

/// Why the command line cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ArgumentsError {
    /// A duration is malformed or out of range.
    #[error("{0} is no number of minutes; give one above 0")]
    Minutes(String),
    /// The seed is malformed.
    #[error("{0} is no number to start from")]
    Seed(String),
    /// The size of the translation cache is malformed.
    #[error("{0} is no number of MiB")]
    Size(String),
    /// An option has no value.
    #[error("{0} needs a value")]
    NoValue(String),
    /// An option does not exist.
    #[error(
        "there is no option {0}; there are --minutes, --reset-every, --kernel, --out, --seed, --tb-size, --qemu and --plugin"
    )]
    Unknown(String),
}

impl Arguments {
    /// Parses options with their values.
    ///
    /// # Errors
    /// [`ArgumentsError`], for the first option that cannot be used.
    pub fn read(mut words: impl Iterator<Item = String>) -> Result<Arguments, ArgumentsError> {
        let minutes = |text: &str| {
            let number = text.parse::<f64>().ok().filter(|m| *m > 0.0 && *m < 100_000.0);
            let number = number.ok_or_else(|| ArgumentsError::Minutes(text.to_owned()))?;
            Ok::<_, ArgumentsError>(Duration::from_secs_f64(60.0 * number))
        };
        let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| PathBuf::from("target"), PathBuf::from);
        let mut arguments = Arguments {
            kernel: "bookworm-backports".to_owned(),
            run: minutes("60")?,
            reset_every: minutes("10")?,
            out: workspace().join(target).join("soak"),
            seed: std::time::UNIX_EPOCH.elapsed().map_or(1, |t| t.as_secs()),
            tb_size: 64,
            qemu: None,
            plugin: Plugin::Built,
        };
        while let Some(word) = words.next() {
            let value = words.next().ok_or_else(|| ArgumentsError::NoValue(word.clone()))?;
            match word.as_str() {
                "--minutes" => arguments.run = minutes(&value)?,
                "--reset-every" => arguments.reset_every = minutes(&value)?,
                "--kernel" => arguments.kernel = value,
                "--out" => arguments.out = PathBuf::from(value),
                "--seed" => arguments.seed = value.parse().map_err(|_| ArgumentsError::Seed(value))?,
                "--tb-size" => arguments.tb_size = value.parse().map_err(|_| ArgumentsError::Size(value))?,
                "--qemu" => arguments.qemu = Some(value),
                "--plugin" if value == "none" => arguments.plugin = Plugin::None,
                "--plugin" => arguments.plugin = Plugin::File(value),
                _ => return Err(ArgumentsError::Unknown(word)),
            }
        }
        Ok(arguments)
    }
}
