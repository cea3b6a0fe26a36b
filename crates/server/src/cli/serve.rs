//! `hadron serve`: one node.
//!
//! Parses nothing itself: it checks the configuration, sets logging up and hands over to the driver.

use std::io::Read as _;
use std::process::ExitCode;

use super::logging;
use crate::config::{Config, ConfigError, Options};
use crate::driver::RunError;

/// Runs a node until it is told to stop by SIGTERM or SIGINT.
pub fn run(options: Options) -> ExitCode {
    let stop_on_stdin_close = options.stop_on_stdin_close;
    let config = match Config::from_options(options) {
        Ok(config) => config,
        Err(error) => return refuse(&error),
    };
    logging::start(config.log_level, config.log_format);
    if stop_on_stdin_close {
        std::thread::spawn(stop_when_stdin_closes);
    }
    match crate::driver::run(config) {
        Ok(()) => ExitCode::SUCCESS,
        Err(RunError::Flags(error)) => refuse(&error),
        // As in etcd: somebody wanted it, and a supervisor that restarts what failed should not.
        Err(removed @ RunError::Removed(_)) => {
            tracing::warn!("stopped: {removed}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            tracing::error!(%error, "the node stopped");
            ExitCode::FAILURE
        }
    }
}

/// Flags that cannot be used: a mistake of the command line, whenever it is noticed.
fn refuse(error: &ConfigError) -> ExitCode {
    eprintln!("error: {error}");
    ExitCode::from(2)
}

/// Turns the end of standard input into SIGTERM. The playground holds the other end, which closes even if it is killed;
/// the node then stops as it does when an operator asks it to.
fn stop_when_stdin_closes() {
    let mut discarded = [0; 64];
    while std::io::stdin().read(&mut discarded).is_ok_and(|count| count > 0) {}
    let own = rustix::process::getpid();
    if let Err(error) = rustix::process::kill_process(own, rustix::process::Signal::TERM) {
        tracing::error!(%error, "cannot stop after standard input was closed");
        std::process::exit(1);
    }
}
