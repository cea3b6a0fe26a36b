//! `member` and `move-leader`.

use clap::{Args, Subcommand};
use hadron_proto::etcdserverpb as pb;
use pb::cluster_client::ClusterClient;
use pb::maintenance_client::MaintenanceClient;
use pb::{Member, MemberListRequest, MemberListResponse, MoveLeaderRequest, ResponseHeader, StatusRequest};

use super::failure::Failure;
use super::print::cluster::{MembersChanged, Moved};
use super::{Global, Session, go_text, kv};
use crate::client::{CallError, Client};

/// Subcommands of `member`.
#[derive(Debug, Subcommand)]
pub(crate) enum MemberCommand {
    /// List all members
    List {
        /// Linearizable(l) or serializable(s)
        #[arg(long, default_value = "l")]
        consistency: String,
    },
    /// Add a member: decides that it belongs to the cluster; it is to be started afterwards
    Add(Add),
    /// Remove a member
    Remove(OneMember),
    /// Give a member other peer URLs
    Update(Update),
    /// Let a learner vote
    Promote(OneMember),
}

impl MemberCommand {
    /// Runs the command.
    pub(super) async fn run(self, global: Global) -> Result<(), Failure> {
        match self {
            MemberCommand::List { consistency } => {
                let linearizable = !kv::serializable(&consistency)?;
                let session = Session::new(global)?;
                let reply = members(&session.client, linearizable).await?;
                session.printer.print(&reply)
            }
            MemberCommand::Add(add) => add.run(global).await,
            MemberCommand::Remove(one) => one.remove(global).await,
            MemberCommand::Update(update) => update.run(global).await,
            MemberCommand::Promote(one) => one.promote(global).await,
        }
    }
}

/// Arguments of `member add`.
#[derive(Debug, Args)]
pub(crate) struct Add {
    /// Its name, as it will be started with
    #[arg(value_name = "NAME")]
    arguments: Vec<String>,
    /// Comma-separated peer URLs of the new member
    #[arg(long, default_value = "")]
    peer_urls: String,
    /// Add it as a learner, which does not vote
    #[arg(long)]
    learner: bool,
}

impl Add {
    async fn run(self, global: Global) -> Result<(), Failure> {
        let name = match self.arguments.as_slice() {
            [] => return Err(Failure::arguments("member name not provided")),
            [name] => name.clone(),
            many => return Err(Failure::arguments(too_many(many))),
        };
        if self.peer_urls.is_empty() {
            return Err(Failure::arguments("member peer urls not provided"));
        }
        let session = Session::new(global)?;
        let request = pb::MemberAddRequest { peer_ur_ls: split(&self.peer_urls), is_learner: self.learner };
        let call = async |channel| ClusterClient::new(channel).member_add(request.clone()).await;
        let response = session.client.write(call).await?;
        let member = response.member.unwrap_or_default();
        let role = if member.is_learner { " as learner" } else { "" };
        let lines = start_lines(&name, &self.peer_urls, &member, &response.members);
        session.printer.print(&MembersChanged {
            happened: format!("Member {:16x} added{role} to", member.id),
            header: response.header,
            added: Some((member, lines)),
            members: response.members,
        })
    }
}

/// Somebody may have given URLs where only a name belongs.
fn too_many(arguments: &[String]) -> String {
    let urls = arguments.iter().filter(|text| text.to_lowercase().starts_with("http"));
    let hints = urls.map(|url| format!(", did you mean --peer-urls={url}"));
    format!("too many arguments{}", hints.collect::<String>())
}

fn split(urls: &str) -> Vec<String> {
    urls.split(',').map(str::to_owned).collect()
}

/// The environment that the new member is to be started with.
fn start_lines(name: &str, peer_urls: &str, new: &Member, members: &[Member]) -> Vec<String> {
    let of = |member: &Member| {
        let name = if member.id == new.id { name.to_owned() } else { member.name.clone() };
        member.peer_ur_ls.iter().map(move |url| format!("{name}={url}")).collect::<Vec<_>>()
    };
    let cluster: Vec<String> = members.iter().flat_map(of).collect();
    let quoted = |text: &str| go_text::quote(text.as_bytes());
    vec![
        String::new(),
        format!("ETCD_NAME={}", quoted(name)),
        format!("ETCD_INITIAL_CLUSTER={}", quoted(&cluster.join(","))),
        format!("ETCD_INITIAL_ADVERTISE_PEER_URLS={}", quoted(peer_urls)),
        "ETCD_INITIAL_CLUSTER_STATE=\"existing\"".to_owned(),
    ]
}

/// Arguments of commands about one member.
#[derive(Debug, Args)]
pub(crate) struct OneMember {
    /// Its id, in hexadecimal
    #[arg(value_name = "MEMBER")]
    arguments: Vec<String>,
}

impl OneMember {
    fn id(&self) -> Result<u64, Failure> {
        let [id] = self.arguments.as_slice() else {
            return Err(Failure::arguments("member ID is not provided"));
        };
        go_text::parse_uint(id, 16).map_err(|error| {
            Failure::arguments(format_args!("bad member ID arg ({error}), expecting ID in Hex"))
        })
    }

    async fn remove(self, global: Global) -> Result<(), Failure> {
        let id = self.id()?;
        let session = Session::new(global)?;
        let request = pb::MemberRemoveRequest { id };
        let call = async |channel| ClusterClient::new(channel).member_remove(request).await;
        let response = session.client.write(call).await?;
        session.changed(format!("Member {id:16x} removed from"), response.header, response.members)
    }

    async fn promote(self, global: Global) -> Result<(), Failure> {
        let id = self.id()?;
        let session = Session::new(global)?;
        let request = pb::MemberPromoteRequest { id };
        let call = async |channel| ClusterClient::new(channel).member_promote(request).await;
        let response = session.client.write(call).await?;
        session.changed(format!("Member {id:16x} promoted in"), response.header, response.members)
    }
}

/// Arguments of `member update`.
#[derive(Debug, Args)]
pub(crate) struct Update {
    #[command(flatten)]
    member: OneMember,
    /// Comma-separated peer URLs of the member
    #[arg(long, default_value = "")]
    peer_urls: String,
}

impl Update {
    async fn run(self, global: Global) -> Result<(), Failure> {
        let id = self.member.id()?;
        if self.peer_urls.is_empty() {
            return Err(Failure::arguments("member peer urls not provided"));
        }
        let session = Session::new(global)?;
        let request = pb::MemberUpdateRequest { id, peer_ur_ls: split(&self.peer_urls) };
        let call = async |channel| ClusterClient::new(channel).member_update(request.clone()).await;
        let response = session.client.write(call).await?;
        session.changed(format!("Member {id:16x} updated in"), response.header, response.members)
    }
}

impl Session {
    fn changed(
        &self,
        happened: String,
        header: Option<ResponseHeader>,
        members: Vec<Member>,
    ) -> Result<(), Failure> {
        self.printer.print(&MembersChanged { happened, header, added: None, members })
    }
}

/// The members of the cluster.
pub(crate) async fn members(client: &Client, linearizable: bool) -> Result<MemberListResponse, CallError> {
    let request = MemberListRequest { linearizable };
    client.read(async |channel| ClusterClient::new(channel).member_list(request).await).await
}

/// Arguments of `move-leader`.
#[derive(Debug, Args)]
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
    for endpoint in client.endpoints.iter() {
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
