//! The two sides of a node: [`Event`]s go in, [`Effects`] come out. The driver (threads and sockets) and the simulator
//! (neither) both live on this page.

use std::sync::Arc;

use bytes::Bytes;
use hadron_consensus::{GroupId, LogPosition, NodeId, ReplicaId};
use hadron_keyspace::{Applied, Error, Flush, Keyspace, Loaded, OpenError, Options, Owner, Response, Sweep};
use hadron_storage::engine::Engine;
use hadron_storage::wal::Record;

use crate::peer::PeerMessage;
use crate::report::Report;

/// Something that happened to a node.
#[derive(Debug)]
pub enum Event {
    /// The time of [`crate::Node::deadline`] has come (or passed).
    Timer,
    /// A message of another node arrived.
    Peer {
        /// The sender, as its handshake proved.
        from: NodeId,
        /// What it says.
        message: PeerMessage,
    },
    /// A connection with `node` was made; `incarnation` tells the starts of its process apart, and grows with each.
    PeerUp {
        /// The other node.
        node: NodeId,
        /// Its process.
        incarnation: u64,
    },
    /// No connection with `node` is left: whatever was on its way is lost.
    PeerDown {
        /// The other node.
        node: NodeId,
    },
    /// A client's write. Answered by exactly one [`Reply`] with the same token, unless cancelled.
    Write {
        /// Unique among all requests of this process; chosen by the driver.
        token: u64,
        /// The group of the client's keyspace.
        group: GroupId,
        /// An encoded [`hadron_keyspace::Command`].
        command: Bytes,
    },
    /// A client's linearizable read wants to begin. Answered by [`Reply::ReadReady`] when this node's replica may serve it.
    Read {
        /// As in [`Event::Write`].
        token: u64,
        /// The group of the client's keyspace.
        group: GroupId,
    },
    /// Hand the leadership of `group` to the replica on `to`. Answered by [`Reply::Transferred`].
    TransferLeader {
        /// As in [`Event::Write`].
        token: u64,
        /// The group.
        group: GroupId,
        /// The node that shall lead.
        to: NodeId,
    },
    /// How far behind is each replica of `group`? Answered by [`Reply::Lags`], whoever leads it.
    Lags {
        /// As in [`Event::Write`].
        token: u64,
        /// The group.
        group: GroupId,
    },
    /// Whoever plans wants `group`, which `from` leads, to be led by the replica on `to`. Nobody is answered.
    HandOverTo {
        /// The group.
        group: GroupId,
        /// The node that leads.
        from: NodeId,
        /// The node that shall lead.
        to: NodeId,
    },
    /// What this node measured, for those who plan.
    Report(Report),
    /// The process is about to stop: hand every group that is led here to a follower that can take it at once.
    /// [`crate::Board`] shows when that is done; there is nothing to wait for where no follower is reachable.
    HandOver,
    /// Nobody waits for this request any more. A write that is on its way may still happen.
    Cancel {
        /// The request's token.
        token: u64,
        /// The request's group.
        group: GroupId,
    },
    /// Every log batch up to and including `sequence` is durable.
    LogDurable {
        /// See [`Effects::log_sequence`].
        sequence: u64,
    },
    /// The log keeps old segments only for these groups: they must move on. To be looked for at intervals longer than
    /// that between two fsyncs of the engine.
    LogPinned {
        /// The groups, as [`hadron_storage::wal::Wal::pinning`] names them.
        groups: Vec<GroupId>,
    },
    /// The engine has written a [`FlushJob`]; readers of the engine see it.
    Flushed {
        /// The job's group.
        group: GroupId,
        /// The job's flush, handed back.
        flush: Flush,
    },
    /// The sweep of `group` that was asked for has been written.
    Swept {
        /// The group.
        group: GroupId,
    },
    /// The engine has made durable all that was flushed when `ticket` was issued.
    EnginePersisted {
        /// See [`Effects::persist_engine`].
        ticket: u64,
    },
    /// The [`SnapshotJob`]'s turn has come: its export begins. To be sent before it does.
    SnapshotBegun {
        /// The group.
        group: GroupId,
        /// The receiving replica.
        to: ReplicaId,
    },
    /// A [`SnapshotJob`] ended.
    SnapshotSent {
        /// The group.
        group: GroupId,
        /// The receiving replica.
        to: ReplicaId,
        /// The position that the receiver installed; `None` when the transfer failed.
        position: Option<LogPosition>,
    },
    /// A snapshot was received whole, written to the engine and read back (`Importer::load`), but the switch to it (`Importer::finish`) has
    /// not been made. Answered by an entry of [`Effects::installs`] with the same ticket, in this step or a later one.
    SnapshotOffered {
        /// The group.
        group: GroupId,
        /// Chosen by the driver.
        ticket: u64,
        /// What the snapshot contains.
        applied: Applied,
        /// Where it is ([`hadron_keyspace::Importer::generation`]).
        generation: u32,
    },
    /// A job of [`Effects::opens`] ended.
    Opened {
        /// The group.
        group: GroupId,
        /// What came of it.
        outcome: OpenOutcome,
    },
    /// A job of [`Effects::destroys`] is done: the tombstone is durable.
    Destroyed {
        /// The group.
        group: GroupId,
    },
    /// To the shards beside the first: the members, or who is to be connected, may have changed; the board shows it.
    PoolChanged,
    /// To the shards beside the first: the catalog says something else about these groups; the board shows it.
    CatalogChanged {
        /// The groups.
        groups: Vec<GroupId>,
        /// The revision of the root group since which it says so.
        revision: i64,
    },
    /// To the shards beside the first: the catalog is another one altogether.
    CatalogReread {
        /// The revision of the root group that it is of.
        revision: i64,
    },
    /// The switch that [`Effects::installs`] allowed is made and durable: the engine holds the snapshot's state.
    SnapshotInstalled {
        /// The group.
        group: GroupId,
        /// What it contains.
        applied: Applied,
        /// The same, as [`hadron_keyspace::Importer::load`] read it before the switch.
        loaded: Loaded,
    },
}

