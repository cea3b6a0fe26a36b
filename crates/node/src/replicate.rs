//! Replicate: what a group wants done becomes what the node wants done, and messages of other replicas come in.

use hadron_consensus::{
    ConfigurationError, Effects as CoreEffects, Election, Event as CoreEvent, GroupId, NodeId, Outcome,
    ReplicaId, Term,
};

use crate::apply::cannot_be_read;
use crate::board::ElectionRecord;
use crate::clock::GroupClock;
use crate::event::{Effects, Failure, Reply};
use crate::liveness::GroupContacts;
use crate::node::Node;
use crate::peer::PeerMessage;
use crate::snapshot::Feeding;

impl Node {
    /// Steps one group and takes over its effects. Returns the answer to a proposal, if the event was one.
    pub(crate) fn step_group(
        &mut self,
        group: GroupId,
        event: CoreEvent,
        effects: &mut Effects,
    ) -> Option<Outcome> {
        let replica = self.replicas.get_mut(&group)?;
        let contacts = GroupContacts { now: self.now, liveness: &self.liveness, places: &replica.places };
        let mut core = std::mem::take(&mut self.core_effects);
        replica.core.step(self.now, &contacts, event, &mut core);
        let outcome = core.proposals.pop();
        self.touch(group);
        self.absorb(group, &mut core, effects);
        self.core_effects = core;
        outcome
    }

    /// Takes over a group's effects; leaves `core` empty, with its buffers.
    fn absorb(&mut self, group: GroupId, core: &mut CoreEffects, effects: &mut Effects) {
        if std::mem::take(&mut core.is_reconfigured) && !self.on_reconfigured(group, effects) {
            // What this version cannot read does not come to its log, from which it could not start any more.
            *core = CoreEffects::default();
            return;
        }
        if core.status_changed {
            core.status_changed = false;
            self.on_status_changed(group, effects);
        }
        if !core.persist.is_empty() {
            self.persist(group, core.persist.drain(..), effects);
        }
        if let Some(replica) = self.replicas.get_mut(&group) {
            let me = replica.me;
            for (to, message) in core.messages.drain(..) {
                if let Some(node) = replica.node_of(to) {
                    effects.sends.push((node, PeerMessage::Group { group, from: me, to, message }));
                }
            }
            replica.unapplied.extend(core.committed.drain(..));
        }
        if !core.reads.is_empty() {
            self.on_read_outcomes(group, core.reads.drain(..));
        }
        if !core.snapshots.is_empty() {
            self.send_snapshots(group, core.snapshots.drain(..), effects);
        }
        for election in core.elections.drain(..) {
            self.announce(group, election, effects);
        }
        if let Some(divergence) = core.divergence.take() {
            self.on_divergence(group, divergence, effects);
        }
        if let Some(amnesia) = core.amnesia.take() {
            self.on_amnesia(group, amnesia, effects);
        }
        if let Some(index) = core.unreadable.take() {
            effects.fatal = Some(cannot_be_read(group, index, &ConfigurationError.to_string()));
        }
    }

    /// A message for a replica of this node. One for a replica that is not here is dropped: it is late, or lost.
    pub(crate) fn on_group_message(
        &mut self,
        from_node: NodeId,
        group: GroupId,
        from: ReplicaId,
        to: ReplicaId,
        message: hadron_consensus::Message,
        effects: &mut Effects,
    ) {
        let Some(replica) = self.replicas.get_mut(&group) else { return };
        if replica.me != to || !replica.is_plausible(from, from_node) {
            return;
        }
        let held = replica.core.log_bytes();
        self.step_group(group, CoreEvent::Message { from, message }, effects);
        if self.replicas.get(&group).is_some_and(|replica| replica.core.log_bytes() > held) {
            self.heed_log(group, effects);
        }
    }

