//! What a node is told when it is built.

use hadron_consensus::{GroupId, NodeId, ReplicaId};

use crate::membership::Member;
use crate::roster::Roster;

/// Everything a node needs to know before its first step.
#[derive(Clone, Debug)]
pub struct Config {
    /// This node.
    pub node: NodeId,
    /// Counts the starts of this node's process; durable before the node sends its first message.
    pub incarnation: u64,
    /// What this node says of itself.
    pub own: Member,
    /// The roster that counts as long as the root group has none.
    pub roster: Roster,
    /// The groups with a replica here.
    pub groups: Vec<GroupConfig>,
    /// Microseconds between two heartbeats of a pair of nodes.
    pub heartbeat_us: u64,
    /// Microseconds without contact after which a node is suspected.
    pub election_timeout_us: u64,
    /// Where all randomness comes from.
    pub seed: u64,
    /// Bounds and rhythms.
    pub limits: Limits,
}

/// One group, as this node begins with it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupConfig {
    /// The group.
    pub group: GroupId,
    /// This node's replica.
    pub replica: ReplicaId,
    /// The group exists from the start, on every member of the roster; otherwise the catalog says where it shall be.
    pub follows_roster: bool,
    /// The voters that the group was made with, and the nodes they are on; empty if this node was not there.
    pub voters: Vec<(ReplicaId, NodeId)>,
}

/// Bounds and rhythms. The defaults suit a machine with a local disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Commands are gathered into entries of about this many bytes (one larger command makes a larger entry).
    pub entry_bytes: usize,
    /// Bytes of appends on their way to one follower before the leader waits for acknowledgements.
    pub inflight_bytes: usize,
    /// Bytes of proposals that wait for a quorum before new ones are refused.
    pub uncommitted_bytes: usize,
    /// Applied bytes that the engine does not have yet, per group, before a leader refuses and a follower pauses.
    pub unflushed_bytes: usize,
    /// Applied bytes that the engine does not have yet, all groups together. A group may have as many as are left.
    pub node_unflushed_bytes: usize,
    /// Bytes of retained log entries, all groups together. A group may retain as many as are left.
    pub node_log_bytes: usize,
    /// Requests of one group that may wait for a leader before new ones are refused.
    pub waiting_requests: usize,
    /// Bytes in one flush.
    pub flush_bytes: usize,
    /// Microseconds that an applied entry may wait for its flush.
    pub flush_interval_us: u64,
    /// Microseconds between two fsyncs of the engine while there is something to make durable.
    pub persist_interval_us: u64,
    /// Bytes of log kept in memory and in the write-ahead log for followers that are behind.
    pub log_tail_bytes: usize,
    /// Bytes of log kept for a follower that is receiving a snapshot.
    pub snapshot_log_bytes: usize,
    /// Microseconds between two comparisons of the replicas' digests.
    pub digest_interval_us: u64,
    /// Microseconds after which a leader logs what its group's clock shows, if there are leases and nothing else is written. Whoever leads next,
    /// or follows anew, gives leases no more time than this once more. etcd's lease checkpoints come as often, where they are enabled.
    pub stamp_interval_us: u64,
    /// Leases revoked by expiry in one entry.
    pub expiries_per_entry: usize,
    /// Keys that a group may look at or change in one turn of its shard, about, before it goes on in the next one. All groups of the shard together
    /// may do four times as much.
    pub apply_effort: usize,
    /// Microseconds without requests after which a group sleeps; 0 for never.
    pub sleep_after_us: u64,
    /// After so many entries the log tells that the engine has them durably.
    pub told_entries: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            entry_bytes: 1 << 20,
            inflight_bytes: 16 << 20,
            uncommitted_bytes: 64 << 20,
            unflushed_bytes: 64 << 20,
            node_unflushed_bytes: 256 << 20,
            node_log_bytes: 256 << 20,
            waiting_requests: 10_000,
            flush_bytes: 4 << 20,
            flush_interval_us: 200_000,
            persist_interval_us: 2_000_000,
            log_tail_bytes: 16 << 20,
            snapshot_log_bytes: 256 << 20,
            digest_interval_us: 5_000_000,
            stamp_interval_us: 300_000_000,
            expiries_per_entry: 500,
            apply_effort: 4_000,
            sleep_after_us: 2_000_000,
            told_entries: 10_000,
        }
    }
}
