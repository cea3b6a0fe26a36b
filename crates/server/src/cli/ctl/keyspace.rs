//! `keyspace` and `node`: the keyspaces that the pool carries, and the nodes that carry them. Hadron's own.
//!
//! They are about the pool, so they ask its keyspace `default`, whatever `--keyspace` says.

use clap::{Args, Subcommand};
use hadron_proto::hadron as pb;
use pb::pool_client::PoolClient;

use super::failure::Failure;
use super::print::pool::{Changed, Described};
use super::removal::Remove;
use super::{Global, Session};
use crate::client::Connection;

/// Subcommands of `keyspace`.
#[derive(Debug, Subcommand)]
pub(crate) enum Keyspace {
    /// Make a keyspace
    Create(Create),
    /// List all keyspaces
    List,
    /// Show a keyspace: its leader, its replicas, and how large it is
    Get(Named),
    /// Change how many replicas a keyspace has, or what it may use
    Update(Update),
    /// Let a keyspace be read only
    Freeze(Named),
    /// Let a keyspace be written again
    Thaw(Named),
    /// Delete a keyspace with all that is in it
    Delete(Named),
}

/// Subcommands of `node`.
#[derive(Debug, Subcommand)]
pub(crate) enum Node {
    /// List the nodes, with what they carry
    List,
    /// Empty a node: its leaderships and replicas go to others
    Drain(OneNode),
    /// Let a node that was drained carry keyspaces again
    Undrain(OneNode),
    /// Empty a node, and remove it from the pool once it is empty
    Remove(Remove),
}

/// A node.
#[derive(Debug, Args)]
pub(crate) struct OneNode {
    /// Its id or its name
    node: String,
}

/// A keyspace's name.
#[derive(Debug, Args)]
pub(crate) struct Named {
    /// Its name
    name: String,
}

/// Arguments of `keyspace create`.
#[derive(Debug, Args)]
pub(crate) struct Create {
    #[command(flatten)]
    named: Named,
    /// Replicas (0: three, or as many as there are nodes)
    #[arg(long, default_value_t = 0, hide_default_value = true, value_name = "COUNT")]
    replicas: u32,
    /// Bytes that it may hold with its history (0: no bound of its own)
    #[arg(long, default_value_t = 0, hide_default_value = true, value_name = "BYTES")]
    bytes_max: u64,
    /// Requests a second that each node takes for it (0: no bound)
    #[arg(long, default_value_t = 0, hide_default_value = true, value_name = "COUNT")]
    requests_per_second_max: u64,
}

/// Arguments of `keyspace update`.
#[derive(Debug, Args)]
pub(crate) struct Update {
    #[command(flatten)]
    named: Named,
    /// Replicas
    #[arg(long, value_name = "COUNT")]
    replicas: Option<u32>,
    /// Bytes that it may hold with its history (0: no bound of its own)
    #[arg(long, value_name = "BYTES")]
    bytes_max: Option<u64>,
    /// Requests a second that each node takes for it (0: no bound)
    #[arg(long, value_name = "COUNT")]
    requests_per_second_max: Option<u64>,
}

pub(super) fn pool(connection: Connection) -> PoolClient<Connection> {
    PoolClient::new(connection)
}

impl Keyspace {
    /// Runs the command.
    pub(super) async fn run(self, global: Global) -> Result<(), Failure> {
        let session = Session::of_pool(global)?;
        match self {
            Keyspace::Create(create) => session.create(create).await,
            Keyspace::List => {
                let call = async |channel| pool(channel).keyspace_list(pb::KeyspaceListRequest {}).await;
                session.printer.print(&session.client.read(call).await?)
            }
            Keyspace::Get(Named { name }) => session.describe(name).await,
            Keyspace::Update(Update {
                named: Named { name },
                replicas,
                bytes_max,
                requests_per_second_max,
            }) => {
                if replicas.is_none() && bytes_max.is_none() && requests_per_second_max.is_none() {
                    let text = "keyspace update needs --replicas, --bytes-max or --requests-per-second-max";
                    return Err(Failure::arguments(text));
                }
                let frozen = None;
                let change =
                    pb::KeyspaceUpdateRequest { name, replicas, bytes_max, requests_per_second_max, frozen };
                session.update("updated", change).await
            }
            Keyspace::Freeze(named) => session.set_frozen("frozen", named, true).await,
            Keyspace::Thaw(named) => session.set_frozen("thawed", named, false).await,
            Keyspace::Delete(Named { name }) => {
                let request = pb::KeyspaceDeleteRequest { name };
                let call = async |channel| pool(channel).keyspace_delete(request).await;
                session.keyspace_changed("deleted", session.client.write(call).await?.keyspace)
            }
        }
    }
}

impl Node {
    /// Runs the command.
    pub(super) async fn run(self, global: Global) -> Result<(), Failure> {
        let session = Session::of_pool(global)?;
        match self {
            Node::List => {
                let call = async |channel| pool(channel).node_list(pb::NodeListRequest {}).await;
                session.printer.print(&session.client.read(call).await?)
            }
            Node::Drain(OneNode { node }) => session.drain(&node, true).await,
            Node::Undrain(OneNode { node }) => session.drain(&node, false).await,
            Node::Remove(remove) => session.remove_node(&remove).await,
        }
    }
}

impl Session {
    async fn create(&self, create: Create) -> Result<(), Failure> {
        let Create { named: Named { name }, replicas, bytes_max, requests_per_second_max } = create;
        let request = pb::KeyspaceCreateRequest { name, replicas, bytes_max, requests_per_second_max };
        let call = async |channel| pool(channel).keyspace_create(request).await;
        self.keyspace_changed("created", self.client.write(call).await?.keyspace)
    }

    async fn describe(&self, name: String) -> Result<(), Failure> {
        let request = pb::KeyspaceGetRequest { name };
        let call = async |channel| pool(channel).keyspace_get(request.clone()).await;
        self.printer.print(&Described(self.client.read(call).await?))
    }

    async fn set_frozen(&self, happened: &'static str, named: Named, frozen: bool) -> Result<(), Failure> {
        let name = named.name;
        let change = pb::KeyspaceUpdateRequest { name, frozen: Some(frozen), ..Default::default() };
        self.update(happened, change).await
    }

    async fn update(&self, happened: &'static str, change: pb::KeyspaceUpdateRequest) -> Result<(), Failure> {
        let call = async |channel| pool(channel).keyspace_update(change).await;
        self.keyspace_changed(happened, self.client.write(call).await?.keyspace)
    }

    fn keyspace_changed(
        &self,
        happened: &'static str,
        keyspace: Option<pb::Keyspace>,
    ) -> Result<(), Failure> {
        self.printer.print(&Changed { happened, keyspace: keyspace.unwrap_or_default() })
    }
}
