//! `member list` and `move-leader`.

use clap::Subcommand;
use hadron_proto::etcdserverpb::cluster_client::ClusterClient;
use hadron_proto::etcdserverpb::maintenance_client::MaintenanceClient;
use hadron_proto::etcdserverpb::{MemberListRequest, MemberListResponse, MoveLeaderRequest, StatusRequest};

use super::client::{CallError, Client};
use super::failure::Failure;
use super::print::cluster::Moved;
use super::{Global, Session, go_text, kv};

/// Subcommands of `member`.
#[derive(Debug, Subcommand)]
pub(crate) enum MemberCommand {
    /// List all members
    List {
        /// Linearizable(l) or serializable(s)
        #[arg(long, default_value = "l")]
        consistency: String,
    },
}

impl MemberCommand {
    /// Runs the command.
    pub(super) async fn run(self, global: Global) -> Result<(), Failure> {
        let MemberCommand::List { consistency } = self;
        let linearizable = !kv::serializable(&consistency)?;
        let session = Session::new(global)?;
        let reply = members(&session.client, linearizable).await?;
        session.printer.print(&reply)
    }
}

/// The members of the cluster.
pub(crate) async fn members(client: &Client, linearizable: bool) -> Result<MemberListResponse, CallError> {
    let request = MemberListRequest { linearizable };
    client.read(async |channel| ClusterClient::new(channel).member_list(request).await).await
}

/// Arguments of `move-leader`.
#[derive(Debug, clap::Args)]
pub(crate) struct MoveLeader {
    /// Member that is to lead, in hexadecimal
    #[arg(value_name = "MEMBER")]
    arguments: Vec<String>,
}

impl MoveLeader {
    /// Runs the command: the leader has to be among the endpoints, since only it can give leadership away.
    pub(super) async fn run(self, global: Global) -> Result<(), Failure> {
        let [target] = self.arguments.as_slice() else {
            return Err(Failure::arguments("move-leader command needs 1 argument"));
        };
        let to = go_text::parse_uint(target, 16).map_err(Failure::arguments)?;
        let session = Session::new(global)?;
        let Some((client, from)) = find_leader(&session.client).await? else {
            let endpoints = session.client.endpoints.join(" ");
            return Err(Failure::arguments(format_args!("no leader endpoint given at [{endpoints}]")));
        };
        let request = MoveLeaderRequest { target_id: to };
        let response =
            client.write(async |channel| MaintenanceClient::new(channel).move_leader(request).await).await?;
        session.printer.print(&Moved { from, to, response })
    }
}

async fn find_leader(client: &Client) -> Result<Option<(Client, u64)>, CallError> {
    for endpoint in &client.endpoints {
        let client = client.only(endpoint);
        let call = async |channel| MaintenanceClient::new(channel).status(StatusRequest::default()).await;
        let status = client.read(call).await?;
        let member_id = status.header.map_or(0, |header| header.member_id);
        if status.leader == member_id {
            return Ok(Some((client, member_id)));
        }
    }
    Ok(None)
}
