//! What replicas of one group say to each other. The byte encoding is in `codec.rs` and in `docs/formats/messages.md`.
//!
//! A message may be lost, delayed, doubled or overtaken; none depends on another having arrived. Each carries the
//! sender's term, and one of an older term is answered with [`Message::Stale`] or ignored.

use crate::entry::{Entry, LogPosition};
use crate::ids::{Index, ReplicaId, Term};

/// A message from one replica of a group to another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Message {
    /// A candidate asks for a vote, or (`pre`) whether it would get one.
    VoteRequest {
        /// The term to be elected in: the candidate's own, or (`pre`) one more than its own.
        term: Term,
        /// Nothing is promised by the answer and nothing changes at the voter.
        pre: bool,
        /// The leader itself asked for this election: voters need not be loyal to it.
        transfer: bool,
        /// The term of the last entry of the candidate's log.
        last_term: Term,
        /// The index of the last entry of the candidate's log.
        last_index: Index,
    },
    /// The answer to a [`Message::VoteRequest`].
    VoteAnswer {
        /// The voter's own term; above `election`, the candidate is behind.
        term: Term,
        /// The term that was asked about.
        election: Term,
        /// As asked.
        pre: bool,
        /// Whether the candidate gets the vote.
        granted: bool,
        /// Whom the voter has voted for in the term `election`, so that every vote can be counted.
        voted_for: Option<ReplicaId>,
    },
    /// The leader's log from `previous` on. Without entries: a heartbeat, a new commit index, or a probe.
    Append {
        /// The leader's term.
        term: Term,
        /// The entry just before `entries`, which the follower must have.
        previous: LogPosition,
        /// The leader's commit index.
        commit: Index,
        /// The newest round of reads; each answer that names it confirms the leader.
        round: u64,
        /// Whether an answer is wanted at once. Entries are acknowledged when they are durable in any case, and a new
        /// round is always answered.
        answer: bool,
        /// Nothing happens: whoever has everything, and knows that it is committed, shall sleep.
        sleep: bool,
        /// Consecutive, the first one at `previous.index + 1`.
        entries: Vec<Entry>,
    },
    /// The follower's log is durable and equal to the leader's up to `matched`.
    AppendAck {
        /// The follower's term.
        term: Term,
        /// The newest round that it has seen.
        round: u64,
        /// The last index that is durable and known to be equal.
        matched: Index,
        /// The follower takes no entries now: its state machine cannot keep up.
        full: bool,
        /// The follower sleeps, as it was asked to.
        asleep: bool,
    },
    /// The follower does not have `previous` of an append.
    AppendReject {
        /// The follower's term.
        term: Term,
        /// The newest round that it has seen.
        round: u64,
        /// `previous.index` of that append.
        rejected: Index,
        /// Where the two logs may agree: the leader need not try after this index ...
        hint_index: Index,
        /// ... nor with an entry of a higher term.
        hint_term: Term,
    },
    /// The follower has an entry of the same term at the same index with another checksum, or was sent one that
    /// contradicts itself: damage.
    Diverged {
        /// The follower's term.
        term: Term,
        /// The first index known to differ.
        index: Index,
        /// The leader's checksum there.
        expected: u64,
        /// The follower's checksum there.
        found: u64,
        /// The follower has nothing there: the entry does not fit the checksum that came with it, so the leader's own
        /// log may be what is damaged.
        broken: bool,
    },
    /// The receiver's term is over.
    Stale {
        /// The sender's term.
        term: Term,
    },
    /// A follower asks from which index on it may serve the reads it has gathered.
    ReadRequest {
        /// The follower's term.
        term: Term,
        /// Names the reads at the follower.
        batch: u64,
    },
    /// The answer to a [`Message::ReadRequest`].
    ReadAnswer {
        /// The leader's term.
        term: Term,
        /// As asked.
        batch: u64,
        /// Serve the reads once this index is applied.
        index: Index,
    },
    /// The leader wants the receiver, whose log is complete, to campaign at once.
    TimeoutNow {
        /// The leader's term.
        term: Term,
    },
    /// The sender no longer leads in `term`, although it does not know of a newer one.
    Abdicate {
        /// The term it led.
        term: Term,
    },
    /// Whoever leads in `term` is needed, or may not be there any more: it shall be heard, or say that it does not lead.
    Wake {
        /// The sender's term.
        term: Term,
    },
}

impl Message {
    /// The term that a receiver with an older one must enter; `None` for a question about a term that has not begun.
    pub(crate) fn binding_term(&self) -> Option<Term> {
        match self {
            Message::VoteRequest { pre: true, .. } => None,
            _ => Some(self.term()),
        }
    }

    /// The term of the message: the sender's, except in a pre-vote request, where it is the next one.
    pub fn term(&self) -> Term {
        match self {
            Message::VoteRequest { term, .. }
            | Message::VoteAnswer { term, .. }
            | Message::Append { term, .. }
            | Message::AppendAck { term, .. }
            | Message::AppendReject { term, .. }
            | Message::Diverged { term, .. }
            | Message::Stale { term }
            | Message::ReadRequest { term, .. }
            | Message::ReadAnswer { term, .. }
            | Message::TimeoutNow { term }
            | Message::Abdicate { term }
            | Message::Wake { term } => *term,
        }
    }
}
