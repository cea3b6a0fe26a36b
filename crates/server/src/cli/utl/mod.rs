//! `hadron utl`, and `etcdutl`: work on files of data without a running node.
//!
//! The commands of `etcdutl`, with its output and exit codes. Those that make no sense here say so, and what to do instead.

mod print;
mod snapshot;

use std::ffi::OsString;
use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;

use super::ctl::failure::Failure;
use super::ctl::print::{Format, Printer, Style};
use super::serve::Name;
use crate::api::backend::ETCD_VERSION;
use crate::backup::{BackupFile, hash_kv};
use snapshot::Snapshot;

/// The version of etcd's API.
const API_VERSION: &str = "3.6";

/// The command.
#[derive(Debug, clap::Args)]
pub struct Options {
    /// How to print: simple, fields, json, table
    #[arg(short = 'w', long = "write-out", global = true, default_value = "simple", value_name = "FORMAT")]
    write_out: String,
    /// As etcdutl has it; nothing is waited for here
    #[arg(long, global = true, hide = true, value_name = "TIME")]
    timeout: Option<String>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Look into a snapshot, or make a data directory from one
    #[command(subcommand)]
    Snapshot(Snapshot),
    /// Print the hash of the history in a snapshot
    Hashkv {
        /// Up to this revision; 0 for the newest
        #[arg(long, default_value_t = 0, allow_hyphen_values = true, value_name = "REVISION")]
        rev: i64,
        /// The file
        #[arg(value_name = "FILE")]
        arguments: Vec<PathBuf>,
    },
    /// Print what a shell needs to complete commands
    Completion(super::completion::Completion),
    /// Print the version
    Version,
    /// What etcdutl knows and has no meaning here
    #[command(external_subcommand)]
    Other(Vec<OsString>),
}

/// Runs a command, of the program that is run as `name`. `arguments` is the whole command line.
pub fn run(options: Options, name: Name, arguments: &[OsString]) -> ExitCode {
    let Options { write_out, timeout: _, command } = options;
    match execute(&write_out, command, name, arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            if let Some(text) = failure.text {
                eprintln!("Error: {text}");
            }
            ExitCode::from(failure.exit.code())
        }
    }
}

fn execute(write_out: &str, command: Command, name: Name, arguments: &[OsString]) -> Result<(), Failure> {
    let printer = || Ok(Printer { format: Format::parse(write_out)?, style: Style::default() });
    match command {
        Command::Snapshot(command) => command.run(name, printer),
        Command::Hashkv { rev, arguments } => {
            let [file] = arguments.as_slice() else {
                return Err(Failure::error(format!("accepts 1 arg(s), received {}", arguments.len())));
            };
            let printer = printer()?;
            let mut file = BackupFile::open(file, false).map_err(Failure::error)?;
            printer.print(&hash_kv(&mut file, rev).map_err(Failure::error)?)
        }
        Command::Version => {
            let hadron = env!("CARGO_PKG_VERSION");
            let text = format!(
                "etcdutl version: {ETCD_VERSION}\nAPI version: {API_VERSION}\nHadron version: {hadron}\n"
            );
            // A closed pipe is nobody's problem.
            let _ = std::io::stdout().write_all(text.as_bytes());
            Ok(())
        }
        Command::Completion(command) => command.run(arguments),
        Command::Other(words) => {
            let name = words.first().map(|word| word.to_string_lossy()).unwrap_or_default();
            Err(Failure::error(meaningless(&name)))
        }
    }
}

/// What to say about a command that is not there.
fn meaningless(name: &str) -> String {
    match name {
        "defrag" => "`defrag` has nothing to do: Hadron gives space back by itself".to_owned(),
        "migrate" => "`migrate` has nothing to do: Hadron's files have a format of their own, which a newer version reads by \
                      itself. To move data to etcd, take a snapshot and restore it there; 3.6 migrates it"
            .to_owned(),
        other => format!("unknown command \"{other}\" for \"etcdutl\""),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_has_no_meaning_here_says_so() {
        assert!(meaningless("defrag").contains("by itself"));
        assert_eq!(meaningless("nonsense"), "unknown command \"nonsense\" for \"etcdutl\"");
    }
}
