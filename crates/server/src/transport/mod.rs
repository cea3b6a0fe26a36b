//! Node to node: length-prefixed frames over TCP. The bytes are in `docs/formats/peer.md`.
//!
//! ```text
//!            send(node, bytes)                                receive(node, Inbound::Messages)
//! shard ──▶ queue ──▶ outgoing task ══ urgent connection ══▶ incoming task ──▶ shard of the other node
//!                         ▲  every ping ──────────────────▶ │
//!                         └────────────── its pong ◀────────┘
//! snapshot task ═══════ bulk connection, one per snapshot ═══════▶ snapshot task
//! client port ═════ connections for calls, as clients need them ═════▶ client port
//! ```
//! A node dials every other node; messages flow from dialer to acceptor only, so a pair of nodes has one urgent
//! connection in each direction. Snapshots travel on connections of their own and never delay a heartbeat.
//!
//! A node that may have lost its disk asks the others what they know about it before it talks to them ([`ask`]).
//!
//! Invariants:
//! - Nothing is sent twice. What is queued when a connection ends is dropped, and [`Inbound::Down`] says so.
//! - Between [`Inbound::Up`] and [`Inbound::Down`] messages arrive in the order in which they were sent, or not at all;
//!   only those sent [`Order::Ahead`] arrive before others that had been sent before them.
//! - Nothing arrives from a node that `admit` refuses, nor from another cluster.
//! - Every queue is bounded in bytes. A full queue to a node drops what is new (Raft asks again), but for what goes ahead, which is
//!   small, and ends with a connection on which nothing comes back; a receiver that does not keep up stops reading, and so
//!   fills the sender's queue.
//!
//! Connections are encrypted or not (`link`); nothing beside them knows which.

#[cfg(test)]
mod formats;
mod frame;
mod handshake;
mod incoming;
mod inquiry;
mod link;
mod names;
mod outgoing;
mod snapshot;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use hadron_consensus::NodeId;
use parking_lot::RwLock;
use tokio::net::TcpListener;
use tokio::runtime::Handle;
use tokio::sync::OwnedSemaphorePermit;

pub use frame::{BODY_BYTES_MAX, FrameError, MessageBatch, MessageTooLong, Messages};
use handshake::Class;
pub use handshake::{Cause, Identity, Refusal};
pub use inquiry::{Answer, AskError, MembersAnswer, answer, ask, ask_members};
pub use link::PeerTls;
pub(crate) use names::LOOK_UPS_MAX;
pub use snapshot::{IncomingSnapshot, OutgoingSnapshot, Rejection, SnapshotError};

use crate::config::Url;
use crate::metrics::Metrics;
use crate::tls::Stream;
use incoming::Incoming;
pub use incoming::Presence;
use outgoing::Outgoing;

/// Decides whether a node with this identity may be talked to, and may remember that it was; the error says why not, and
/// the way out. It gets the newest revision of the roster that the node says it knows, 0 if it says nothing. Called before
/// anything else is exchanged, where it may block.
pub type Admit = Arc<dyn Fn(&Identity, i64) -> Result<(), Refusal> + Send + Sync>;
/// The identity of a node's data directory, if it is known: what an inquiry is answered with. It must not block.
pub type Known = Arc<dyn Fn(NodeId) -> Option<u64> + Send + Sync>;
/// The newest revision of the roster that this node knows. It must not block.
pub type RosterRevision = Arc<dyn Fn() -> i64 + Send + Sync>;
/// Who the members are, as far as this node knows. It must not block.
pub type Members = Arc<dyn Fn() -> MembersAnswer + Send + Sync>;
/// Where everything goes that happens on connections. Called on the transport's runtime, so it must not block.
pub type Receive = Arc<dyn Fn(NodeId, Inbound) + Send + Sync>;

