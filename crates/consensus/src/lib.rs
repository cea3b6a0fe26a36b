//! One Raft group as a pure state machine: [`Event`]s in, [`Effects`] out; no IO, no clock, no threads.
//!
//! A group keeps one log on several replicas, so that whatever it has once committed survives the loss of any
//! minority of them. What the entries mean is none of its business: data is bytes. A process runs thousands of groups;
//! whoever drives one tells it what happened ([`Group::step`]) and does what it asks for, in any order and at any pace.
//! Disk and network are alike in this: what is to be written goes out as [`Persist`], and its completion comes back as
//! [`Event::Persisted`], just as an answer comes back as [`Event::Message`]. Nothing ever waits.
//!
//! ```text
//!    Propose Read Campaign ..  ┌───────────────────────────┐  persist ───▶ disk ───▶ Persisted
//!    Message ────────────────▶ │ step: learn what happened │  messages ──▶ other replicas
//!    Persisted ──────────────▶ │ settle: do whatever has   │  committed ─▶ state machine ─▶ Applied, Compact
//!    Timer, Suspect ─────────▶ │         become possible   │  snapshots ─▶ driver ─▶ SnapshotSent
//!                              └───────────────────────────┘  proposals, reads, elections, divergence
//! ```
//!
//! # The log
//! Entries are numbered; each carries the term of the leader that appended it and a checksum that is chained over
//! everything before it ([`chain_checksum`]). The whole retained log is in memory (`log.rs`), as a queue of entries
//! whose data is shared and never copied. Its beginning is the *floor*: up to there the state machine has everything durably,
//! and who needs older entries needs a snapshot (`snapshot.rs`).
//!
//! An entry goes through these states, and only the last two of them mean anything to a client:
//!
//! ```text
//!   proposed ──▶ in the leader's memory ──▶ on the way to followers and to the leader's own disk, in parallel
//!            ──▶ durable on some          ──▶ durable on a quorum, in the leader's own term: committed ──▶ applied
//! ```
//! `replication.rs` has the rules, `progress.rs` what the leader knows about each follower, `quorum.rs` the counting.
//!
//! # Elections
//! Time is divided into *terms*, each with one leader at most. A replica that misses its leader first asks whether it would be
//! elected (pre-vote), then enters the next term and asks for votes; a voter gives one vote per term, and only to a
//! candidate whose log is at least as complete as its own, which is how a new leader is certain to have everything
//! committed. [`Role`] has the state diagram, `election.rs` the rules, `transfer.rs` how leadership moves on purpose.
//!
//! Who is alive is not found out by the group. Nodes watch each other, once for all their groups, and the group asks
//! them ([`Contacts`]) or is told ([`Event::Suspect`]). A group in which little happens sends a slow heartbeat, every half of an election
//! timeout, for leaders that stepped down unheard; one in which nothing happens sleeps (`sleep.rs`) and sends nothing. Liveness only ever
//! starts elections; nothing is decided by it.
//!
//! # Membership
//! Who votes is itself in the log, and changes through joint configurations (`membership.rs`). A replica listens to whoever
//! leads, also if it has not heard of it before, since its own configuration may be the older one.
//!
//! # Reads
//! A linearizable read needs the commit index of a replica that certainly leads. A round of messages that begins
//! after the read proves that; rounds are shared by all reads that wait (`read.rs`). There are no leases.
//!
//! # Persistence
//! A crash forgets whatever was not durable, so nothing may leave that is only true until then. The group holds such
//! messages back itself, and those in [`Effects`] may always go at once:
//!
//! | what | leaves when durable is |
//! |---|---|
//! | an answer to a vote request | the term and the vote |
//! | a candidate's own vote, and its vote requests | the same, and the log that they boast of |
//! | an acknowledgement of entries | those very entries, and the term |
//! | the leader's own part in a quorum | its own entries |
//! | the leader's appends | nothing: a leader that crashes has lost its term anyway |
//!
//! `persistence.rs` knows what is durable, also when an entry is replaced while its write is on the way.
//!
//! # Invariants
//! Named as in assertions and in the simulation, which checks them after every step:
//! * `election_safety`: at most one leader per term.
//! * `log_matching`: two logs with the same term at the same index are equal up to there.
//! * `leader_completeness`: a leader has every entry that was committed in earlier terms.
//! * `state_machine_safety`: no two replicas apply different entries at one index.
//! * A commit index is on a quorum of durable logs at the moment at which any replica knows it.
//! * A replica that finds itself about to break one of these panics: stopping is safe, going on is not.
//!
//! # What is left out
//! Priorities, witnesses; what snapshots contain and how they travel; any measuring of time or of nodes; retrying of proposals,
//! because only who asked knows whether a repetition is harmless.
//!
//! # How it is tested
//! `tests/simulation.rs` (whole groups in a hostile world, thousands of seeds), `tests/oracle.rs` (the same decisions
//! as the crate `raft`), `tests/scripts/` (stories to be read like a log), `tests/messages.rs`, `tests/quorum.rs`.

mod codec;
mod election;
mod entry;
mod event;
mod group;
mod ids;
mod inspect;
mod log;
mod membership;
mod message;
mod persistence;
mod progress;
pub mod quorum;
mod read;
mod replication;
mod role;
mod sleep;
mod snapshot;
mod transfer;

pub use codec::DecodeError;
pub use entry::{Entry, HardState, LogPosition, chain_checksum};
pub use event::{
    Amnesia, Contacts, Divergence, Effects, Election, Event, Outcome, Persist, ReadOutcome, Refusal,
};
pub use group::{Config, Group, Restored};
pub use ids::{DEFAULT_GROUP, GroupId, Index, NodeId, ROOT_GROUP, ReplicaId, Term, Time};
pub use membership::{CONFIGURATION, Configuration, ConfigurationError};
pub use message::Message;
pub use progress::{Progress, ProgressState};
pub use role::Role;
