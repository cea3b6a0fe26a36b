//! What the services need of the node behind them: the one seam between gRPC and the threads that drive the node.
//!
//! The driver's `Handle` implements [`Backend`]; tests implement it over keyspaces in memory. A service holds a clone per
//! connection and calls it from any thread.
//!
//! Invariants that an implementation keeps:
//! - Every future ends by itself, at the latest after the request time-out (etcd's: 5 s plus twice the election
//!   time-out; [`Backend::defragment`] when it is done). The services add no timers of their own.
//! - Dropping a future gives the request up (the client went away); a write that is on its way may still happen.
//! - A write is answered only after *this* node's replica has applied it, so that a serializable read here sees it.
//! - [`Backend::status`], [`Backend::keyspace`] and [`Backend::identity`] are called for every request: they read a few
//!   atomics and take no lock that the shard loop holds.

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::io;
use std::sync::Arc;

use hadron_balance::{Assessment, Hindrance, Policy, View};
use hadron_consensus::{GroupId, Index, NodeId, Term};
use hadron_keyspace::{Command, Keyspace, Response};
use hadron_node::{Catalog, Pool, Report};
use hadron_proto::{etcdserverpb, hadron};

use super::hitters::Hitters;
use crate::metrics::Metrics;
use crate::tls::Stream;

/// The node that answers requests.
pub trait Backend: Clone + Send + Sync + 'static {
    /// Proposes a command to the leader of `group`, wherever that is, and returns the result of applying it here.
    /// The error says whether the write may have happened all the same: see [`Unavailable::may_have_happened`].
    fn write(
        &self,
        group: GroupId,
        command: Command,
    ) -> impl Future<Output = Result<Written, Unavailable>> + Send;

    /// Waits until this node's replica has applied all that was committed when the call began. A read of
    /// [`Backend::keyspace`] after it is linearizable.
    fn read_barrier(&self, group: GroupId) -> impl Future<Output = Result<(), Unavailable>> + Send;

    /// This node's replica of the group's state; `None` when it has none that may be read (no replica, quarantined,
    /// or being rebuilt). Fetch it anew for each request: a snapshot may replace it.
    fn keyspace(&self, group: GroupId) -> Option<Arc<Keyspace>>;

    /// Where the group stands, as this node knows it; `None` when it has no replica of the group.
    fn status(&self, group: GroupId) -> Option<GroupStatus>;

    /// The group's logical clock now, in milliseconds: the leader's extrapolated clock on the leader, otherwise the
    /// best estimate (never before the stamp of the last applied entry). Remaining times of leases are counted from it.
    fn group_clock_ms(&self, group: GroupId) -> u64;

    /// The nodes of the pool in etcd's form, ordered by id, from the local copy of the root group.
    fn members(&self) -> Vec<etcdserverpb::Member>;

    /// The elections that this node took part in, oldest first.
    fn elections(&self) -> Vec<hadron::Election>;

    /// C(x) in each group that this node leads, by group.
    fn log_shares(&self) -> Vec<hadron::LogShares>;

    /// Hands the leadership of `group`, which this node must hold, to the replica on `to`; returns when that leads.
    fn transfer_leader(
        &self,
        group: GroupId,
        to: NodeId,
    ) -> impl Future<Output = Result<(), Unavailable>> + Send;

    /// What each node's replica of `group` lacks of its leader's log, in entries, as the leader knows it.
    fn lags(&self, group: GroupId) -> impl Future<Output = Result<Vec<(NodeId, u64)>, Unavailable>> + Send;

    /// Gives back what deleted values take on this node's disk, or says why not. Takes as long as it takes.
    fn defragment(&self) -> impl Future<Output = Result<(), &'static str>> + Send;

    /// What the root group says about the pool, from the local copy.
    fn pool(&self) -> Arc<Pool>;

    /// Looks at the catalog of keyspaces, as far as it is applied here. `look` must be short: the node's loop may wait for it.
    fn with_catalog<T>(&self, look: impl FnOnce(&Catalog) -> T) -> T;

    /// The newest revision of the roster that every group here has been changed to, as far as it is applied here.
    fn settled(&self) -> i64;

    /// The other nodes that are alive to this one.
    fn alive(&self) -> BTreeSet<NodeId>;

    /// Connects to another member, to pass calls of clients on: it speaks HTTP/2 there.
    fn connect(&self, node: NodeId) -> impl Future<Output = io::Result<Stream>> + Send;

    /// The newest report of each node that sends them here.
    fn reports(&self) -> BTreeMap<NodeId, Report>;

    /// How the pool stands, from the reports of all nodes: complete where this node votes in the root group.
    fn standing(&self) -> Standing;

    /// What the planner would plan with now, from the same reports. Takes a while with thousands of groups.
    fn outlook(&self) -> (View, Policy);

    /// A read of `group` was answered here with so many bytes.
    fn count_read(&self, group: GroupId, bytes: usize);

    /// Who asks this node for what.
    fn hitters(&self) -> &Hitters;

    /// Watch events of `group` were sent from here.
    fn count_events(&self, group: GroupId, events: usize);

    /// Brings up to date what a page of metrics tells of all groups: there may be thousands, so nobody does it before he is asked.
    fn show(&self, metrics: &Metrics);

    /// Who this node is. The same for the whole life of the process.
    fn identity(&self) -> &Identity;
}

