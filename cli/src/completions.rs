//! `leak completions`.

use crate::output;
use clap::Command;
use clap_complete::{Shell, generate};

/// Print a script that completes this program's words in a shell
#[derive(clap::Args)]
#[command(after_help = "Examples:
  leak completions bash > ~/.local/share/bash-completion/completions/leak
  leak completions zsh > ~/.zfunc/_leak
  leak completions fish > ~/.config/fish/completions/leak.fish")]
pub struct Completions {
    /// The shell
    shell: Shell,
}

impl Completions {
    /// Prints the completions of `program`.
    ///
    /// # Errors
    /// Standard output's.
    pub fn run(&self, mut program: Command) -> Result<(), std::io::Error> {
        let mut script = Vec::new();
        generate(self.shell, &mut program, "leak", &mut script);
        output::print(&String::from_utf8_lossy(&script))
    }
}
