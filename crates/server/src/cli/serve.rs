//! `hadron serve`: one node.
//!
//! Parses nothing itself: it checks the configuration, sets logging up and hands over to the driver.

use std::io::Read as _;
use std::process::ExitCode;

use tracing_subscriber::EnvFilter;

use crate::config::{Config, LogFormat, Options};

/// Runs a node until it is told to stop by SIGTERM or SIGINT.
pub fn run(options: Options) -> ExitCode {
    let stop_on_stdin_close = options.stop_on_stdin_close;
    let config = match Config::from_options(options) {
        Ok(config) => config,
        Err(error) => {
            eprintln!("error: {error}");
            return ExitCode::from(2);
        }
    };
    start_logging(&config);
    if stop_on_stdin_close {
        std::thread::spawn(stop_when_stdin_closes);
    }
    match crate::driver::run(config) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!(%error, "the node stopped");
            ExitCode::FAILURE
        }
    }
}

fn start_logging(config: &Config) {
    let filter = EnvFilter::new(config.log_level.to_string().to_lowercase());
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    match config.log_format {
        LogFormat::Json => builder.json().flatten_event(true).init(),
        LogFormat::Console => builder.init(),
    }
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
