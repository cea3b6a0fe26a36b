//! What the other members know about this node, asked before it starts. Runs before there is a transport.
//!
//! While a node asks it also answers, because nodes that start together ask each other.

use std::net::TcpListener;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use futures::future::join_all;
use hadron_consensus::NodeId;
use hadron_node::{Bootstrap, Member};

use super::error::RunError;
use super::pool_file;
use super::start::{peer_urls, peers_runtime};
use crate::transport::{self, Answer, AskError, Known};

/// How long a member may take to answer. A member that does not is tolerated: it refuses this node later if it must.
const PATIENCE: Duration = Duration::from_secs(2);

/// A member, and what it said.
pub(super) struct Reply {
    /// Its name.
    pub(super) name: String,
    /// Where it was asked.
    pub(super) urls: String,
    /// What it said.
    pub(super) answer: Result<Answer, AskError>,
}

/// Asks all members of a pool, but the node itself, about a node: who asks, and what it knows itself already.
pub(super) type Ask<'a> = &'a dyn Fn(&transport::Identity, &Bootstrap) -> Result<Vec<Reply>, RunError>;

/// Asks all other members of `pool` about the node `own`, at once, and answers on `listeners` meanwhile.
///
/// # Errors
/// Nobody could be asked, for want of a thread.
pub(super) fn ask(
    listeners: &[TcpListener],
    own: &transport::Identity,
    pool: &Bootstrap,
) -> Result<Vec<Reply>, RunError> {
    // A thread of its own, since the caller may be inside another runtime.
    let asked = thread::scope(|scope| scope.spawn(|| ask_here(listeners, own, pool)).join());
    asked.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

fn ask_here(
    listeners: &[TcpListener],
    own: &transport::Identity,
    pool: &Bootstrap,
) -> Result<Vec<Reply>, RunError> {
    let runtime = peers_runtime()?;
    let remembered = pool.clone();
    let known: Known = Arc::new(move |node| pool_file::known(&remembered, node));
    let _inside = runtime.enter();
    for listener in listeners {
        // The listener itself goes to the transport afterwards.
        let listener = listener.try_clone().map_err(RunError::Threads)?;
        listener.set_nonblocking(true).map_err(RunError::Threads)?;
        let listener = tokio::net::TcpListener::from_std(listener).map_err(RunError::Threads)?;
        tokio::spawn(transport::answer(listener, own.clone(), known.clone()));
    }
    let others = pool.members.iter().filter(|member| member.node() != own.node);
    runtime.block_on(join_all(others.map(|member| ask_one(member, own.node)))).into_iter().collect()
}

async fn ask_one(member: &Member, about: NodeId) -> Result<Reply, RunError> {
    let answer = transport::ask(&peer_urls(member)?, about, PATIENCE).await;
    Ok(Reply { name: member.name.clone(), urls: member.peer_urls.join(","), answer })
}
