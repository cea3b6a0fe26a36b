//! What a replica is at the moment, and what it needs to know for that, and nothing else: the state of a leader exists
//! only while it leads.

use crate::ids::{Index, ReplicaId, Term, Time};
use crate::quorum::{Tally, Voters};
use crate::replication::Leader;

/// The part that a replica plays in its group.
///
/// ```text
///               timer: the leader's node is silent,            a quorum would
///               or there is no leader            ┌───────────┐ vote for it    ┌───────────┐
///   start ──▶ ┌──────────┐ ────────────────────▶ │    Pre-   │ ─────────────▶ │ Candidate │
///             │ Follower │                       │ candidate │                │ (term + 1)│
///             │          │ ◀──────────────────── └───────────┘ ◀───────────── └───────────┘
///             │ (learners│   refused, a leader or            timer: no result    │     │
///             │   stay)  │   a higher term appears                               │     │
///             │          │ ◀─────────────────────────────────────────────────────┘     │
///             │          │   lost, a leader or a higher term appears                   │ a quorum
///             │          │                                          ┌────────┐         │ voted
///             │          │ ◀─────────────────────────────────────── │ Leader │ ◀───────┘ for it
///             └──────────┘   a higher term appears, or a quorum     └────────┘
///                            of the voters' nodes is silent
/// ```
/// A leadership transfer goes from follower to candidate directly.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Takes entries from the leader, if there is one. Learners are always followers.
    Follower,
    /// Asks whether it would be elected, without disturbing anybody.
    PreCandidate,
    /// Asks for votes.
    Candidate,
    /// Decides what is in the log.
    Leader,
}

/// The role with its state.
#[derive(Debug)]
pub(crate) enum RoleState {
    Follower(Follower),
    Candidate(Candidate),
    Leader(Box<Leader>),
}

/// State of a follower.
#[derive(Debug)]
pub(crate) struct Follower {
    /// The leader of the present term, once it is known.
    pub(crate) leader: Option<ReplicaId>,
    /// When it became known: until an election timeout after that, its node need not have been heard from.
    pub(crate) since: Time,
    /// When the leader last said something in this group.
    pub(crate) heard_at: Time,
    /// When its node was last suspected.
    pub(crate) suspected_at: Option<Time>,
    /// The log is known to be equal to the leader's up to here. At least the commit index.
    pub(crate) verified: Index,
    /// What the leader has been told of that, or will be in answer to its first probe. `acknowledged <= verified`.
    pub(crate) acknowledged: Index,
    /// The leader wants an answer, whatever there is to say.
    pub(crate) answer_owed: bool,
    /// The newest round of reads seen.
    pub(crate) round: u64,
    /// The leader's last append asks this replica to sleep.
    pub(crate) sleep_asked: bool,
    /// Keeps no election timer.
    pub(crate) asleep: bool,
}

impl Follower {
    /// A follower that knows no more than that everything up to `commit` is right.
    pub(crate) fn new(leader: Option<ReplicaId>, now: Time, commit: Index) -> Follower {
        Follower {
            leader,
            since: now,
            heard_at: now,
            suspected_at: None,
            verified: commit,
            acknowledged: commit,
            answer_owed: false,
            round: 0,
            sleep_asked: false,
            asleep: false,
        }
    }
}

/// State of a candidate or pre-candidate.
#[derive(Debug)]
pub(crate) struct Candidate {
    /// Only asking whether it would be elected.
    pub(crate) pre: bool,
    /// The term of the election.
    pub(crate) election: Term,
    /// One per voter that answered.
    pub(crate) answers: Vec<VoteAnswer>,
}

/// One voter's answer.
#[derive(Clone, Copy, Debug)]
pub(crate) struct VoteAnswer {
    pub(crate) voter: ReplicaId,
    pub(crate) granted: bool,
    pub(crate) voted_for: Option<ReplicaId>,
}

impl Candidate {
    /// A ballot without answers.
    pub(crate) fn new(pre: bool, election: Term) -> Candidate {
        Candidate { pre, election, answers: Vec::new() }
    }

    /// Takes a voter's first answer; repetitions do not count.
    pub(crate) fn record(&mut self, answer: VoteAnswer) {
        if !self.has_answered(answer.voter) {
            self.answers.push(answer);
        }
    }

    /// Whether `voter`'s answer is in.
    pub(crate) fn has_answered(&self, voter: ReplicaId) -> bool {
        self.answers.iter().any(|answer| answer.voter == voter)
    }

    /// Where the ballot stands.
    pub(crate) fn tally(&self, voters: &Voters) -> Tally {
        voters.tally(|voter| {
            self.answers.iter().find(|answer| answer.voter == voter).map(|answer| answer.granted)
        })
    }
}
