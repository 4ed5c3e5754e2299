//! `leak`: the check that the plugin makes, made again on a snapshot.

mod check;

use clap::{Parser, Subcommand};
use std::process::ExitCode;

/// Kernel memory leaks of Linux guests, from the snapshots that the plugin's option snapshot= writes.
#[derive(Parser)]
#[command(name = "leak", version, arg_required_else_help = true)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Check(check::Check),
}

fn main() -> ExitCode {
    env_logger::Builder::from_env(env_logger::Env::new().filter_or("LIBLEAK_LOG", "warn")).init();
    let Command::Check(check) = Arguments::parse().command;
    match check.run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            eprintln!("leak: error: {why}");
            ExitCode::FAILURE
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn arguments_make_sense() {
        Arguments::command().debug_assert();
        let Command::Check(_) = Arguments::try_parse_from(["leak", "check", "a", "--why", "kmalloc", "--audit"])
            .expect("good words")
            .command;
        let words = ["leak", "check", "a", "--suppress", "b", "--suppress", "c", "--each", "--format", "jsonl"];
        assert!(Arguments::try_parse_from(words).is_ok());
        assert!(Arguments::try_parse_from(["leak", "check", "a", "--format", "xml"]).is_err());
        assert!(Arguments::try_parse_from(["leak", "check"]).is_err());
    }
}
