//! `hadron utl`, and `etcdutl`: work on files of data without a running node.
//!
//! Built so far: the version. The other commands of `etcdutl` are known, so that whoever calls one is told that it is
//! missing here, and what to do instead.

use std::ffi::OsString;
use std::io::Write as _;
use std::process::ExitCode;

use crate::api::backend::ETCD_VERSION;

/// The version of etcd's API.
const API_VERSION: &str = "3.6";

/// The command.
#[derive(Debug, clap::Args)]
pub struct Options {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Print the version
    Version,
    /// Everything else that etcdutl knows: not built yet
    #[command(external_subcommand)]
    Other(Vec<OsString>),
}

/// Runs a command.
pub fn run(options: Options) -> ExitCode {
    match options.command {
        Command::Version => {
            let hadron = env!("CARGO_PKG_VERSION");
            let text = format!(
                "etcdutl version: {ETCD_VERSION}\nAPI version: {API_VERSION}\nHadron version: {hadron}\n"
            );
            // A closed pipe is nobody's problem.
            let _ = std::io::stdout().write_all(text.as_bytes());
            ExitCode::SUCCESS
        }
        Command::Other(words) => {
            let name = words.first().map(|word| word.to_string_lossy()).unwrap_or_default();
            eprintln!("Error: {}", missing(&name));
            ExitCode::FAILURE
        }
    }
}

/// What to say about a command that is not there.
fn missing(name: &str) -> String {
    match name {
        "defrag" => "`defrag` has nothing to do: Hadron gives space back by itself".to_owned(),
        "snapshot" | "hashkv" | "migrate" | "completion" | "hashes" => {
            format!("`{name}` is not built yet; etcd's own etcdutl works on etcd's files")
        }
        other => format!("unknown command \"{other}\" for \"etcdutl\""),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_named() {
        assert!(missing("snapshot").contains("`snapshot` is not built yet"));
        assert_eq!(missing("nonsense"), "unknown command \"nonsense\" for \"etcdutl\"");
    }
}
