//! What a group's log is made of, and the checksum that chains it together.

use bytes::Bytes;
use xxhash_rust::xxh3::Xxh3;

use crate::ids::{GroupId, Index, ReplicaId, Term};

/// One entry of a group's log. An empty `data` is the entry that a new leader commits first; it is applied as nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The term in which a leader appended it.
    pub term: Term,
    /// Its position in the log.
    pub index: Index,
    /// The checksum of the whole log up to and including this entry: see [`chain_checksum`].
    pub checksum: u64,
    /// What the state machine will apply. Shared, never copied per follower.
    pub data: Bytes,
}

impl Entry {
    /// This entry's position.
    pub fn position(&self) -> LogPosition {
        LogPosition { term: self.term, index: self.index, checksum: self.checksum }
    }
}

/// A point in a group's log: everything up to and including `index`, of which the last entry had `term`.
/// `checksum` is the chained checksum there, 0 at index 0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LogPosition {
    /// Term of the entry at `index`.
    pub term: Term,
    /// The last index that is included.
    pub index: Index,
    /// The chained checksum of the log up to `index`.
    pub checksum: u64,
}

/// The checksum of a log that ends with this entry, given the checksum `previous` of the log before it.
/// Two logs of one group with equal checksums at an index hold the same entries up to there.
pub fn chain_checksum(previous: u64, group: GroupId, term: Term, index: Index, data: &[u8]) -> u64 {
    let mut hash = Xxh3::with_seed(previous);
    let mut head = [0; 24];
    head[..8].copy_from_slice(&group.0.to_le_bytes());
    head[8..16].copy_from_slice(&term.0.to_le_bytes());
    head[16..].copy_from_slice(&index.0.to_le_bytes());
    hash.update(&head);
    hash.update(data);
    hash.digest()
}

/// What a replica must never forget: it is durable before any message that depends on it leaves.
/// `commit` is only a hint for a faster restart and never a reason to write.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HardState {
    /// The highest term seen.
    pub term: Term,
    /// The candidate that got this replica's vote in `term`.
    pub voted_for: Option<ReplicaId>,
    /// The highest index known to be committed.
    pub commit: Index,
}
