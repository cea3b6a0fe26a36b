//! The command line of the binary `hadron`: one program with subcommands, `serve` when none is given.
//!
//! | subcommand | what it is | module |
//! |---|---|---|
//! | `serve` | one node | [`serve`] |
//! | `playground` | several nodes on this machine, to try things out | [`playground`] |
//! | `ctl` | `etcdctl`: its arguments, output and exit codes | [`ctl`] |
//! | `gateway` | passes connections on to the nodes of a cluster | [`gateway`] |
//! | `grpc-proxy` | passes calls on to the nodes of a cluster | [`proxy`] |
//! | `bench` | a load generator for any etcd endpoint | [`mod@bench`] |
//! | `utl` | `etcdutl`, as far as it exists | [`utl`] |
//! | `simulate` | clusters in a simulated world, from a seed | [`simulate`] |
//!
//! Run through a link named `etcd`, `etcdctl` or `etcdutl`, the binary behaves as that program. Exit codes: 0 for success,
//! 1 for failure, 2 for a command line that makes no sense; `ctl` has those of `etcdctl`.
//!
//! The flags of `serve` are not clap's: they are read as Go reads them, see [`crate::config`].

pub mod bench;
mod clock;
mod completion;
pub mod ctl;
mod discovery;
pub mod gateway;
mod logging;
pub mod playground;
pub mod proxy;
pub mod serve;
pub mod simulate;
pub mod utl;

use std::ffi::{OsStr, OsString};
use std::fmt::Display;
use std::io::{self, Write as _};
use std::path::Path;
use std::process::ExitCode;

use clap::builder::Resettable;
use clap::{Args as _, CommandFactory, FromArgMatches, Parser, Subcommand};

use crate::api::backend::ETCD_VERSION;
use crate::process;

/// Exit code of `etcdctl` for a command line that it cannot parse.
const CTL_USAGE_EXIT: u8 = 1;

/// A drop-in replacement for etcd: consistent, replicated key-value storage.
#[derive(Debug, Parser)]
#[command(name = "hadron", version)]
struct CommandLine {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run one node (what happens without a subcommand): see `hadron serve --help`
    #[command(disable_help_flag = true)]
    Serve {
        /// etcd's flags
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        flags: Vec<OsString>,
    },
    /// Run a cluster on this machine, to try things out
    Playground(playground::Options),
    /// Talk to a cluster: everything `etcdctl` does so far, with its output
    Ctl(Box<ctl::Options>),
    /// Work on files of data: everything `etcdutl` does so far
    Utl(utl::Options),
    /// Pass connections on to the nodes of a cluster
    #[command(subcommand)]
    Gateway(gateway::Gateway),
    /// Pass calls on to the nodes of a cluster
    #[command(subcommand)]
    GrpcProxy(proxy::Proxy),
    /// Measure throughput and latency of a cluster
    Bench(Box<bench::Options>),
    /// Run clusters in a simulated world, with faults, and check what they promise
    Simulate(simulate::Options),
}

/// Says why a program that serves does not. Unlike `eprintln!` it does not end the process if nobody can be told.
fn complain(error: &dyn Display) {
    let _ = writeln!(io::stderr(), "error: {error}");
}

/// `1 node`, `3 nodes`.
fn counted(count: u64, one: &str, many: &str) -> String {
    format!("{count} {}", if count == 1 { one } else { many })
}

