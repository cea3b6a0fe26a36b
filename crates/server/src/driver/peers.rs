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
use crate::config::InitialMember;
use crate::transport::{self, Answer, AskError, Known, MembersAnswer, PeerTls};

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

/// The other nodes, for one that has not started yet.
pub(super) trait Others {
    /// Asks all members of `pool` but the node itself about the node `own`, at once; says what it knows itself meanwhile.
    ///
    /// # Errors
    /// Nobody could be asked, for want of a thread.
    fn about(&self, own: &transport::Identity, pool: &Bootstrap) -> Result<Vec<Reply>, RunError>;

    /// Asks those who are `listed` who the members of their pool are; the answers of those who answer.
    ///
    /// # Errors
    /// Nobody could be asked, for want of a thread.
    fn members(&self, listed: &[InitialMember]) -> Result<Vec<MembersAnswer>, RunError>;
}

/// Asked over the network.
pub(super) struct Network<'a> {
    /// This node listens on these already.
    pub(super) listeners: &'a [TcpListener],
    /// How connections are encrypted.
    pub(super) tls: &'a PeerTls,
}

impl Others for Network<'_> {
    fn about(&self, own: &transport::Identity, pool: &Bootstrap) -> Result<Vec<Reply>, RunError> {
        on_a_thread(|| ask_here(self, own, pool))
    }

    fn members(&self, listed: &[InitialMember]) -> Result<Vec<MembersAnswer>, RunError> {
        on_a_thread(|| {
            let urls = listed.iter().map(|member| std::slice::from_ref(&member.peer_url));
            let asked = join_all(urls.map(|urls| transport::ask_members(self.tls, urls, PATIENCE)));
            Ok(peers_runtime()?.block_on(asked).into_iter().filter_map(Result::ok).collect())
        })
    }
}

/// A thread of its own, since the caller may be inside another runtime.
fn on_a_thread<T: Send>(ask: impl FnOnce() -> Result<T, RunError> + Send) -> Result<T, RunError> {
    let asked = thread::scope(|scope| scope.spawn(ask).join());
    asked.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

fn ask_here(
    network: &Network<'_>,
    own: &transport::Identity,
    pool: &Bootstrap,
) -> Result<Vec<Reply>, RunError> {
    let runtime = peers_runtime()?;
    let remembered = pool.clone();
    let known: Known = Arc::new(move |node| pool_file::known(&remembered, node));
    let _inside = runtime.enter();
    for listener in network.listeners {
        // The listener itself goes to the transport afterwards.
        let listener = listener.try_clone().map_err(RunError::Threads)?;
        listener.set_nonblocking(true).map_err(RunError::Threads)?;
        let listener = tokio::net::TcpListener::from_std(listener).map_err(RunError::Threads)?;
        tokio::spawn(transport::answer(network.tls.clone(), listener, own.clone(), known.clone()));
    }
    let others = pool.members.iter().filter(|member| member.node() != own.node);
    runtime
        .block_on(join_all(others.map(|member| ask_one(network.tls, member, own.node))))
        .into_iter()
        .collect()
}

async fn ask_one(tls: &PeerTls, member: &Member, about: NodeId) -> Result<Reply, RunError> {
    let answer = transport::ask(tls, &peer_urls(member)?, about, PATIENCE).await;
    Ok(Reply { name: member.name.clone(), urls: member.peer_urls.join(","), answer })
}
