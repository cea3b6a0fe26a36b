//! A whole node without sockets, threads or files: many groups, one log, apply, replies, liveness, integrity.
//!
//! ```text
//!            Event ──▶ Node::step ──▶ ... ──▶ Node::settle ──▶ Effects
//!  client writes and reads              │                      log records, peer messages,
//!  peer messages                        │                      replies, flushes, snapshots
//!  completions of the disk, timers      ▼
//!                         consensus (who leads, what is committed)
//!                         keyspace  (what it means)
//! ```
//! The life of a Put is the list of modules: `propose` (admit, propose, reply), `persist`, `replicate`, `apply`;
//! beside it `read`, `flush`, `snapshot`, `lease`, `integrity`, `liveness`, `sleep`. Who belongs to the pool: `membership` at its
//! beginning, `roster` from then on, `reconfigure` for what follows from it; `catalog` says which keyspaces there are and where their groups
//! shall be, `placement` opens and destroys replicas here accordingly, `report` and
//! `balancer` are for whoever plans where they shall be; `force` for who is left alone. `shards` is about a node whose groups are
//! spread over several loops: a [`Node`] is then the part of the node that one of them drives.
//!
//! Invariants:
//! - No clock, thread, socket, file or unseeded randomness: the same events at the same times give the same effects.
//! - A reply to a write leaves only after this node's replica applied it, which is after a quorum has it durably.
//! - A command is proposed at most once per certain refusal (see `propose`).
//! - flushed ≤ min(applied, locally durable), and the log is cut only below what the engine holds durably (`flush`).
//!
//! Left out: threads and sockets (the server's driver, the simulator's world), what a command means (`keyspace`), how a
//! group agrees (`consensus`).

mod apply;
mod balancer;
mod board;
mod catalog;
mod clock;
mod config;
mod envelope;
mod event;
mod flush;
mod force;
#[cfg(test)]
mod formats;
mod groups;
mod integrity;
mod lease;
mod liveness;
mod membership;
mod memory;
mod node;
mod peer;
mod persist;
mod placement;
mod propose;
mod read;
mod reconfigure;
mod replicate;
mod report;
mod roster;
mod shards;
mod sleep;
mod snapshot;

pub use balancer::{Balancer, Decision, decide, leads, still_needed};
pub use board::{
    Board, DigestComparisons, ElectionRecord, GroupBoard, LogShare, NotAdmitted, UseTotals, Uses,
};
pub use catalog::{
    Catalog, CatalogError, DEFAULT_KEYSPACE, DRAINING_PREFIX, GROUPS_PREFIX, KEYSPACES_PREFIX,
    KeyspaceRecord, KeyspaceState, LEAVING_PREFIX, MOVES_PREFIX, MoveRecord, NEXT_GROUP_KEY, PAUSED_KEY,
    Place, Placement, Recorded, forget_moves, moves,
};
pub use clock::GroupClock;
pub use config::{Config, GroupConfig, Limits};
pub use envelope::{Envelope, Origin, decode as decode_envelope};
pub use event::{
    DestroyJob, Effects, Event, Failure, FlushJob, OpenJob, OpenOutcome, Reply, Retired, SnapshotJob,
};
pub use force::{Forced, force};
pub use integrity::{Accusation, accuse};
pub use membership::{Bootstrap, Member, node_id};
pub use memory::MemoryUse;
pub use node::Node;
pub use peer::{Forward, NotProposedReason, PeerDecodeError, PeerMessage};
pub use report::{Damaged, Hitter, ReplicaReport, Report, Settled, amounts_of, damaged, load_of, settled};
pub use roster::{NODES_PREFIX, Pool, REMOVED_PREFIX, ROSTER_KEY, Removed, Roster, RosterError};
pub use shards::{route, shard_of};
