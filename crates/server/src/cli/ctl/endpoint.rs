//! `endpoint status`, `endpoint health` and `endpoint hashkv`: each endpoint asked on its own.

use std::time::Instant;

use clap::Subcommand;
use futures::future::join_all;
use hadron_proto::etcdserverpb::maintenance_client::MaintenanceClient;
use hadron_proto::etcdserverpb::{AlarmRequest, AlarmType, HashKvRequest, RangeRequest, StatusRequest};

use super::failure::Failure;
use super::print::Format;
use super::print::cluster::{Hashes, Health, Healths, Statuses};
use super::{Global, Session, go_text, kv, member};
use crate::client::{CallError, Client};

/// A key that probably does not exist: reading it takes a quorum all the same.
const HEALTH_KEY: &str = "health";
const PERMISSION_DENIED: &str = "etcdserver: permission denied";

/// Subcommands of `endpoint`.
#[derive(Debug, Subcommand)]
pub(crate) enum EndpointCommand {
    /// Show the status of each endpoint
    Status(Scope),
    /// Check whether each endpoint can commit a proposal
    Health(Scope),
    /// Show the hash of each endpoint's history
    Hashkv {
        #[command(flatten)]
        scope: Scope,
        /// Highest revision to hash (0: the latest)
        #[arg(long, default_value_t = 0, hide_default_value = true, allow_negative_numbers = true)]
        rev: i64,
    },
}

/// Which endpoints are asked.
#[derive(Debug, clap::Args)]
pub(crate) struct Scope {
    /// Ask all members of the cluster, not just the given endpoints
    #[arg(long)]
    cluster: bool,
}

impl EndpointCommand {
    /// Runs the command.
    pub(super) async fn run(self, global: Global) -> Result<(), Failure> {
        let session = Session::new(global)?;
        match self {
            EndpointCommand::Status(scope) => status(&session, &scope).await,
            EndpointCommand::Health(scope) => health(&session, &scope).await,
            EndpointCommand::Hashkv { scope, rev } => hash_kv(&session, &scope, rev).await,
        }
    }
}

impl Scope {
    /// The endpoints to ask.
    pub(super) async fn endpoints(&self, client: &Client) -> Result<Vec<String>, Failure> {
        if !self.cluster {
            return Ok(client.endpoints.to_vec());
        }
        let list = member::members(client, true).await.map_err(|error| {
            Failure::error(format_args!("failed to fetch endpoints from etcd cluster member list: {error}"))
        })?;
        Ok(list.members.into_iter().flat_map(|member| member.client_ur_ls).collect())
    }
}

async fn status(session: &Session, scope: &Scope) -> Result<(), Failure> {
    let (mut statuses, mut failed) = (Vec::new(), false);
    for endpoint in scope.endpoints(&session.client).await? {
        let call = async |channel| MaintenanceClient::new(channel).status(StatusRequest::default()).await;
        match session.client.only(&endpoint).read(call).await {
            Ok(status) => statuses.push((endpoint, status)),
            Err(error) => {
                failed = true;
                eprintln!("Failed to get the status of endpoint {endpoint} ({error})");
            }
        }
    }
    session.printer.print(&Statuses(statuses))?;
    if failed { Err(Failure::silent()) } else { Ok(()) }
}

async fn hash_kv(session: &Session, scope: &Scope, revision: i64) -> Result<(), Failure> {
    let (mut hashes, mut last_error) = (Vec::new(), None);
    for endpoint in scope.endpoints(&session.client).await? {
        let call = async |channel| MaintenanceClient::new(channel).hash_kv(HashKvRequest { revision }).await;
        match session.client.only(&endpoint).read(call).await {
            Ok(hash) => hashes.push((endpoint, hash)),
            Err(error) => {
                eprintln!("Failed to get the hash of endpoint {endpoint} ({error})");
                last_error = Some(error);
            }
        }
    }
    session.printer.print(&Hashes(hashes))?;
    last_error.map_or(Ok(()), |error| Err(error.into()))
}

async fn health(session: &Session, scope: &Scope) -> Result<(), Failure> {
    let endpoints = scope.endpoints(&session.client).await?;
    let healths = join_all(endpoints.iter().map(|endpoint| check(&session.client, endpoint))).await;
    let healths = Healths(healths);
    session.printer.print(&healths)?;
    if healths.0.iter().all(|health| health.error.is_empty()) {
        return Ok(());
    }
    if session.printer.format == Format::Simple {
        healths.0.iter().filter_map(Health::complaint).for_each(|complaint| eprintln!("{complaint}"));
    }
    Err(Failure::error("unhealthy cluster"))
}

/// Reads a key through a quorum and looks for alarms.
async fn check(client: &Client, endpoint: &str) -> Health {
    let client = client.only(endpoint);
    let started = Instant::now();
    let request = RangeRequest { key: HEALTH_KEY.into(), ..Default::default() };
    let read = client.read(async |channel| kv::client(channel).range(request.clone()).await).await;
    let took = go_text::duration(started.elapsed());
    let error = match read {
        Ok(_) => alarms(&client).await,
        // Who may not read the key has still been answered by a quorum.
        Err(error) if error.to_string() == PERMISSION_DENIED => alarms(&client).await,
        Err(error) => error.to_string(),
    };
    Health { endpoint: endpoint.to_owned(), took, error }
}

/// The complaint about active alarms, empty when there are none.
async fn alarms(client: &Client) -> String {
    let call = async |channel| MaintenanceClient::new(channel).alarm(AlarmRequest::default()).await;
    let alarms = match client.read(call).await {
        Ok(reply) => reply.alarms,
        Err(CallError::Refused(status)) if status.code() == tonic::Code::Unimplemented => {
            return String::new();
        }
        Err(_) => return "Unable to fetch the alarm list".to_owned(),
    };
    let names: String = alarms
        .iter()
        .map(|alarm| match alarm.alarm() {
            AlarmType::Nospace => "NOSPACE ",
            AlarmType::Corrupt => "CORRUPT ",
            AlarmType::None => "UNKNOWN ",
        })
        .collect();
    if names.is_empty() { names } else { format!("Active Alarm(s): {names}") }
}
