//! The replicated state of one logical etcd: a multi-version map of keys, transactions over it, leases, alarms, watches.
//!
//! A [`Keyspace`] is a deterministic state machine. Committed entries come in through [`Keyspace::apply`], in order, each
//! with its position and its stamp of the group's logical clock; replicas that apply the same entries hold the same
//! state, answer the same and have the same [`Keyspace::digest`]. Reads and watches run beside apply from any thread.
//!
//! # Where things are
//! Keys and the metadata of their versions are in memory ([`mvcc`]); values are in memory until they are flushed, then
//! on disk behind a byte-bounded cache. Apply never waits for the disk, except to read a cold value that a command asks
//! for (`prev_kv`, a range or a comparison of values inside a txn).
//!
//! | module | is about |
//! |---|---|
//! | [`command`], [`check`], [`error`] | what can be asked, what is refused |
//! | `entry` | the commands of an entry, one after the other and piece by piece |
//! | `apply`, `txn`, `deletion`, `range` | what commands do, with etcd's semantics |
//! | `reach` | how much a txn may look at |
//! | [`mvcc`] | the index, values in memory, pins of readers |
//! | [`auth`] | users, roles, who may do what |
//! | `lease`, `digest` | leases; the digest of the live state |
//! | [`watch`] | streams of events, past and present |
//! | `flush`, `sweep`, [`snapshot`], `record` | the way to the engine and back |
//! | `scrub` | whether the engine still holds what it was given |
//! | `owner` | whose the engine's records of a group are |
//! | `backup`, `restore`, `kept`, `stored` | the way to etcd's files and back |
//!
//! # Invariants
//! - Nothing here reads a clock, a random number, a file or the environment, and no order of a hash map reaches an output.
//! - The lock order is: state, then the watch hub, then a mailbox. Nothing is read from disk under the state's shared lock.
//! - A record leaves the unflushed set only after it is visible in the engine.
//! - A version is removed, from memory and disk, only if no pinned reader can still ask for it.
//!
//! # What is absent on purpose
//! Raft (positions are plain numbers), threads, timers, the network, passwords in clear and tokens.

pub mod auth;
pub mod check;
pub mod command;
pub mod error;
pub mod mvcc;
pub mod snapshot;
pub mod watch;

mod alarm;
mod apply;
mod backup;
mod deletion;
mod digest;
mod entry;
mod flush;
mod hash_kv;
mod kept;
mod keyspace;
mod lease;
mod owner;
mod range;
mod reach;
mod read;
mod record;
mod restore;
mod scrub;
mod state;
mod stored;
mod sweep;
mod txn;

pub use backup::{Backup, BackupLease};
pub use command::{Command, DecodeError, Response};
pub use entry::Answers;
pub use error::{Error, NewerPart, OpenError};
pub use flush::Flush;
pub use keyspace::{Keyspace, Loaded, Options};
pub use lease::LEASE_BYTES;
pub use mvcc::ValueCache;
pub use owner::{DestroyedSweep, Owner, destroyed_groups};
pub use reach::may_look_at_much;
pub use read::RangePart;
pub use restore::{Restore, RestoreError, Restored};
pub use scrub::{Scrub, ScrubError};
pub use snapshot::{Exporter, Importer, SnapshotError};
pub use state::Applied;
pub use sweep::Sweep;
pub use watch::{WatchOptions, WatchStream, WatcherCounts};
