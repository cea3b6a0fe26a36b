//! `hadron ctl`: a client for people and scripts, with `etcdctl`'s commands, flags, output and exit codes.
//!
//! A command checks its arguments (before connecting, in `etcdctl`'s order and words), makes its calls through
//! `client::Client` and prints the reply through `print::Printer`.

mod auth;
mod balance;
mod check;
mod discovery;
mod elect;
pub(super) mod election;
mod endpoint;
pub(super) mod failure;
mod hold;
mod keyspace;
mod kv;
mod lease;
mod lock;
pub(super) mod login;
mod member;
mod mirror;
pub(super) mod print;
mod removal;
mod retry;
pub(super) mod secure;
mod snapshot;
mod txn;
mod upkeep;
mod watch;

use std::ffi::OsString;
use std::process::ExitCode;
use std::time::Duration;

use clap::Subcommand;

use hadron_node::DEFAULT_KEYSPACE;
use tokio::task::LocalSet;

use crate::client::Client;
use crate::go_text;
use failure::Failure;
use print::{Format, Printer, Style};

/// The `etcdctl` whose commands and output these are.
const ETCDCTL_VERSION: &str = crate::api::backend::ETCD_VERSION;
/// The version of etcd's API that it speaks.
const API_VERSION: &str = "3.6";

/// Where a cluster is when nobody says otherwise.
const DEFAULT_ENDPOINT: &str = "127.0.0.1:2379";

/// The flags of every command, and the command.
#[derive(Debug, clap::Args)]
#[command(infer_subcommands = true)]
pub struct Options {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Args)]
struct Global {
    /// Endpoints to talk to, separated by commas
    #[arg(
        long,
        global = true,
        env = "ETCDCTL_ENDPOINTS",
        default_value = DEFAULT_ENDPOINT,
        value_delimiter = ',',
        value_name = "LIST",
        hide_env = true
    )]
    endpoints: Vec<String>,
    /// Output format: simple, fields, json, protobuf or table
    #[arg(
        short = 'w',
        long = "write-out",
        global = true,
        env = "ETCDCTL_WRITE_OUT",
        default_value = "simple",
        value_name = "FORMAT",
        hide_env = true
    )]
    write_out: String,
    /// Print byte strings as hexadecimal
    #[arg(
        long,
        global = true,
        env = "ETCDCTL_HEX",
        value_parser = clap::builder::BoolishValueParser::new(),
        hide_env = true
    )]
    hex: bool,
    /// Time to wait for a connection
    #[arg(long, global = true, env = "ETCDCTL_DIAL_TIMEOUT", default_value = "2s", value_parser = go_text::parse_duration, value_name = "DURATION", hide_env = true)]
    dial_timeout: Duration,
    /// Time to wait for a reply, once connected
    #[arg(long, global = true, env = "ETCDCTL_COMMAND_TIMEOUT", default_value = "5s", value_parser = go_text::parse_duration, value_name = "DURATION", hide_env = true)]
    command_timeout: Duration,
    /// Time without traffic before the server is pinged, at least 10s: etcd hangs up on clients that ping more often
    #[arg(long, global = true, env = "ETCDCTL_KEEPALIVE_TIME", default_value = "2s", value_parser = go_text::parse_duration, value_name = "DURATION", hide_env = true)]
    keepalive_time: Duration,
    /// Time to wait for the answer to a ping
    #[arg(long, global = true, env = "ETCDCTL_KEEPALIVE_TIMEOUT", default_value = "6s", value_parser = go_text::parse_duration, value_name = "DURATION", hide = true)]
    keepalive_timeout: Duration,
    /// As etcdctl has it, which tells what its library does; there is nothing of the kind here
    #[arg(
        long,
        global = true,
        env = "ETCDCTL_DEBUG",
        value_parser = clap::builder::BoolishValueParser::new(),
        hide = true
    )]
    debug: bool,
    /// As etcdctl has it; how large a request may be is the server's business here
    #[arg(
        long,
        global = true,
        env = "ETCDCTL_MAX_REQUEST_BYTES",
        allow_hyphen_values = true,
        value_name = "BYTES",
        hide = true
    )]
    max_request_bytes: Option<i64>,
    /// As etcdctl has it; replies may have any size here
    #[arg(
        long,
        global = true,
        env = "ETCDCTL_MAX_RECV_BYTES",
        allow_hyphen_values = true,
        value_name = "BYTES",
        hide = true
    )]
    max_recv_bytes: Option<i64>,
    #[command(flatten)]
    discovery: discovery::Discovery,
    #[command(flatten)]
    secure: secure::Secure,
    #[command(flatten)]
    login: login::Login,
    #[command(flatten)]
    keyspace: login::KeyspaceFlag,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Get a key or a range of keys
    Get(kv::Get),
    /// Put a key
    Put(kv::Put),
    /// Delete a key or a range of keys
    Del(kv::Del),
    /// Run a transaction read from standard input
    Txn(txn::Txn),
    /// Discard history before a revision
    Compaction(kv::Compaction),
    /// Watch keys or ranges of keys
    Watch(watch::Watch),
    /// Commands for leases
    #[command(subcommand)]
    Lease(lease::Lease),
    /// Commands for endpoints
    #[command(subcommand)]
    Endpoint(endpoint::EndpointCommand),
    /// Commands for members
    #[command(subcommand)]
    Member(member::MemberCommand),
    /// Transfer leadership to another member
    MoveLeader(member::MoveLeader),
    /// Hold a lock until interrupted, or while a command runs
    Lock(lock::Lock),
    /// Lead an election until interrupted, or watch who does
    Elect(elect::Elect),
    /// Commands for snapshots
    #[command(subcommand)]
    Snapshot(snapshot::Snapshot),
    /// Check how a cluster does
    #[command(subcommand)]
    Check(check::Check),
    /// Copy keys to another cluster, and go on with what happens to them
    MakeMirror(mirror::MakeMirror),
    /// Commands for users
    #[command(subcommand)]
    User(auth::User),
    /// Commands for roles
    #[command(subcommand)]
    Role(auth::Role),
    /// Switch authentication on and off
    #[command(subcommand)]
    Auth(auth::Auth),
    /// Commands for alarms
    #[command(subcommand)]
    Alarm(upkeep::Alarm),
    /// Defragment the storage of members: Hadron's do it by themselves too
    Defrag(upkeep::Defrag),
    /// Commands for downgrades
    #[command(subcommand)]
    Downgrade(upkeep::Downgrade),
    /// Commands for elections (Hadron's own)
    #[command(subcommand)]
    Election(election::Election),
    /// Commands for keyspaces (Hadron's own)
    #[command(subcommand)]
    Keyspace(keyspace::Keyspace),
    /// Commands for nodes (Hadron's own)
    #[command(subcommand)]
    Node(keyspace::Node),
    /// How load is spread over the nodes (Hadron's own)
    #[command(subcommand)]
    Balance(balance::Balance),
    /// Which keyspaces, prefixes or clients cause the load (Hadron's own)
    Top(balance::TopOptions),
    /// Print what a shell needs to complete commands
    Completion(super::completion::Completion),
    /// Print the version
    Version,
}

