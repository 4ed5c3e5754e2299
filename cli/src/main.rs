//! `leak`: runs guests under the plugin, converts and compares reports, and checks snapshots.

#![forbid(unsafe_code)]

mod check;
mod compare;
mod completions;
mod control;
mod doctor;
mod dump;
mod output;
mod qemu;
mod report;
mod run;
mod symbols;
mod trim;

use clap::{CommandFactory, Parser, Subcommand};
use std::process::ExitCode;

/// Kernel memory leaks of Linux guests
#[derive(Parser)]
#[command(name = "leak", version, arg_required_else_help = true)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Run(run::RunCommand),
    Report(report::ReportCommand),
    Compare(compare::Compare),
    Doctor(doctor::Doctor),
    Completions(completions::Completions),
    Symbols(symbols::Symbols),
    Check(check::Check),
    Trim(trim::Trim),
    Dump(dump::Dump),
    #[command(flatten)]
    Control(control::Command),
}

fn main() -> ExitCode {
    if let Some(name) = run::shim::called_as() {
        return run::shim::run(&name);
    }
    env_logger::Builder::from_env(env_logger::Env::new().filter_or("LIBLEAK_LOG", "warn")).init();
    let done = match Arguments::parse().command {
        Command::Run(run) => return run.run(),
        Command::Compare(compare) => return compare.run(),
        Command::Doctor(doctor) => return doctor.run(),
        Command::Completions(completions) => completions.run(Arguments::command()).map_err(|why| why.to_string()),
        Command::Report(report) => report.run().map_err(|why| why.to_string()),
        Command::Symbols(symbols) => symbols.run().map_err(|why| why.to_string()),
        Command::Check(check) => check.run().map_err(|why| why.to_string()),
        Command::Dump(dump) => dump.run().map_err(|why| why.to_string()),
        Command::Control(control) => return control.run(),
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

    #[test]
    fn arguments_make_sense() {
        Arguments::command().debug_assert();
        let parse = |words: &[&str]| Arguments::try_parse_from([&["leak"], words].concat()).map(|a| a.command);
        assert!(matches!(parse(&["check", "a", "--why", "kmalloc", "--audit"]), Ok(Command::Check(_))));
        let words = ["check", "a", "--suppress", "b", "--suppress", "c", "--each", "--format", "jsonl", "--debug", "d"];
        assert!(parse(&words).is_ok() && parse(&["check", "a", "--format", "xml"]).is_err());
        assert!(matches!(parse(&["trim", "a", "b"]), Ok(Command::Trim(_))));
        assert!(matches!(parse(&["dump", "--qmp", "a", "--format", "elf", "b"]), Ok(Command::Dump(_))));
        assert!(matches!(parse(&["run", "--report", "a.xml", "--", "vng", "--exec", "x"]), Ok(Command::Run(_))));
        assert!(parse(&["run", "vng"]).is_err() && parse(&["run"]).is_err() && parse(&["report"]).is_err());
        assert!(matches!(parse(&["compare", "a", "b", "--json"]), Ok(Command::Compare(_))));
        assert!(parse(&["completions", "fish"]).is_ok() && parse(&["completions", "cmd"]).is_err());
        let words = ["why", "ffff888103a4c1e0", "--control", "/tmp/s"];
        assert!(matches!(parse(&words), Ok(Command::Control(control::Command::Why { .. }))));
        assert!(parse(&["diff", "a", "--by", "site"]).is_ok() && parse(&["diff", "--by", "name"]).is_err());
        assert!(parse(&["why", "x"]).is_err() && parse(&["why"]).is_err());
        assert!(parse(&["check"]).is_err() && parse(&["trim", "a"]).is_err());
    }
}