/// Something that happened between this node and another one.
#[derive(Debug)]
pub enum Inbound {
    /// Messages can be sent to the node from now on.
    Up {
        /// The node's process.
        incarnation: u64,
        /// The node's data directory.
        data_dir_id: u64,
    },
    /// Messages can no longer be sent; those that were on their way may be lost.
    Down,
    /// The node says that this one was removed from the cluster, and so does not talk to it. May come more than once.
    Removed {
        /// For people.
        reason: String,
    },
    /// The node's cluster went on without this one by force, and so it does not talk to it. May come more than once.
    Dropped {
        /// For people.
        reason: String,
    },
    /// The node has met this one with another start that is not before the present one, and so does not talk to it. May come more than once.
    Outdated {
        /// For people.
        reason: String,
    },
    /// Messages of the node arrived together.
    Messages {
        /// In the order in which they were sent.
        messages: Messages,
        /// Drop it when the messages have been dealt with: it makes room for the next.
        permit: OwnedSemaphorePermit,
    },
    /// The node sends a snapshot. Read it in a task of its own.
    Snapshot(IncomingSnapshot),
    /// The node passes calls of its clients on: whoever answers them has the connection from here on, and ends it when the node is no member any
    /// more.
    Calls(Stream, Presence),
}

/// When something that is sent to a node leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Order {
    /// Before all that waits, but for others of its kind. However much is on its way over a slow link, a heartbeat is not late for it.
    Ahead,
    /// After all that was sent before.
    InTurn,
}

/// Another node, and where it listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    /// Its id.
    pub node: NodeId,
    /// Its peer URLs, tried in turn. Names are resolved anew for each connection.
    pub urls: Vec<Url>,
}

/// Bounds and rhythms.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// How long a connection may take to be made, and again how long its handshake may take.
    pub connect_timeout: Duration,
    /// Time between two pings on an urgent connection.
    pub ping_interval: Duration,
    /// A connection on which nothing came back for so long is broken. Without it the kernel would go on retrying into
    /// a healed partition ever more rarely, for minutes.
    pub silence_timeout: Duration,
    /// Wait before the first retry of a connection. It doubles with each failure.
    pub retry_min: Duration,
    /// Upper bound of that wait.
    pub retry_max: Duration,
    /// Wait after a refusal, which only people can resolve.
    pub refused_retry: Duration,
    /// Bytes that may wait to be sent to one node.
    pub queue_bytes_max: usize,
    /// Bytes received from one node that may wait to be dealt with.
    pub inbound_bytes_max: usize,
    /// How long one step of a snapshot may take: a chunk to be sent or to arrive.
    pub bulk_timeout: Duration,
    /// How long the receiver of a snapshot may take to install it.
    pub install_timeout: Duration,
    /// Where the jitter of retries comes from.
    pub seed: u64,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            connect_timeout: Duration::from_secs(2),
            ping_interval: Duration::from_secs(1),
            silence_timeout: Duration::from_secs(5),
            retry_min: Duration::from_millis(50),
            retry_max: Duration::from_secs(1),
            refused_retry: Duration::from_secs(5),
            queue_bytes_max: 64 << 20,
            inbound_bytes_max: 64 << 20,
            bulk_timeout: Duration::from_secs(30),
            install_timeout: Duration::from_secs(300),
            seed: 0,
        }
    }
}

/// What a transport is made of.
pub struct Setup {
    /// Who this node is.
    pub identity: Identity,
    /// The other nodes.
    pub peers: Vec<Peer>,
    /// Who may be talked to, beyond belonging to the cluster.
    pub admit: Admit,
    /// What is known about data directories.
    pub known: Known,
    /// How much this node knows of who belongs to the cluster.
    pub roster_revision: RosterRevision,
    /// What those who want to join are told.
    pub members: Members,
    /// Where things that happen go.
    pub receive: Receive,
    /// How connections are encrypted.
    pub tls: PeerTls,
    /// Where bytes are counted.
    pub metrics: Arc<Metrics>,
    /// Bounds and rhythms.
    pub options: Options,
}

/// What all tasks of a transport share.
struct Shared {
    identity: Identity,
    admit: Admit,
    known: Known,
    roster_revision: RosterRevision,
    members: Members,
    receive: Receive,
    tls: PeerTls,
    metrics: Arc<Metrics>,
    options: Options,
}