/// Parses the command line, runs what it asks for and says how the process should exit.
pub fn run(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    process::abort_at_panics(simulate::is_in_a_world);
    process::use_small_pages();
    process::raise_descriptors();
    let arguments: Vec<OsString> = arguments.into_iter().collect();
    let program = arguments.first().and_then(|path| Path::new(path).file_stem()).and_then(OsStr::to_str);
    match program {
        Some("etcd") => run_etcd(arguments),
        Some("etcdctl") => {
            let command = ctl::Options::augment_args(clap::Command::new("etcdctl")).version(ETCD_VERSION);
            let about = "A client for etcd and for Hadron, with etcdctl's commands";
            match parse::<ctl::Options>(command.about(about), &arguments, true) {
                Ok(options) => ctl::run(options, &arguments),
                Err(error) => refuse(&error, true),
            }
        }
        Some("etcdutl") => {
            let command = utl::Options::augment_args(clap::Command::new("etcdutl")).version(ETCD_VERSION);
            match parse::<utl::Options>(
                command.about("Work on files of data, as etcdutl does"),
                &arguments,
                true,
            ) {
                Ok(options) => utl::run(options, serve::Name::Etcd, &arguments),
                Err(error) => refuse(&error, true),
            }
        }
        _ => run_hadron(arguments),
    }
}

/// What a link named `etcd` does.
fn run_etcd(arguments: Vec<OsString>) -> ExitCode {
    // Written as `hadron gateway` and `hadron grpc-proxy` are.
    if matches!(arguments.get(1).and_then(|first| first.to_str()), Some("gateway" | "grpc-proxy")) {
        return run_hadron(arguments);
    }
    serve::run(serve::Name::Etcd, arguments.into_iter().skip(1))
}

fn run_hadron(arguments: Vec<OsString>) -> ExitCode {
    if let Some(own) = own_of_serve(&arguments) {
        return serve::run(serve::Name::Hadron, arguments.into_iter().skip(own));
    }
    let is = |name: &str| arguments.get(1).is_some_and(|first| first == name);
    let line = match parse::<CommandLine>(CommandLine::command(), &arguments, is("ctl") || is("utl")) {
        Ok(line) => line,
        Err(error) => return refuse(&error, is("ctl")),
    };
    match line.command {
        Command::Serve { flags } => serve::run(serve::Name::Hadron, flags),
        Command::Playground(options) => playground::run(options),
        Command::Ctl(options) => ctl::run(*options, &arguments),
        Command::Utl(options) => utl::run(options, serve::Name::Hadron, &arguments),
        Command::Gateway(command) => gateway::run(command),
        Command::GrpcProxy(command) => proxy::run(command),
        Command::Bench(options) => bench::run(*options),
        Command::Simulate(options) => simulate::run(&options),
    }
}

/// How many arguments come before the flags of `serve`; `None` for another subcommand.
fn own_of_serve(arguments: &[OsString]) -> Option<usize> {
    match arguments.get(1).map(|first| first.as_encoded_bytes()) {
        None => Some(1),
        Some(b"serve") => Some(2),
        Some(b"-h" | b"--help" | b"-V" | b"--version") => None,
        Some(flag) if flag.starts_with(b"-") => Some(1),
        Some(_) => None,
    }
}

/// What a command line says. An incomplete one of `ctl` or `utl` asks for help, as with etcd's programs.
fn parse<T: FromArgMatches>(
    command: clap::Command,
    arguments: &[OsString],
    is_tool: bool,
) -> Result<T, clap::Error> {
    let command = switches_with_values(command);
    let matches = match command.clone().try_get_matches_from(arguments) {
        Err(error) if is_tool && is_incomplete(&error) => {
            let help = arguments.iter().cloned().chain(["--help".into()]);
            command.try_get_matches_from(help)?
        }
        matches => matches?,
    };
    T::from_arg_matches(&matches)
}

fn is_incomplete(error: &clap::Error) -> bool {
    use clap::error::ErrorKind::{DisplayHelpOnMissingArgumentOrSubcommand, MissingSubcommand};
    matches!(error.kind(), DisplayHelpOnMissingArgumentOrSubcommand | MissingSubcommand)
}

/// Says why a command line was not run, or shows the help that it asked for.
fn refuse(error: &clap::Error, is_ctl: bool) -> ExitCode {
    // A closed pipe while help is printed is nobody's problem.
    let _ = error.print();
    ExitCode::from(usage_exit(error, is_ctl))
}

