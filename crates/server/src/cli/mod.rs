//! The command line of the binary `hadron`: one program with subcommands, `serve` when none is given.
//!
//! | subcommand | what it is | module |
//! |---|---|---|
//! | `serve` | one node | [`serve`] |
//! | `playground` | several nodes on this machine, to try things out | [`playground`] |
//! | `ctl` | `etcdctl`: its arguments, output and exit codes | [`ctl`] |
//! | `bench` | a load generator for any etcd endpoint | [`mod@bench`] |
//! | `simulate` | clusters in a simulated world, from a seed | [`simulate`] |
//!
//! Run through a link named `etcdctl` or `etcd`, the binary behaves as `ctl` or `serve`. Exit codes: 0 for success, 1
//! for failure, 2 for a command line that makes no sense; `ctl` has those of `etcdctl`.

pub mod bench;
mod clock;
pub mod ctl;
mod logging;
pub mod playground;
pub mod serve;
pub mod simulate;

use std::ffi::OsString;
use std::path::Path;
use std::process::ExitCode;

use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};

/// Exit code of `etcdctl` for a command line that it cannot parse.
const CTL_USAGE_EXIT: u8 = 1;

/// A drop-in replacement for etcd: consistent, replicated key-value storage.
#[derive(Debug, Parser)]
#[command(name = "hadron", version, args_conflicts_with_subcommands = true)]
struct CommandLine {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    serve: crate::config::Options,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run one node (what happens without a subcommand)
    Serve(Box<crate::config::Options>),
    /// Run a cluster on this machine, to try things out
    Playground(playground::Options),
    /// Talk to a cluster: everything `etcdctl` does so far, with its output
    Ctl(ctl::Options),
    /// Measure throughput and latency of a cluster
    Bench(bench::Options),
    /// Run clusters in a simulated world, with faults, and check what they promise
    Simulate(simulate::Options),
}

/// Parses the command line, runs what it asks for and says how the process should exit.
pub fn run(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    let arguments = with_subcommand_of_link(arguments.into_iter().collect());
    let is_ctl = arguments.get(1).is_some_and(|first| first == "ctl");
    let parsed = switches_with_values(CommandLine::command())
        .try_get_matches_from(&arguments)
        .and_then(|matches| CommandLine::from_arg_matches(&matches));
    let line = match parsed {
        Ok(line) => line,
        Err(error) => {
            // A closed pipe while help is printed is nobody's problem.
            let _ = error.print();
            return ExitCode::from(usage_exit(&error, is_ctl));
        }
    };
    match line.command {
        None => serve::run(line.serve),
        Some(Command::Serve(options)) => serve::run(*options),
        Some(Command::Playground(options)) => playground::run(options),
        Some(Command::Ctl(options)) => ctl::run(options, &arguments),
        Some(Command::Bench(options)) => bench::run(options),
        Some(Command::Simulate(options)) => simulate::run(&options),
    }
}

/// The exit code for a command line that was not run.
fn usage_exit(error: &clap::Error, is_ctl: bool) -> u8 {
    // `etcdctl` shows help for an incomplete command and calls that success.
    let incomplete = error.kind() == clap::error::ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand;
    match (error.use_stderr(), is_ctl) {
        (false, _) => 0,
        (true, true) if incomplete => 0,
        (true, true) => CTL_USAGE_EXIT,
        (true, false) => 2,
    }
}

/// Inserts the subcommand that the name of a link stands for.
fn with_subcommand_of_link(mut arguments: Vec<OsString>) -> Vec<OsString> {
    let program = arguments.first().map(|path| Path::new(path).file_stem().unwrap_or_default().to_owned());
    match program.as_deref().and_then(|name| name.to_str()) {
        Some("etcdctl") => arguments.insert(1, "ctl".into()),
        Some("etcd") => arguments.insert(1, "serve".into()),
        _ => {}
    }
    arguments
}

/// `host:port` of an endpoint that may have a scheme in front: what clients connect to.
fn endpoint_authority(endpoint: &str) -> Result<String, String> {
    match endpoint.split_once("://") {
        _ if endpoint.is_empty() => Err("empty endpoint".to_owned()),
        None => Ok(endpoint.to_owned()),
        Some(("http", authority)) => Ok(authority.trim_end_matches('/').to_owned()),
        Some(("https", _)) => Err("https is not supported yet".to_owned()),
        Some((scheme, _)) => Err(format!("unsupported scheme {scheme}")),
    }
}

/// Lets every switch be given as `--switch=true` and `--switch=false` too, as programs written in Go do.
fn switches_with_values(command: clap::Command) -> clap::Command {
    let subcommands: Vec<String> = command.get_subcommands().map(|sub| sub.get_name().to_owned()).collect();
    let command = command.mut_args(|argument| match argument.get_action() {
        clap::ArgAction::SetTrue => argument
            .action(clap::ArgAction::Set)
            .num_args(0..=1)
            .require_equals(true)
            .value_name("BOOL")
            .default_value("false")
            .default_missing_value("true")
            .hide_default_value(true)
            .hide_possible_values(true),
        _ => argument,
    });
    subcommands.into_iter().fold(command, |command, name| command.mut_subcommand(name, switches_with_values))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn parse(line: &[&str]) -> CommandLine {
        let matches = switches_with_values(CommandLine::command()).try_get_matches_from(line).unwrap();
        CommandLine::from_arg_matches(&matches).unwrap()
    }

    #[test]
    fn the_definition_is_consistent() {
        switches_with_values(CommandLine::command()).debug_assert();
    }

    #[test]
    fn without_a_subcommand_it_serves() {
        let line = parse(&["hadron", "--name", "a", "--stop-on-stdin-close"]);
        assert!(line.command.is_none());
        assert_eq!(line.serve.name, "a");
        assert!(line.serve.stop_on_stdin_close);
        assert!(matches!(parse(&["hadron", "serve", "--name=b"]).command, Some(Command::Serve(_))));
    }

    #[test]
    fn links_stand_for_subcommands() {
        let arguments = |name: &str| with_subcommand_of_link(vec![name.into(), "get".into()]);
        assert_eq!(arguments("/usr/bin/etcdctl"), ["/usr/bin/etcdctl", "ctl", "get"]);
        assert_eq!(arguments("etcd"), ["etcd", "serve", "get"]);
        assert_eq!(arguments("hadron"), ["hadron", "get"]);
    }

    #[test]
    fn switches_take_values_after_an_equals_sign() {
        assert!(!parse(&["hadron", "--stop-on-stdin-close=false"]).serve.stop_on_stdin_close);
        assert!(parse(&["hadron", "--stop-on-stdin-close=true"]).serve.stop_on_stdin_close);
    }

    #[test]
    fn endpoints_need_no_scheme() {
        assert_eq!(endpoint_authority("127.0.0.1:2379").unwrap(), "127.0.0.1:2379");
        assert_eq!(endpoint_authority("http://h:1/").unwrap(), "h:1");
        assert_eq!(endpoint_authority("https://h:1").unwrap_err(), "https is not supported yet");
    }
}
