//! `balance`, `top` and what of `node` changes something: how load is spread over the pool, why, and by whom. Hadron's own.
//!
//! Like `keyspace` they ask the keyspace `default`, whatever `--keyspace` says.

use clap::Subcommand;
use hadron_proto::hadron as pb;

use super::failure::Failure;
use super::keyspace::pool;
use super::print::balance::{Done, Top};
use super::{Global, Session};

/// Subcommands of `balance`.
#[derive(Debug, Subcommand)]
pub(crate) enum Balance {
    /// Show W and B of each node, and what is behind them
    Status,
    /// List the moves that were decided, oldest first
    History,
    /// Leave load where it is; what is broken is mended all the same
    Pause,
    /// Balance load again
    Resume,
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
            Balance::Pause => session.pause(true).await,
            Balance::Resume => session.pause(false).await,
        }
    }
}

/// Runs `top`.
pub(super) async fn top(global: Global) -> Result<(), Failure> {
    let session = Session::of_pool(global)?;
    let call = async |channel| pool(channel).top(pb::TopRequest {}).await;
    session.printer.print(&Top(session.client.read(call).await?))
}

impl Session {
    async fn pause(&self, paused: bool) -> Result<(), Failure> {
        let call = async |channel| pool(channel).balance_pause(pb::BalancePauseRequest { paused }).await;
        self.client.write(call).await?;
        self.printer.print(&Done(if paused { "Balancing paused" } else { "Balancing resumed" }.to_owned()))
    }

    /// Wants a node, named by its id or its name, emptied or not.
    pub(super) async fn drain(&self, node: &str, drain: bool) -> Result<(), Failure> {
        let call = async |channel| pool(channel).node_list(pb::NodeListRequest {}).await;
        let nodes = self.client.read(call).await?.nodes;
        let id = u64::from_str_radix(node, 16).ok();
        let named = nodes.iter().find(|known| known.name == node || Some(known.id) == id);
        let Some(pb::Node { id, .. }) = named.cloned() else {
            let text = format!("there is no node {node}: `node list` shows those there are");
            return Err(Failure::arguments(text));
        };
        let call = async |channel| pool(channel).node_drain(pb::NodeDrainRequest { node: id, drain }).await;
        self.client.write(call).await?;
        let what = if drain { "is being drained" } else { "takes keyspaces again" };
        self.printer.print(&Done(format!("Node {id:x} {what}")))
    }
}
