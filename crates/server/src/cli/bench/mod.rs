//! `hadron bench`: a load generator for any etcd endpoint.
//!
//! It shares the machine with what it measures, so it must be cheap: one thread, HTTP/2 driven directly (`connection`)
//! instead of through a gRPC client, requests encoded into reused buffers. Clients are tasks that send their next
//! request when the last one is answered; they are spread over the connections, and those over the endpoints.
//!
//! With `--rate`, a request's latency counts from the moment it was due, so that a stall of the server is not hidden by
//! requests that were never sent.

mod connection;
mod load;
mod pace;
mod process;
mod report;
mod requests;

use std::io::IsTerminal as _;
use std::process::ExitCode;
use std::time::Duration;

use clap::Subcommand;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::ctl::failure::Failure;
use super::ctl::login::{KeyspaceFlag, Login};
use super::ctl::secure::Secure;
use crate::client::Client;
use load::Load;
use requests::Operation;

/// No store takes larger keys and values, and this program's memory is bounded, too.
const BYTES_MAX: usize = 64 << 20;
/// How long connecting and logging in may take.
const LOGIN_TIMEOUT: Duration = Duration::from_secs(5);
/// More clients than that wait for this program and not for the store.
const CLIENTS_MAX: i64 = 100_000;
/// Requests a second: one in each nanosecond.
const RATE_MAX: u64 = 1_000_000_000;
const BURST_MAX: u64 = 1_000_000;

fn bytes(text: &str) -> Result<usize, String> {
    let bytes: usize = text.parse().map_err(|error| format!("{error}"))?;
    if bytes > BYTES_MAX { Err(format!("more than {BYTES_MAX} bytes")) } else { Ok(bytes) }
}

/// What to measure.
#[derive(Debug, clap::Args)]
pub struct Options {
    #[command(subcommand)]
    operation: OperationCommand,
}

#[derive(Debug, Subcommand)]
enum OperationCommand {
    /// Put keys
    Put(Common),
    /// Read single keys
    Range {
        #[command(flatten)]
        common: Common,
        /// Let any node answer from what it has, without asking the others
        #[arg(long)]
        serializable: bool,
    },
    /// Run transactions of puts
    Txn {
        #[command(flatten)]
        common: Common,
        /// Puts in each transaction
        #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=128))]
        txn_ops: u32,
    },
}

/// Flags of every operation.
#[derive(Debug, Clone, clap::Args)]
struct Common {
    /// Endpoints to load, separated by commas
    #[arg(long, env = "ETCDCTL_ENDPOINTS", default_value = "127.0.0.1:2379", hide_env = true)]
    endpoints: String,
    /// Connections, spread over the endpoints
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    connections: u32,
    /// Clients that wait for an answer before they send their next request, spread over the connections
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=CLIENTS_MAX))]
    clients: u32,
    /// Requests to send
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u64).range(1..))]
    total: u64,
    /// Most requests to send each second (0: as many as go)
    #[arg(long, default_value_t = 0, value_parser = clap::value_parser!(u64).range(..=RATE_MAX))]
    rate: u64,
    /// Requests to send at a time, with --rate
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=BURST_MAX))]
    burst: u64,
    /// Bytes in a key
    #[arg(long, default_value_t = 8, value_parser = bytes)]
    key_size: usize,
    /// Bytes in a value
    #[arg(long, default_value_t = 8, value_parser = bytes)]
    value_size: usize,
    /// Different keys that are used
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..))]
    key_space_size: u64,
    /// Use the keys in turn, not at random
    #[arg(long)]
    sequential_keys: bool,
    /// Processes of the server, separated by commas: their CPU time for each request is reported
    #[arg(long, value_delimiter = ',', value_name = "PIDS")]
    pid: Vec<u32>,
    /// Output format: simple or json
    #[arg(short = 'w', long = "write-out", default_value = "simple", value_parser = ["simple", "json"])]
    write_out: String,
    #[command(flatten)]
    secure: Secure,
    #[command(flatten)]
    login: Login,
    #[command(flatten)]
    keyspace: KeyspaceFlag,
}

impl Common {
    /// Where to connect, how, and as whom.
    fn client(&self) -> Result<Client, String> {
        let endpoints = self.endpoints.split(',').map(|endpoint| endpoint.trim().to_owned());
        let endpoints: Vec<String> = endpoints.collect();
        let told = |failure: Failure| failure.text.unwrap_or_default();
        Ok(Client {
            endpoints: endpoints.into(),
            security: self.secure.clone().security(None).map_err(told)?,
            identity: self.login.clone().identity().map_err(told)?,
            keyspace: self.keyspace.value().map_err(told)?,
            dial_timeout: LOGIN_TIMEOUT,
            command_timeout: LOGIN_TIMEOUT,
            keepalive: (LOGIN_TIMEOUT, LOGIN_TIMEOUT),
        })
    }
}

/// Runs a benchmark. Fails if the load cannot be started or no request at all succeeded.
pub fn run(options: Options) -> ExitCode {
    let (operation, common) = match options.operation {
        OperationCommand::Put(common) => (Operation::Put, common),
        OperationCommand::Range { common, serializable } => (Operation::Range { serializable }, common),
        OperationCommand::Txn { common, txn_ops } => (Operation::Txn { operations: txn_ops }, common),
    };
    match measure(operation, &common) {
        Ok(report) => {
            let text = if common.write_out == "json" { report.json() } else { report.text() };
            println!("{text}");
            if report.succeeded() == 0 { ExitCode::FAILURE } else { ExitCode::SUCCESS }
        }
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn measure(operation: Operation, common: &Common) -> Result<report::Report, String> {
    let load = Load::new(operation, common)?;
    let watched = process::Watched::start(&common.pid)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| format!("cannot start: {error}"))?;
    let bar = progress_bar(common.total);
    let outcome = runtime.block_on(load.run(&bar))?;
    bar.finish_and_clear();
    let cpu = watched.finish(outcome.succeeded().max(1));
    Ok(report::Report::new(operation, common, outcome, cpu))
}

/// A bar on standard error; hidden when that is not a terminal.
fn progress_bar(total: u64) -> ProgressBar {
    if !std::io::stderr().is_terminal() {
        return ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::hidden());
    }
    let bar = ProgressBar::new(total);
    if let Ok(style) = ProgressStyle::with_template("{bar:40} {pos}/{len}  {per_sec}  {eta} left") {
        bar.set_style(style);
    }
    bar
}

/// How often the progress bar is moved: drawing it costs more than a request.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(200);
