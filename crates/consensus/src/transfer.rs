//! Leadership transfer: the leader stops taking proposals, waits until the target has its whole log, and asks it to
//! campaign at once. The target skips the pre-vote, and voters are not loyal to the leader, because it is the leader
//! itself who asks. If nothing comes of it within an election timeout, the leader goes on leading.

use crate::event::Effects;
use crate::group::Group;
use crate::ids::{ReplicaId, Term, Time};
use crate::message::Message;
use crate::role::RoleState;

/// A transfer under way.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Transfer {
    /// The leader to be.
    pub(crate) to: ReplicaId,
    /// When the leader gives it up.
    pub(crate) until: Time,
    /// The target has been asked to campaign.
    asked: bool,
}

impl Group {
    /// Begins a transfer to a voter; replaces one to another voter.
    pub(crate) fn on_transfer(&mut self, to: ReplicaId) {
        let until = self.now.plus_micros(self.config.election_timeout_us);
        let RoleState::Leader(leader) = &mut self.role else { return };
        let is_under_way = leader.transfer.is_some_and(|transfer| transfer.to == to);
        if to == self.config.id || !self.membership.current().voters.contains(&to) || is_under_way {
            return;
        }
        leader.transfer = Some(Transfer { to, until, asked: false });
    }

    /// Gives up a transfer that takes too long, and asks a target that is ready.
    pub(crate) fn advance_transfer(&mut self, effects: &mut Effects) {
        let last = self.log.last().index;
        let RoleState::Leader(leader) = &mut self.role else { return };
        let Some(transfer) = &mut leader.transfer else { return };
        if self.now >= transfer.until {
            leader.transfer = None;
            return;
        }
        let is_ready = |to| leader.progress.iter().any(|other| other.replica == to && other.matched == last);
        if !transfer.asked && is_ready(transfer.to) {
            transfer.asked = true;
            effects.messages.push((transfer.to, Message::TimeoutNow { term: self.hard_state.term }));
        }
    }

    /// The leader asks this replica to take over.
    pub(crate) fn on_timeout_now(&mut self, from: ReplicaId, term: Term, effects: &mut Effects) {
        if term == self.hard_state.term && self.leader() == Some(from) && self.may_campaign() {
            self.start_election(true, effects);
        }
    }
}
