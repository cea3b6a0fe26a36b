//! One Raft group as a pure state machine: [`Event`]s in, [`Effects`] out; no IO, no clock, no threads.

mod entry;
mod event;
mod ids;
mod message;

pub use entry::{Entry, HardState, LogPosition, chain_checksum};
pub use event::{
    Contacts, Divergence, Effects, Election, Event, Outcome, Persist, ReadOutcome, Refusal,
};
pub use ids::{DEFAULT_GROUP, GroupId, Index, NodeId, ROOT_GROUP, ReplicaId, Term, Time};
pub use message::Message;
