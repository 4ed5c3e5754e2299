//! `leak completions`.

use clap::CommandFactory;
use clap_complete::{Shell, generate};

/// Print what completes this program's words in a shell
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
    /// Prints them.
    ///
    /// # Errors
    /// Standard output's.
    pub fn run(&self) -> Result<(), std::io::Error> {
        let mut script = Vec::new();
        generate(self.shell, &mut crate::Arguments::command(), "leak", &mut script);
        crate::print(&String::from_utf8_lossy(&script))
    }
}