impl Shared {
    /// Asks [`Setup::admit`] on a thread that may block.
    async fn admit(&self, other: &Identity, revision: i64) -> Result<(), Refusal> {
        let (admit, other) = (self.admit.clone(), other.clone());
        let asked = tokio::task::spawn_blocking(move || admit(&other, revision)).await;
        asked.unwrap_or_else(|_| Err("the node stops".to_owned().into()))
    }
}

/// Sends to other nodes. Cheap to clone; usable from any thread.
#[derive(Clone)]
pub struct Transport {
    shared: Arc<Shared>,
    incoming: Arc<Incoming>,
    outgoing: Arc<RwLock<BTreeMap<NodeId, Arc<Outgoing>>>>,
    /// Where the tasks run.
    runtime: Handle,
}

impl Transport {
    /// Starts accepting on `listeners` and dialing the peers, in tasks of the runtime from within which it is called.
    /// They live as long as the runtime.
    pub fn start(listeners: Vec<TcpListener>, setup: Setup) -> Transport {
        let Setup { identity, peers, admit, known, roster_revision, members, receive, tls, metrics, options } =
            setup;
        let shared = Arc::new(Shared {
            identity,
            admit,
            known,
            roster_revision,
            members,
            receive,
            tls,
            metrics,
            options,
        });
        let incoming = Arc::new(Incoming::new(shared.clone()));
        for listener in listeners {
            tokio::spawn(incoming.clone().accept(listener));
        }
        let transport = Transport { shared, incoming, outgoing: Arc::default(), runtime: Handle::current() };
        transport.set_peers(peers);
        transport
    }

    /// From now on these are the other nodes. Connections with others end; those with nodes whose URLs changed begin anew.
    pub fn set_peers(&self, peers: Vec<Peer>) {
        self.incoming.keep_only(peers.iter().map(|peer| peer.node).collect());
        let mut outgoing = self.outgoing.write();
        outgoing.retain(|_, present| {
            let stays = peers.contains(present.peer());
            if !stays {
                present.stop();
            }
            stays
        });
        for peer in peers {
            outgoing.entry(peer.node).or_insert_with(|| {
                let new = Arc::new(Outgoing::new(self.shared.clone(), peer));
                self.runtime.spawn(new.clone().run());
                new
            });
        }
    }

    fn to(&self, node: NodeId) -> Option<Arc<Outgoing>> {
        self.outgoing.read().get(&node).cloned()
    }

    /// Queues `frames`, as [`MessageBatch::take`] made them, for `node`. Dropped when the node is not connected; dropped, and
    /// counted, when its queue is full and they do not go ahead. Never blocks.
    pub fn send(&self, node: NodeId, frames: Bytes, order: Order) {
        if let Some(peer) = self.to(node) {
            peer.send(frames, order);
        }
    }

    /// How many calls of [`Transport::send`] were dropped because the queue for `node` was full.
    pub fn dropped(&self, node: NodeId) -> u64 {
        self.to(node).map_or(0, |peer| peer.dropped())
    }

    /// Opens a connection to `node` for a snapshot that `header` describes.
    ///
    /// # Errors
    /// The node cannot be reached, or refuses this one.
    pub async fn open_snapshot(
        &self,
        node: NodeId,
        header: Bytes,
    ) -> Result<OutgoingSnapshot, SnapshotError> {
        let peer = self.to(node).ok_or(SnapshotError::UnknownNode(node))?;
        OutgoingSnapshot::open(&self.shared, &peer, header).await
    }

    /// Opens a connection to `node` over which calls of clients are passed on: what is said there is HTTP/2.
    ///
    /// # Errors
    /// The node cannot be reached, or refuses this one.
    pub async fn open_calls(&self, node: NodeId) -> io::Result<Stream> {
        let unknown = || io::Error::new(io::ErrorKind::NotFound, "no such node is known here");
        let peer = self.to(node).ok_or_else(unknown)?;
        let (stream, _) = peer.dial(Class::Calls).await.map_err(io::Error::other)?;
        Ok(stream)
    }

    /// Returns when everything queued for nodes that are connected has been handed to the kernel.
    pub async fn drained(&self) {
        let peers: Vec<Arc<Outgoing>> = self.outgoing.read().values().cloned().collect();
        for peer in peers {
            peer.drained().await;
        }
    }
}