    fn on_status_changed(&mut self, group: GroupId, effects: &mut Effects) {
        let now = self.now;
        let Some(replica) = self.replicas.get_mut(&group) else { return };
        let leader = replica.leader_node();
        let known = replica.board.leader();
        let was_leader = known == Some(self.config.node);
        let is_leader = replica.core.is_leader();
        if leader != known || replica.core.term() != replica.board.term() {
            let leader = leader.map_or("none".to_owned(), |node| format!("{:x}", node.0));
            tracing::info!(group = group.0, term = replica.core.term().0, leader, "leader changed");
        }
        if is_leader && (!was_leader || replica.core.term() != replica.board.term()) {
            replica.clock = GroupClock::new(replica.last_stamp_ms(), now);
            replica.board.set_clock(replica.clock);
            replica.integrity.next_at = now;
            replica.stamped_at = now;
            replica.expiry_pending_until = None;
        }
        if was_leader && !is_leader {
            replica.forget_checks();
            // What is on its way goes on, and is not begun anew should this replica lead again.
            replica.fed.retain(|_, feeding| *feeding != Feeding::CatchesUp);
        }
        replica.board.set_status(leader, replica.core.term(), replica.core.commit().0);
        if leader.is_some() {
            replica.reads.retry_at = None;
            replica.hold_until = replica.hold_until.filter(|_| leader == known);
        }
        let transferred = replica.transfer.filter(|(_, to)| replica.core.leader() == Some(*to));
        if let Some((token, _)) = transferred {
            replica.transfer = None;
            effects.replies.push((token, Reply::Transferred));
        }
    }

    /// Hands leadership over on request.
    pub(crate) fn on_transfer(&mut self, token: u64, group: GroupId, to: NodeId, effects: &mut Effects) {
        let Some(replica) = self.replicas.get_mut(&group) else {
            return effects.replies.push((token, Reply::Failed(Failure::NoSuchGroup)));
        };
        let Some(target) = replica.voter_on(to) else {
            return effects.replies.push((token, Reply::Failed(Failure::BadTransferTarget)));
        };
        if replica.core.leader() == Some(target) {
            return effects.replies.push((token, Reply::Transferred));
        }
        if !replica.core.is_leader() {
            return effects.replies.push((token, Reply::Failed(Failure::NotLeader)));
        }
        if let Some((earlier, _)) = replica.transfer.replace((token, target)) {
            effects.replies.push((earlier, Reply::Failed(Failure::Unknown)));
        }
        self.step_group(group, CoreEvent::TransferLeader { to: target }, effects);
    }

    /// Hands leadership over because whoever plans wants it, if that can be done; otherwise there will be another plan.
    pub(crate) fn hand_over_to(&mut self, group: GroupId, from: NodeId, to: NodeId, effects: &mut Effects) {
        if from != self.config.node {
            return effects.sends.push((from, PeerMessage::HandOver { group, to }));
        }
        let Some(replica) = self.replicas.get(&group).filter(|replica| replica.core.is_leader()) else {
            // Whoever plans takes one for the leader where there is none. Once there is one, the next plan says it again.
            self.wake_for_request(group, effects);
            return;
        };
        let may_take_over = |to: &ReplicaId| {
            replica.has_caught_up(*to) && self.successors(replica).any(|other| other.replica == *to)
        };
        let is_asked = replica.transfer.is_some();
        if let Some(to) = replica.voter_on(to).filter(|to| !is_asked && may_take_over(to)) {
            self.step_group(group, CoreEvent::TransferLeader { to }, effects);
        }
    }

    /// Records an election that this node's replica counted, and tells the others.
    fn announce(&mut self, group: GroupId, election: Election, effects: &mut Effects) {
        let Some(replica) = self.replicas.get(&group) else { return };
        let on_node =
            |(replica_id, count): (&ReplicaId, &u64)| replica.node_of(*replica_id).map(|node| (node, *count));
        let votes: Vec<(NodeId, u64)> = election.votes.iter().filter_map(on_node).collect();
        let candidate = self.config.node;
        let message = PeerMessage::Elected {
            group,
            term: election.term,
            candidate,
            won: election.won,
            votes: votes.clone(),
        };
        let others = replica.places.nodes.values().filter(|node| **node != candidate);
        effects.sends.extend(others.map(|node| (*node, message.clone())));
        self.on_elected(group, election.term, candidate, election.won, votes);
    }

    /// Remembers an election.
    pub(crate) fn on_elected(
        &mut self,
        group: GroupId,
        term: Term,
        candidate: NodeId,
        won: bool,
        votes: Vec<(NodeId, u64)>,
    ) {
        let votes = votes.into_iter().collect();
        self.board.add_election(ElectionRecord { group, term, candidate, won, votes, at: self.now });
    }
}
