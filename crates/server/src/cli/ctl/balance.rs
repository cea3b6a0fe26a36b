//! `balance`, `top` and what of `node` changes something: how load is spread over the pool, why, and by whom. Hadron's own.
//!
//! Like `keyspace` they ask the keyspace `default`, whatever `--keyspace` says.

use clap::{Args, Subcommand, ValueEnum};
use hadron_proto::hadron as pb;

use super::failure::Failure;
use super::keyspace::pool;
use super::print::balance::{Done, Draining, Top};
use super::print::hitters::Hitters;
use super::print::simulated::Simulated;
use super::{Global, Session};

/// Subcommands of `balance`.
#[derive(Debug, Subcommand)]
pub(crate) enum Balance {
    /// Show W and B of each node, and what is behind them
    Status,
    /// List the moves that were decided, oldest first
    History,
    /// Show what the planner would do now, and where that would lead; nothing is done
    Simulate(Simulate),
    /// Leave load where it is; what is broken is mended all the same
    Pause,
    /// Balance load again
    Resume,
}

/// Arguments of `balance simulate`.
#[derive(Debug, Args)]
pub(crate) struct Simulate {
    /// As if this node, by id or name, were being emptied; may be given several times
    #[arg(long, value_name = "NODE")]
    drain: Vec<String>,
    /// As if this node, by id or name, were gone for good; may be given several times
    #[arg(long, value_name = "NODE")]
    remove: Vec<String>,
    /// As if there were so many nodes more, like the first one, in the zones with the fewest nodes
    #[arg(long, value_name = "COUNT", default_value_t = 0, hide_default_value = true)]
    add: u32,
}

impl Balance {
    /// Runs the command.
    pub(super) async fn run(self, global: Global) -> Result<(), Failure> {
        let session = Session::of_pool(global)?;
        match self {
            Balance::Status => {
                let call = async |channel| pool(channel).balance_status(pb::BalanceStatusRequest {}).await;
                session.printer.print(&session.client.read(call).await?)
            }
            Balance::History => {
                let call = async |channel| pool(channel).balance_history(pb::BalanceHistoryRequest {}).await;
                session.printer.print(&session.client.read(call).await?)
            }
            Balance::Simulate(simulate) => session.simulate(simulate).await,
            Balance::Pause => session.pause(true).await,
            Balance::Resume => session.pause(false).await,
        }
    }
}

/// Arguments of `top`.
#[derive(Debug, Args)]
pub(crate) struct TopOptions {
    /// By keyspace; by prefix: keys up to their second slash, or the third of those that begin with one; or by client: its
    /// certificate's name, or its address
    #[arg(long, value_enum, default_value_t = By::Keyspace)]
    by: By,
}

/// Who causes load.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum By {
    Keyspace,
    Prefix,
    Client,
}

/// Runs `top`.
pub(super) async fn top(options: &TopOptions, global: Global) -> Result<(), Failure> {
    let session = Session::of_pool(global)?;
    let by = match options.by {
        By::Keyspace => pb::TopBy::Keyspace,
        By::Prefix => pb::TopBy::Prefix,
        By::Client => pb::TopBy::Client,
    };
    let call = async |channel| pool(channel).top(pb::TopRequest { by: by.into() }).await;
    if by != pb::TopBy::Keyspace {
        return session.printer.print(&Hitters(by, session.client.read(call).await?));
    }
    session.printer.print(&Top(session.client.read(call).await?))
}

impl Session {
    async fn pause(&self, paused: bool) -> Result<(), Failure> {
        let call = async |channel| pool(channel).balance_pause(pb::BalancePauseRequest { paused }).await;
        self.client.write(call).await?;
        self.printer.print(&Done(if paused { "Balancing paused" } else { "Balancing resumed" }.to_owned()))
    }

    async fn simulate(&self, simulate: Simulate) -> Result<(), Failure> {
        let nodes = self.nodes().await?;
        let ids = |names: &[String]| -> Result<Vec<u64>, Failure> {
            names.iter().map(|name| Ok(named(&nodes, name)?.id)).collect()
        };
        let (drain, remove) = (ids(&simulate.drain)?, ids(&simulate.remove)?);
        let request = pb::BalanceSimulateRequest { drain, remove, add: simulate.add };
        let call = async |channel| pool(channel).balance_simulate(request.clone()).await;
        self.printer.print(&Simulated(self.client.read(call).await?))
    }

    /// The nodes of the pool.
    pub(super) async fn nodes(&self) -> Result<Vec<pb::Node>, Failure> {
        let call = async |channel| pool(channel).node_list(pb::NodeListRequest {}).await;
        Ok(self.client.read(call).await?.nodes)
    }

    /// Wants a node, named by its id or its name, emptied or not.
    pub(super) async fn drain(&self, node: &str, drain: bool) -> Result<(), Failure> {
        let id = named(&self.nodes().await?, node)?.id;
        let waiting = self.set_draining(id, drain).await?;
        let what = if drain { "is being drained" } else { "takes keyspaces again" };
        self.printer.print(&Draining { done: format!("Node {id:x} {what}"), waiting })
    }

    /// Wants a node emptied or not. Returns what keeps its replicas there.
    pub(super) async fn set_draining(&self, node: u64, drain: bool) -> Result<Vec<pb::Waiting>, Failure> {
        let call = async |channel| pool(channel).node_drain(pb::NodeDrainRequest { node, drain }).await;
        Ok(self.client.write(call).await?.waiting)
    }
}

/// The node of that id or name.
pub(super) fn named(nodes: &[pb::Node], node: &str) -> Result<pb::Node, Failure> {
    let id = u64::from_str_radix(node, 16).ok();
    let found = nodes.iter().find(|known| known.name == node || Some(known.id) == id);
    found.cloned().ok_or_else(|| {
        Failure::arguments(format!("there is no node {node}: `node list` shows those there are"))
    })
}