impl Event {
    /// The one group that this is about; `None` if it is about several, or the node.
    pub fn group(&self) -> Option<GroupId> {
        match self {
            Event::Write { group, .. }
            | Event::Read { group, .. }
            | Event::TransferLeader { group, .. }
            | Event::Lags { group, .. }
            | Event::HandOverTo { group, .. }
            | Event::Cancel { group, .. }
            | Event::Flushed { group, .. }
            | Event::Swept { group }
            | Event::SnapshotBegun { group, .. }
            | Event::SnapshotSent { group, .. }
            | Event::SnapshotOffered { group, .. }
            | Event::Opened { group, .. }
            | Event::Destroyed { group }
            | Event::SnapshotInstalled { group, .. } => Some(*group),
            Event::Peer { message, .. } => message.group(),
            Event::Timer
            | Event::PeerUp { .. }
            | Event::PeerDown { .. }
            | Event::Report(_)
            | Event::HandOver
            | Event::LogDurable { .. }
            | Event::LogPinned { .. }
            | Event::EnginePersisted { .. }
            | Event::PoolChanged
            | Event::CatalogChanged { .. }
            | Event::CatalogReread { .. } => None,
        }
    }
}

/// What a step wants done. The driver may do these in any order and in parallel.
#[derive(Debug, Default)]
pub struct Effects {
    /// Records for the log, in order: append, sync, then [`Event::LogDurable`] with `log_sequence`.
    pub log: Vec<Record>,
    /// The number of the newest batch in `log`; it only grows. Valid while `log` is not empty.
    pub log_sequence: u64,
    /// Messages for other nodes. Each may be sent at once; lost ones are never sent again by the driver.
    pub sends: Vec<(NodeId, PeerMessage)>,
    /// Answers to clients.
    pub replies: Vec<(u64, Reply)>,
    /// Batches for the engine, each to be answered by [`Event::Flushed`].
    pub flushes: Vec<FlushJob>,
    /// Physical deletions for the engine, in batches that may have to be read from it first ([`Sweep::batch`]), each to be answered by
    /// [`Event::Swept`]. Not urgent.
    pub sweeps: Vec<(GroupId, Sweep)>,
    /// Make durable all flushes answered so far, then send [`Event::EnginePersisted`] with this ticket.
    pub persist_engine: Option<u64>,
    /// Snapshots to stream to other nodes, each to be answered by [`Event::SnapshotBegun`] when its turn comes, and by [`Event::SnapshotSent`].
    pub snapshots: Vec<SnapshotJob>,
    /// Answers to [`Event::SnapshotOffered`]: ticket, and whether to switch to the snapshot (`Importer::finish`, then
    /// [`Event::SnapshotInstalled`]) or to drop it. Between a yes and the installation the
    /// node neither applies nor flushes that group.
    pub installs: Vec<(u64, bool)>,
    /// What nobody needs any more. Drop it where that may take long.
    pub retired: Vec<Retired>,
    /// Replicas to be opened, each to be answered by [`Event::Opened`].
    pub opens: Vec<OpenJob>,
    /// Replicas to be destroyed after all that the engine was given for their groups before: [`hadron_keyspace::Owner::destroy`], then
    /// [`Event::Destroyed`]; what they had may be deleted ([`hadron_keyspace::DestroyedSweep`]) at leisure.
    pub destroys: Vec<DestroyJob>,
    /// Others are to be connected than before: see [`crate::Board::peers`].
    pub are_peers_new: bool,
    /// For the other shards of this node: to be given to [`crate::route`].
    pub tells: Vec<Event>,
    /// The node must stop now, and must not be restarted without a look: what was found, and what to do.
    pub fatal: Option<String>,
}

