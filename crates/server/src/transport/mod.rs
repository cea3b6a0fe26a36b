//! Node to node: length-prefixed frames over TCP. The bytes are in `docs/formats/peer.md`.
//!
//! ```text
//!            send(node, bytes)                                receive(node, Inbound::Messages)
//! shard ──▶ queue ──▶ outgoing task ══ urgent connection ══▶ incoming task ──▶ shard of the other node
//!                         ▲  every ping ──────────────────▶ │
//!                         └────────────── its pong ◀────────┘
//! snapshot task ═══════ bulk connection, one per snapshot ═══════▶ snapshot task
//! ```
//! A node dials every other node; messages flow from dialer to acceptor only, so a pair of nodes has one urgent
//! connection in each direction. Snapshots travel on connections of their own and never delay a heartbeat.
//!
//! A node that may have lost its disk asks the others what they know about it before it talks to them ([`ask`]).
//!
//! Invariants:
//! - Nothing is sent twice. What is queued when a connection ends is dropped, and [`Inbound::Down`] says so.
//! - Between [`Inbound::Up`] and [`Inbound::Down`] messages arrive in the order in which they were sent, or not at all.
//! - Nothing arrives from a node that `admit` refuses, nor from another cluster.
//! - Every queue is bounded in bytes. A full queue to a node drops what is new (Raft asks again); a receiver that does
//!   not keep up stops reading, and so fills the sender's queue.
//!
//! Left out: TLS, and changes of the set of peers.

mod frame;
mod handshake;
mod incoming;
mod inquiry;
mod outgoing;
mod snapshot;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use hadron_consensus::NodeId;
use tokio::net::TcpListener;
use tokio::sync::OwnedSemaphorePermit;

pub use frame::{BODY_BYTES_MAX, FrameError, MessageBatch, MessageTooLong, Messages};
pub use handshake::Identity;
pub use inquiry::{Answer, AskError, answer, ask};
pub use snapshot::{IncomingSnapshot, OutgoingSnapshot, SnapshotError};

use crate::config::Url;
use crate::metrics::Metrics;
use incoming::Incoming;
use outgoing::Outgoing;

/// Decides whether a node with this identity may be talked to, and may remember that it was; the error says why not, and
/// the way out. Called before anything else is exchanged, where it may block.
pub type Admit = Arc<dyn Fn(&Identity) -> Result<(), String> + Send + Sync>;
/// The identity of a node's data directory, if it is known: what an inquiry is answered with. It must not block.
pub type Known = Arc<dyn Fn(NodeId) -> Option<u64> + Send + Sync>;
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
    /// Messages of the node arrived together.
    Messages {
        /// In the order in which they were sent.
        messages: Messages,
        /// Drop it when the messages have been dealt with: it makes room for the next.
        permit: OwnedSemaphorePermit,
    },
    /// The node sends a snapshot. Read it in a task of its own.
    Snapshot(IncomingSnapshot),
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
    /// Where things that happen go.
    pub receive: Receive,
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
    receive: Receive,
    metrics: Arc<Metrics>,
    options: Options,
}

impl Shared {
    /// Asks [`Setup::admit`] on a thread that may block.
    async fn admit(&self, other: &Identity) -> Result<(), String> {
        let (admit, other) = (self.admit.clone(), other.clone());
        let asked = tokio::task::spawn_blocking(move || admit(&other)).await;
        asked.unwrap_or_else(|_| Err("the node stops".into()))
    }
}

/// Sends to other nodes. Cheap to clone; usable from any thread.
#[derive(Clone)]
pub struct Transport {
    shared: Arc<Shared>,
    outgoing: Arc<BTreeMap<NodeId, Arc<Outgoing>>>,
}

impl Transport {
    /// Starts accepting on `listeners` and dialing the peers, in tasks of the runtime from within which it is called.
    /// They live as long as the runtime.
    pub fn start(listeners: Vec<TcpListener>, setup: Setup) -> Transport {
        let Setup { identity, peers, admit, known, receive, metrics, options } = setup;
        let shared = Arc::new(Shared { identity, admit, known, receive, metrics, options });
        let incoming = Arc::new(Incoming::new(shared.clone()));
        for listener in listeners {
            tokio::spawn(incoming.clone().accept(listener));
        }
        let outgoing: BTreeMap<NodeId, Arc<Outgoing>> = peers
            .into_iter()
            .map(|peer| (peer.node, Arc::new(Outgoing::new(shared.clone(), peer))))
            .collect();
        for peer in outgoing.values() {
            tokio::spawn(peer.clone().run());
        }
        Transport { shared, outgoing: Arc::new(outgoing) }
    }

    /// Queues `frames`, as [`MessageBatch::take`] made them, for `node`. Dropped, and counted, when the node is not
    /// connected or its queue is full. Never blocks.
    pub fn send(&self, node: NodeId, frames: Bytes) {
        if let Some(peer) = self.outgoing.get(&node) {
            peer.send(frames);
        }
    }

    /// How many calls of [`Transport::send`] were dropped because the queue for `node` was full.
    pub fn dropped(&self, node: NodeId) -> u64 {
        self.outgoing.get(&node).map_or(0, |peer| peer.dropped())
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
        let peer = self.outgoing.get(&node).ok_or(SnapshotError::UnknownNode(node))?;
        OutgoingSnapshot::open(&self.shared, peer, header).await
    }

    /// Returns when everything queued for nodes that are connected has been handed to the kernel.
    pub async fn drained(&self) {
        for peer in self.outgoing.values() {
            peer.drained().await;
        }
    }
}
