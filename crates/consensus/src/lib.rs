//! One Raft group as a pure state machine: [`Event`]s in, [`Effects`] out; no IO, no clock, no threads.

mod codec;
mod election;
mod entry;
mod event;
mod group;
mod ids;
mod log;
mod message;
mod persistence;
mod progress;
pub mod quorum;
mod read;
mod replication;
mod role;
mod snapshot;
mod transfer;

pub use codec::DecodeError;
pub use entry::{Entry, HardState, LogPosition, chain_checksum};
pub use event::{Contacts, Divergence, Effects, Election, Event, Outcome, Persist, ReadOutcome, Refusal};
pub use group::{Config, Group, Restored};
pub use ids::{DEFAULT_GROUP, GroupId, Index, NodeId, ROOT_GROUP, ReplicaId, Term, Time};
pub use message::Message;
pub use progress::{Progress, ProgressState};
pub use role::Role;