impl Effects {
    /// True when there is nothing to do.
    pub fn is_empty(&self) -> bool {
        self.log.is_empty()
            && self.sends.is_empty()
            && self.replies.is_empty()
            && self.flushes.is_empty()
            && self.sweeps.is_empty()
            && self.persist_engine.is_none()
            && self.snapshots.is_empty()
            && self.installs.is_empty()
            && self.retired.is_empty()
            && self.opens.is_empty()
            && self.destroys.is_empty()
            && !self.are_peers_new
            && self.tells.is_empty()
            && self.fatal.is_none()
    }
}

/// What nobody needs any more; there may be millions of keys in it.
#[derive(Debug)]
pub enum Retired {
    /// A state that another was switched to.
    State(Loaded),
    /// A replica's that was destroyed. Its readers may have it still.
    Keyspace(Arc<Keyspace>),
}

/// A batch for the engine.
#[derive(Debug)]
pub struct FlushJob {
    /// Whose state it is.
    pub group: GroupId,
    /// Write `flush.batch()`, then hand the flush back in [`Event::Flushed`].
    pub flush: Flush,
}

/// A snapshot to stream: open a [`hadron_keyspace::Exporter`] *after* this job was issued.
#[derive(Clone, Debug)]
pub struct SnapshotJob {
    /// Whose state.
    pub group: GroupId,
    /// The node that needs it.
    pub node: NodeId,
    /// The replica that needs it.
    pub to: ReplicaId,
    /// The state.
    pub keyspace: Arc<Keyspace>,
    /// What the log keeps for the transfer.
    pub log_bytes: usize,
}

/// A replica to be opened: [`OpenJob::carry_out`] on a thread that may wait for the engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OpenJob {
    /// The group.
    pub group: GroupId,
    /// The replica that shall be here; `None` for whichever is.
    pub replica: Option<ReplicaId>,
    /// The log has records of the group.
    pub is_in_log: bool,
}

/// A replica to be destroyed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DestroyJob {
    /// The group.
    pub group: GroupId,
    /// The replica.
    pub replica: ReplicaId,
}