/// How the pool stands.
#[derive(Debug, Default)]
pub struct Standing {
    /// What there is.
    pub view: View,
    /// What that amounts to.
    pub assessment: Assessment,
    /// What keeps replicas on nodes that are to be emptied.
    pub waiting: BTreeMap<NodeId, BTreeMap<Hindrance, usize>>,
    /// What the nodes measured.
    pub reports: BTreeMap<NodeId, Report>,
}

/// The outcome of a write that was applied.
#[derive(Debug)]
pub struct Written {
    /// The state machine's answer, the same on every replica. An error here is a client error: nothing was changed.
    pub response: Result<Response, hadron_keyspace::Error>,
    /// The Raft term of the entry that carried the command.
    pub term: Term,
}

/// Why a request was not answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unavailable {
    /// No leader is known. It certainly did not happen.
    #[error("no leader")]
    NoLeader,
    /// The leader changed before the request was taken. It certainly did not happen.
    #[error("leader changed")]
    LeaderChanged,
    /// Too much is waiting already; the client should try again later. It certainly did not happen.
    #[error("too many requests")]
    Busy,
    /// The request is larger than a command may be. It certainly did not happen.
    #[error("request is too large")]
    TooLarge,
    /// The node is shutting down. It certainly did not happen.
    #[error("server stopped")]
    Stopped,
    /// This node has no replica of the group. It certainly did not happen.
    #[error("no such group here")]
    NoSuchGroup,
    /// This node's replica differs from the others and serves nothing until it is rebuilt. It certainly did not happen.
    #[error("replica is quarantined")]
    Quarantined,
    /// Asked of a node that does not lead what only the leader can do. It certainly did not happen.
    #[error("not leader")]
    NotLeader,
    /// The target of a leadership transfer cannot lead. It certainly did not happen.
    #[error("bad leader transferee")]
    BadTransferTarget,
    /// The leader runs an older version, which does not know the command. It certainly did not happen.
    #[error(
        "the leader runs an older version that does not know this request; it was not carried out: upgrade the remaining members first"
    )]
    LeaderTooOld,
    /// No answer in time. A write may have happened.
    #[error("timed out")]
    Timeout,
    /// No answer in time, and the leader changed meanwhile. A write may have happened.
    #[error("timed out, possibly due to previous leader failure")]
    TimeoutLeaderFailed,
    /// No answer in time, and the connection to the leader broke meanwhile. A write may have happened.
    #[error("timed out, possibly due to connection lost")]
    TimeoutConnectionLost,
}

impl Unavailable {
    /// True when a write that failed so may have been carried out, or may still be.
    pub fn may_have_happened(self) -> bool {
        matches!(
            self,
            Unavailable::Timeout | Unavailable::TimeoutLeaderFailed | Unavailable::TimeoutConnectionLost
        )
    }
}

/// Where a group stands, as one node knows it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GroupStatus {
    /// The node that leads; `None` while unknown.
    pub leader: Option<NodeId>,
    /// The Raft term of this node's replica.
    pub term: Term,
    /// The newest index that this node knows to be committed.
    pub commit: Index,
    /// The newest index that this node's replica has applied.
    pub applied: Index,
    /// This node's replica has no vote yet.
    pub is_learner: bool,
    /// This node's replica votes in the group, and is to go on doing so.
    pub is_voter: bool,
    /// Nothing happens in the group, so that this node's replica keeps no time: without a leader it looks for none until it is asked
    /// for something.
    pub is_asleep: bool,
}

/// Who a node is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The pool's id; what etcd calls the cluster id.
    pub cluster_id: u64,
    /// This node's id; what etcd calls the member id.
    pub member_id: NodeId,
    /// This node's human-readable name.
    pub name: String,
    /// The etcd version that this node is compatible with: `Status.version` and `etcdserver` on `/version`.
    pub etcd_version: String,
    /// The etcd version that all nodes of the pool are compatible with: `etcdcluster` on `/version`.
    pub cluster_version: String,
    /// Hadron's own version.
    pub hadron_version: String,
}

/// The etcd version whose interface this build offers.
pub const ETCD_VERSION: &str = "3.6.5";

impl Identity {
    /// An identity with the versions of this build.
    pub fn new(cluster_id: u64, member_id: NodeId, name: impl Into<String>) -> Identity {
        Identity {
            cluster_id,
            member_id,
            name: name.into(),
            etcd_version: ETCD_VERSION.to_owned(),
            cluster_version: "3.6.0".to_owned(),
            hadron_version: env!("CARGO_PKG_VERSION").to_owned(),
        }
    }
}