/// What every command works with.
#[derive(Debug)]
struct Session {
    client: Client,
    printer: Printer,
}

impl Global {
    /// The same with the endpoints that were found, if any were.
    async fn discovered(self) -> Result<Global, Failure> {
        match self.discovery.endpoints().await? {
            found if found.is_empty() => Ok(self),
            endpoints => Ok(Global { endpoints, ..self }),
        }
    }
}

impl Session {
    /// For commands about the pool, which its keyspace `default` answers.
    fn of_pool(global: Global) -> Result<Session, Failure> {
        let keyspace = login::KeyspaceFlag::of(DEFAULT_KEYSPACE.to_owned());
        Session::new(Global { keyspace, ..global })
    }

    fn new(global: Global) -> Result<Session, Failure> {
        // An empty list, perhaps from an empty variable, means the default as well.
        let endpoints = match global.endpoints.iter().all(String::is_empty) {
            true => vec![DEFAULT_ENDPOINT.to_owned()],
            false => global.endpoints.iter().map(|endpoint| endpoint.trim().to_owned()).collect(),
        };
        let client = Client {
            endpoints: endpoints.into(),
            security: global.secure.security(global.discovery.server_name())?,
            identity: global.login.identity()?,
            keyspace: global.keyspace.value()?,
            dial_timeout: global.dial_timeout,
            command_timeout: global.command_timeout,
            keepalive: (global.keepalive_time, global.keepalive_timeout),
        };
        let style = Style { hex: global.hex, values_only: false };
        Ok(Session { client, printer: Printer { format: Format::parse(&global.write_out)?, style } })
    }
}

/// Runs a command. `arguments` is the whole command line, of which `watch` needs the `--`.
pub fn run(options: Options, arguments: &[OsString]) -> ExitCode {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let result = runtime.map_err(Failure::error).and_then(|runtime| {
        let result = LocalSet::new().block_on(&runtime, dispatch(options, arguments));
        // A thread may still be reading standard input: the process does not wait for it.
        runtime.shutdown_background();
        result
    });
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            if let Some(text) = failure.text {
                eprintln!("Error: {text}");
            }
            ExitCode::from(failure.exit.code())
        }
    }
}

async fn dispatch(options: Options, arguments: &[OsString]) -> Result<(), Failure> {
    let global = match options.command {
        Command::Completion(_) | Command::Version => options.global,
        _ => options.global.discovered().await?,
    };
    match options.command {
        Command::Get(command) => command.run(global).await,
        Command::Put(command) => command.run(global).await,
        Command::Del(command) => command.run(global).await,
        Command::Txn(command) => command.run(global).await,
        Command::Compaction(command) => command.run(global).await,
        Command::Watch(command) => command.run(global, arguments).await,
        Command::Lease(command) => command.run(global).await,
        Command::Endpoint(command) => command.run(global).await,
        Command::Member(command) => command.run(global).await,
        Command::MoveLeader(command) => command.run(global).await,
        Command::Lock(command) => command.run(global).await,
        Command::Elect(command) => command.run(global).await,
        Command::Snapshot(command) => command.run(global, arguments).await,
        Command::Check(command) => command.run(global).await,
        Command::MakeMirror(command) => command.run(global).await,
        Command::User(command) => command.run(global).await,
        Command::Role(command) => command.run(global).await,
        Command::Auth(command) => command.run(global).await,
        Command::Alarm(command) => command.run(global).await,
        Command::Defrag(command) => command.run(global).await,
        Command::Downgrade(command) => command.run(global).await,
        Command::Election(command) => command.run(global).await,
        Command::Keyspace(command) => command.run(global).await,
        Command::Node(command) => command.run(global).await,
        Command::Balance(command) => command.run(global).await,
        Command::Top(options) => balance::top(&options, global).await,
        Command::Completion(command) => command.run(arguments),
        Command::Version => version(),
    }
}

fn version() -> Result<(), Failure> {
    let hadron = env!("CARGO_PKG_VERSION");
    let text =
        format!("etcdctl version: {ETCDCTL_VERSION}\nAPI version: {API_VERSION}\nHadron version: {hadron}\n");
    print::write_out(text.as_bytes())
}