/// What came of an [`OpenJob`].
#[derive(Clone, Debug)]
pub enum OpenOutcome {
    /// The replica's state; empty if it is new.
    Open(ReplicaId, Arc<Keyspace>),
    /// There is none, or it was destroyed: it must not come back.
    Gone,
    /// The engine's records are damaged: whose, if that much is known; what is, and what to do.
    Damaged(Option<ReplicaId>, String),
    /// The engine's records cannot be used: why, and what to do.
    Unusable(String),
}

impl OpenJob {
    /// Opens the replica's state, or makes it. A new replica owns its records durably before anybody hears of it.
    pub fn carry_out(self, engine: &Arc<dyn Engine>, options: Options) -> OpenOutcome {
        let failed = |replica, error: OpenError| match error.is_damage() {
            true => OpenOutcome::Damaged(replica, error.to_string()),
            false => OpenOutcome::Unusable(error.to_string()),
        };
        let replica = match self.resident(engine.as_ref()) {
            Ok(Ok(replica)) => replica,
            Ok(Err(outcome)) => return outcome,
            Err(error) => return failed(None, error),
        };
        match Keyspace::open(engine.clone(), self.group.0, options) {
            Ok(keyspace) => OpenOutcome::Open(replica, keyspace),
            Err(error) => failed(Some(replica), error),
        }
    }

    /// The replica to be opened, which owns its records; or why there is none.
    fn resident(self, engine: &dyn Engine) -> Result<Result<ReplicaId, OpenOutcome>, OpenError> {
        let group = self.group.0;
        Ok(match (Owner::of(engine, group)?, self.replica) {
            // Where placement lags behind, the replica that it names was here before this one, whose log is here too.
            (Owner::Living(here), wanted) if wanted.is_none_or(|wanted| here >= wanted.0) => {
                Ok(ReplicaId(here))
            }
            (Owner::Destroyed(here), wanted) if wanted.is_none_or(|wanted| here >= wanted.0) => {
                Err(OpenOutcome::Gone)
            }
            // A replica owns its records before it says anything, and its log is forgotten before another one comes.
            (owner, _) if self.is_in_log => {
                let what = format!(
                    "as the engine says {owner}, and the log holds what another replica said: the engine has lost data"
                );
                return Err(OpenError::Damaged { group, what });
            }
            (_, None) => Err(OpenOutcome::Gone),
            (_, Some(wanted)) => {
                Owner::claim(engine, group, wanted.0)?;
                Ok(wanted)
            }
        })
    }
}

impl DestroyJob {
    /// Leaves the tombstone.
    ///
    /// # Errors
    /// The engine fails.
    pub fn carry_out(self, engine: &dyn Engine) -> Result<(), OpenError> {
        Owner::destroy(engine, self.group.0, self.replica.0)
    }
}

/// The answer to a request.
#[derive(Debug, PartialEq)]
pub enum Reply {
    /// The write was applied by this node's replica, with this result.
    Written {
        /// The state machine's answer, the same on every replica.
        response: Result<Response, Error>,
        /// The term of the entry that carried it.
        term: u64,
    },
    /// This node's replica has applied all that was committed when the read began.
    ReadReady,
    /// The new leader leads.
    Transferred,
    /// What each node's replica lacks of its leader's log, in entries.
    Lags(Vec<(NodeId, u64)>),
    /// The request failed.
    Failed(Failure),
}

/// Why a request failed. Only [`Failure::Unknown`] may have happened all the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// This node has no replica of the group.
    NoSuchGroup,
    /// This replica does not lead (asked of a request that only the leader can carry out).
    NotLeader,
    /// The target of a transfer is not a voter of the group.
    BadTransferTarget,
    /// Too much is waiting already. It certainly did not happen.
    Busy,
    /// This replica differs from the others and serves nothing until it is rebuilt. It certainly did not happen.
    Quarantined,
    /// The leader's version is older and does not know the command. It certainly did not happen.
    Unreadable,
    /// It was sent on, and whether it was carried out cannot be known here.
    Unknown,
}
