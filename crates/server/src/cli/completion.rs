//! `completion`: what a shell needs to complete the commands and flags of the program that was called.

use std::ffi::{OsStr, OsString};
use std::io::Write as _;
use std::path::Path;

use clap::{Args as _, CommandFactory as _};
use clap_complete::{Shell, generate};

use super::ctl::failure::Failure;
use super::{CommandLine, ctl, switches_with_values, utl};

/// The command.
#[derive(Debug, Clone, Copy, clap::Args)]
pub(super) struct Completion {
    /// For which shell
    shell: Shell,
}

impl Completion {
    /// Prints the script for the program that `arguments` begins with.
    pub(super) fn run(self, arguments: &[OsString]) -> Result<(), Failure> {
        let program = arguments.first().and_then(|path| Path::new(path).file_stem()).and_then(OsStr::to_str);
        let (name, command) = match program {
            Some("etcdctl") => ("etcdctl", ctl::Options::augment_args(clap::Command::new("etcdctl"))),
            Some("etcdutl") => ("etcdutl", utl::Options::augment_args(clap::Command::new("etcdutl"))),
            _ => ("hadron", CommandLine::command()),
        };
        let mut script = Vec::new();
        generate(self.shell, &mut switches_with_values(command), name, &mut script);
        // A closed pipe is nobody's problem.
        let _ = std::io::stdout().write_all(&script);
        Ok(())
    }
}
