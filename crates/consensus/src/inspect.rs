//! What a group can be asked: nothing here changes it.

use crate::entry::{Entry, HardState, LogPosition};
use crate::group::Group;
use crate::ids::{Index, ReplicaId, Term};
use crate::progress::Progress;
use crate::quorum::Voters;
use crate::role::{Role, RoleState};

/// What a group can be asked.
impl Group {
    /// The part this replica plays.
    pub fn role(&self) -> Role {
        match &self.role {
            RoleState::Follower(_) => Role::Follower,
            RoleState::Candidate(candidate) if candidate.pre => Role::PreCandidate,
            RoleState::Candidate(_) => Role::Candidate,
            RoleState::Leader(_) => Role::Leader,
        }
    }

    /// Whether this replica leads, as far as it knows.
    pub fn is_leader(&self) -> bool {
        self.role() == Role::Leader
    }

    /// The leader of the present term, if known.
    pub fn leader(&self) -> Option<ReplicaId> {
        match &self.role {
            RoleState::Follower(follower) => follower.leader,
            RoleState::Candidate(_) => None,
            RoleState::Leader(_) => Some(self.config.id),
        }
    }

    /// The present term.
    pub fn term(&self) -> Term {
        self.hard_state.term
    }

    /// The term, the vote and the commit index, durable or not.
    pub fn hard_state(&self) -> HardState {
        self.hard_state
    }

    /// The highest index known to be committed.
    pub fn commit(&self) -> Index {
        self.hard_state.commit
    }

    /// The index of the last entry of the log, durable or not.
    pub fn last(&self) -> Index {
        self.log.last().index
    }

    /// The log, as it is now, is durable here up to this index.
    pub fn durable(&self) -> Index {
        self.persistence.durable()
    }

    /// The position before the first retained entry.
    pub fn floor(&self) -> LogPosition {
        self.log.floor()
    }

    /// The retained entries, oldest first.
    pub fn entries(&self) -> impl DoubleEndedIterator<Item = &Entry> + ExactSizeIterator {
        self.log.entries()
    }

    /// The position at `index`, if it is retained or the floor.
    pub fn position_at(&self, index: Index) -> Option<LogPosition> {
        self.log.position_at(index)
    }

    /// The replicas that vote.
    pub fn voters(&self) -> &Voters {
        &self.voters
    }

    /// What this replica knows about each of the others; empty unless it leads.
    pub fn progress(&self) -> &[Progress] {
        match &self.role {
            RoleState::Leader(leader) => &leader.progress,
            _ => &[],
        }
    }

    /// Bytes of data in the retained entries.
    pub fn log_bytes(&self) -> usize {
        self.log.bytes()
    }

    /// Bytes of entries that wait for a quorum; 0 unless this replica leads.
    pub fn uncommitted_bytes(&self) -> usize {
        match &self.role {
            RoleState::Leader(leader) => leader.uncommitted_bytes,
            _ => 0,
        }
    }

    /// Whether this replica votes.
    pub(crate) fn is_voter(&self) -> bool {
        self.voters.contains(self.config.id)
    }

    /// Whether this replica may become leader. Also one that votes no more must stand until that is committed: it may be
    /// the only one whose log is complete (Ongaro 2014, §4.2.2). It does not count itself then.
    pub(crate) fn may_campaign(&self) -> bool {
        (self.is_voter() || self.membership.may_vote_again(self.config.id)) && !self.retired
    }

    pub(crate) fn status(&self) -> (Role, Term, Option<ReplicaId>) {
        (self.role(), self.hard_state.term, self.leader())
    }
}
