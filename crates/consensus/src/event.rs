//! The two sides of a group: [`Event`]s go in, [`Effects`] come out. Nothing else crosses.

use std::collections::BTreeMap;

use bytes::Bytes;

use crate::entry::{Entry, HardState, LogPosition};
use crate::ids::{Index, ReplicaId, Term, Time};
use crate::membership::Configuration;
use crate::message::Message;

/// When the node of a replica was last heard from. Liveness belongs to nodes, not to groups: the driver answers from
/// one failure detector per pair of nodes, so that an idle group needs no heartbeats of its own.
pub trait Contacts {
    /// The last moment at which the node of `replica` was heard from *and* reported hearing us; `Time(0)` for never.
    fn last_heard(&self, replica: ReplicaId) -> Time;
}

/// Something that happened to a group.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// The time of [`crate::Group::deadline`] has come (or passed).
    Timer,
    /// A message of another replica of this group arrived.
    Message {
        /// The sender.
        from: ReplicaId,
        /// What it says.
        message: Message,
    },
    /// Append `data` as one entry. Answered by an [`Outcome`] with the same `token` in the same step.
    Propose {
        /// Chosen by the caller.
        token: u64,
        /// The entry's data; not empty.
        data: Bytes,
    },
    /// Change who belongs to the group (leader only). Answered like a proposal, which it becomes. Done when a configuration
    /// with these voters and no outgoing ones is committed; until then the next change is refused.
    Reconfigure {
        /// Chosen by the caller.
        token: u64,
        /// What to change to; `outgoing` must be empty.
        wanted: Configuration,
    },
    /// Ask for an index such that a state machine that applied it may serve a linearizable read that begins now.
    /// Answered by one [`ReadOutcome`] with the same `token`, in this step or a later one.
    Read {
        /// Chosen by the caller.
        token: u64,
    },
    /// Everything up to and including the [`Persist`] numbered `sequence` is durable on this replica's disk.
    Persisted {
        /// See [`Persist::sequence`].
        sequence: u64,
    },
    /// The state machine has applied up to `index`. Lets a leader know how far it is behind itself.
    Applied {
        /// The highest applied index.
        index: Index,
    },
    /// Drop log entries up to and including `index` from memory: the state machine has them durably.
    Compact {
        /// The last index to drop; beyond the applied index it is cut to that.
        index: Index,
    },
    /// The state machine was replaced by a snapshot at `position`, durably. The log restarts there.
    SnapshotInstalled {
        /// The position that the snapshot contains.
        position: LogPosition,
        /// Who belonged to the group there.
        configuration: Configuration,
    },
    /// Whether the state machine cannot keep up. A follower that is `full` takes no entries, so that its log does not
    /// grow beyond what it can get rid of, and the leader sends it none; it votes, answers and learns of commits as ever.
    Pressure {
        /// It cannot.
        full: bool,
    },
    /// This replica is known to be damaged: if it leads it steps down, and it campaigns no more. It goes on voting and
    /// acknowledging, so that the others keep their quorum until it is rebuilt.
    Retire,
    /// It is not after all, says somebody who should know.
    Reinstate,
    /// Leader: the others know that `replica` has lost what it had acknowledged. It is sent that again, as a new leader would do, and what it
    /// acknowledges from now on counts.
    Refeed {
        /// A follower of which [`Effects::amnesia`] spoke.
        replica: ReplicaId,
    },
    /// Sending the snapshot that [`Effects::snapshots`] asked for ended.
    SnapshotSent {
        /// Its receiver.
        to: ReplicaId,
        /// The position that was sent and installed, or `None` when it failed.
        position: Option<LogPosition>,
    },
    /// The node of `replica` is suspected to have failed, or came back as a new process that has forgotten that it
    /// leads. A follower of it starts a randomised election timer.
    Suspect {
        /// The replica on that node.
        replica: ReplicaId,
    },
    /// Hand leadership to `to` (leader only; ignored elsewhere).
    TransferLeader {
        /// A voter.
        to: ReplicaId,
    },
    /// Campaign at once, pre-vote included, whatever the timers say.
    Campaign,
    /// Somebody needs this group: a request waits for its leader, or the node of a member has started anew and what is known of that
    /// member is old. A replica that sleeps wakes; one that has no leader stands for election, or asks others to; one that has one asks it.
    Wake,
    /// The driver stood still for longer than an election timeout: what this replica led may be led by another.
    Paused,
}

