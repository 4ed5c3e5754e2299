//! `leak`: the check that the plugin makes, made again on a snapshot, and smaller snapshots.

mod check;
mod trim;

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
    Trim(trim::Trim),
}

fn main() -> ExitCode {
    env_logger::Builder::from_env(env_logger::Env::new().filter_or("LIBLEAK_LOG", "warn")).init();
    let done = match Arguments::parse().command {
        Command::Check(check) => check.run().map_err(|why| why.to_string()),
        Command::Trim(trim) => trim.run().map_err(|why| why.to_string()),
    };
    match done {
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
        let parse = |words: &[&str]| Arguments::try_parse_from([&["leak"], words].concat()).map(|a| a.command);
        assert!(matches!(parse(&["check", "a", "--why", "kmalloc", "--audit"]), Ok(Command::Check(_))));
        let words = ["check", "a", "--suppress", "b", "--suppress", "c", "--each", "--format", "jsonl", "--debug", "d"];
        assert!(parse(&words).is_ok() && parse(&["check", "a", "--format", "xml"]).is_err());
        assert!(matches!(parse(&["trim", "a", "b"]), Ok(Command::Trim(_))));
        assert!(parse(&["check"]).is_err() && parse(&["trim", "a"]).is_err());
    }
}
