//! What the command line says.

use ::tests::program::workspace;
use std::path::PathBuf;
use std::time::Duration;

/// What is asked for.
pub struct Arguments {
    /// A name of `scripts/lib/kernels.sh`.
    pub kernel: String,
    /// How long the guest is up, all boots together.
    pub run: Duration,
    /// Between two resets, more or less.
    pub reset_every: Duration,
    /// Where samples, console and reports go.
    pub out: PathBuf,
    /// What all that is random depends on.
    pub seed: u64,
    /// MiB of QEMU's cache of translated code. With each block in it QEMU keeps records elsewhere, so that its memory grows until the
    /// cache was full once, and by default that takes hours.
    pub tb_size: u32,
    /// The QEMU, as for `scripts/boot`.
    pub qemu: Option<String>,
    /// The plugin.
    pub plugin: Plugin,
}

/// Which plugin QEMU has.
#[derive(PartialEq, Eq)]
pub enum Plugin {
    /// The one that `cargo build --release` made.
    Built,
    /// None, to see what QEMU's own memory does.
    None,
    /// Another build of it.
    File(String),
}

impl Arguments {
    /// Reads options with their values.
    ///
    /// # Errors
    /// What is wrong, and what there is.
    pub fn read(mut words: impl Iterator<Item = String>) -> Result<Arguments, String> {
        let minutes = |text: &str| {
            let number = text.parse::<f64>().ok().filter(|m| *m > 0.0 && *m < 100_000.0);
            let number = number.ok_or_else(|| format!("{text} is no number of minutes; give one above 0"))?;
            Ok::<_, String>(Duration::from_secs_f64(60.0 * number))
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
            let value = words.next().ok_or_else(|| format!("{word} needs a value"))?;
            match word.as_str() {
                "--minutes" => arguments.run = minutes(&value)?,
                "--reset-every" => arguments.reset_every = minutes(&value)?,
                "--kernel" => arguments.kernel = value,
                "--out" => arguments.out = PathBuf::from(value),
                "--seed" => {
                    arguments.seed = value.parse().map_err(|_| format!("{value} is no number to start from"))?
                }
                "--tb-size" => {
                    arguments.tb_size = value.parse().map_err(|_| format!("{value} is no number of MiB"))?;
                }
                "--qemu" => arguments.qemu = Some(value),
                "--plugin" if value == "none" => arguments.plugin = Plugin::None,
                "--plugin" => arguments.plugin = Plugin::File(value),
                _ => {
                    return Err(format!(
                        "there is no option {word}; there are --minutes, --reset-every, --kernel, --out, --seed, --tb-size, --qemu and --plugin"
                    ));
                }
            }
        }
        Ok(arguments)
    }
}