/// What a step wants done. The driver may do these in any order and in parallel, except that a message in `messages`
/// may always be sent at once: whatever had to be durable before it already is.
#[derive(Debug, Default)]
pub struct Effects {
    /// To be written to the log, in order; completion comes back as [`Event::Persisted`].
    pub persist: Vec<Persist>,
    /// To be sent.
    pub messages: Vec<(ReplicaId, Message)>,
    /// Newly committed entries, in order, without gaps since the last ones. Ready to apply: each is durable on a quorum
    /// (though perhaps not yet on this replica).
    pub committed: Vec<Entry>,
    /// Answers to [`Event::Propose`] and [`Event::Reconfigure`].
    pub proposals: Vec<Outcome>,
    /// Answers to [`Event::Read`].
    pub reads: Vec<ReadOutcome>,
    /// Followers that need a snapshot: their next entry is no longer in the log.
    pub snapshots: Vec<ReplicaId>,
    /// Elections that this replica decided as candidate: won, or lost by a split vote.
    pub elections: Vec<Election>,
    /// A log that differs from the leader's at an index both have under one term: damage, never a normal conflict.
    pub divergence: Option<Divergence>,
    /// A follower denies again and again that it has what it had acknowledged to this leader. Comes again for as long as it does, until
    /// [`Event::Refeed`].
    pub amnesia: Option<Amnesia>,
    /// The leader sent a configuration at this index that this version cannot read. It was not taken, nor was anything after it; the driver
    /// must stop this replica.
    pub unreadable: Option<Index>,
    /// True when the role, the term or the known leader changed in this step.
    pub status_changed: bool,
    /// True when the configuration in force changed in this step: see [`crate::Group::configuration`].
    pub is_reconfigured: bool,
}

/// Something to make durable. Entries replace whatever the log holds at and after the first one's index.
#[derive(Clone, Debug, PartialEq)]
pub struct Persist {
    /// Increases by one with each `Persist` of this group since it was opened.
    pub sequence: u64,
    /// The new hard state, if it changed.
    pub hard_state: Option<HardState>,
    /// New entries, consecutive; may be empty.
    pub entries: Vec<Entry>,
}

/// What became of a proposal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It has a term and an index; not yet durable. If another entry is committed at `index`, it certainly did not happen.
    Proposed {
        /// The caller's token.
        token: u64,
        /// The leader's term.
        term: Term,
        /// Where it stands.
        index: Index,
    },
    /// It certainly did not happen.
    Refused {
        /// The caller's token.
        token: u64,
        /// Why.
        reason: Refusal,
    },
}

/// Why a group does not take a proposal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// This replica does not lead; the leader, if known.
    NotLeader(Option<ReplicaId>),
    /// Leadership is being handed over.
    Transferring,
    /// Too many bytes are waiting for a quorum.
    Busy,
    /// A change of membership is under way, or one may be that this leader does not know of yet.
    Changing,
}

/// What became of a read request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReadOutcome {
    /// Serve the read once the state machine has applied `index`.
    Ready {
        /// The caller's token.
        token: u64,
        /// The index to wait for.
        index: Index,
    },
    /// Leadership changed, or no leader is known: ask again.
    Retry {
        /// The caller's token.
        token: u64,
    },
}

/// One election as its candidate counted it. P(x) = V(x) / sum of V(i) follows from `votes`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Election {
    /// The term of the election.
    pub term: Term,
    /// The candidate that counted.
    pub candidate: ReplicaId,
    /// Whether it won.
    pub won: bool,
    /// The votes counted so far: candidate to number of votes. A voter that refuses says whom it voted for.
    pub votes: BTreeMap<ReplicaId, u64>,
}

/// A follower that has lost what was durable: somebody put an older copy of its disk in its place, or its disk did not keep what it had said it would.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Amnesia {
    /// The follower.
    pub replica: ReplicaId,
    /// The last index that it had acknowledged.
    pub acknowledged: Index,
    /// Where its log may end now.
    pub left: Index,
    /// It was told of before, and nothing came of that.
    pub is_again: bool,
}

/// A replica whose log has another checksum than the leader's at the same term and index.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Divergence {
    /// The replica that differs (as the follower itself, or as its leader, sees it).
    pub replica: ReplicaId,
    /// The first index known to differ.
    pub index: Index,
    /// The checksum that the leader has there.
    pub expected: u64,
    /// The checksum that the replica has there.
    pub found: u64,
}