/// The exit code for a command line that was not run.
fn usage_exit(error: &clap::Error, is_ctl: bool) -> u8 {
    match (error.use_stderr(), is_ctl) {
        (false, _) => 0,
        (true, true) => CTL_USAGE_EXIT,
        (true, false) => 2,
    }
}

/// Lets every switch be given as `--switch=true` and `--switch=false` too, lets the last of repeated flags count, and takes an
/// empty variable for none, as programs written in Go do.
fn switches_with_values(command: clap::Command) -> clap::Command {
    let subcommands: Vec<String> = command.get_subcommands().map(|sub| sub.get_name().to_owned()).collect();
    let command = command.args_override_self(true).mut_args(|argument| match has_empty_variable(&argument) {
        true => argument.env(Resettable::Reset),
        false => argument,
    });
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

fn has_empty_variable(argument: &clap::Arg) -> bool {
    let variable = argument.get_env().and_then(std::env::var_os);
    variable.is_some_and(|value| value.is_empty())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn the_definitions_are_consistent() {
        switches_with_values(CommandLine::command()).debug_assert();
        switches_with_values(ctl::Options::augment_args(clap::Command::new("etcdctl"))).debug_assert();
        switches_with_values(utl::Options::augment_args(clap::Command::new("etcdutl"))).debug_assert();
    }

    #[test]
    fn flags_without_a_subcommand_are_those_of_serve() {
        let own = |line: &[&str]| own_of_serve(&line.iter().map(OsString::from).collect::<Vec<_>>());
        assert_eq!(own(&["hadron"]), Some(1));
        assert_eq!(own(&["hadron", "--name=a"]), Some(1));
        assert_eq!(own(&["hadron", "serve", "--name=a"]), Some(2));
        assert_eq!(own(&["hadron", "--help"]), None);
        assert_eq!(own(&["hadron", "ctl", "get"]), None);
    }

    #[test]
    fn switches_take_values_after_an_equals_sign() {
        for (line, is_on) in [("--on=false", false), ("--on=true", true), ("--on", true)] {
            let command = clap::Command::new("x").arg(
                clap::Arg::new("on")
                    .long("on")
                    .action(clap::ArgAction::SetTrue)
                    .value_parser(clap::value_parser!(bool)),
            );
            let matches = switches_with_values(command).try_get_matches_from(["x", line]).unwrap();
            assert_eq!(matches.get_one::<bool>("on"), Some(&is_on), "{line}");
        }
    }

    #[test]
    fn flags_of_etcdctl_that_change_nothing_are_taken() {
        let ctl = || ctl::Options::augment_args(clap::Command::new("etcdctl"));
        for line in [
            &["etcdctl", "get", "k", "--debug"][..],
            &["etcdctl", "--debug=false", "get", "k"],
            &["etcdctl", "--max-request-bytes=1048576", "put", "k", "v", "--max-recv-bytes", "0"],
        ] {
            let line: Vec<OsString> = line.iter().map(OsString::from).collect();
            parse::<ctl::Options>(ctl(), &line, true).unwrap();
        }
    }

    /// Incomplete ones used to be errors, or their help to go where errors go.
    #[test]
    fn an_incomplete_command_of_a_tool_asks_for_help() {
        let ctl = || ctl::Options::augment_args(clap::Command::new("etcdctl"));
        for line in [&["etcdctl"][..], &["etcdctl", "user"], &["etcdctl", "downgrade", "-w", "json"]] {
            let line: Vec<OsString> = line.iter().map(OsString::from).collect();
            let error = parse::<ctl::Options>(ctl(), &line, true).unwrap_err();
            assert_eq!(error.kind(), clap::error::ErrorKind::DisplayHelp, "{line:?}");
            assert_eq!(usage_exit(&error, true), 0);
        }
        let error = parse::<ctl::Options>(ctl(), &["etcdctl".into(), "nonsense".into()], true).unwrap_err();
        assert_eq!(usage_exit(&error, true), CTL_USAGE_EXIT);
    }
}
