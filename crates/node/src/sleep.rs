//! Sleep: idle groups sleep (`consensus`), and rely on what this node knows of other nodes.
//!
//! What a node owes its sleeping groups: it tells those that depend on another node when that node is silent or has started anew, it
//! wakes a group whose request waits for a leader, and after a start it wakes, at a limited rate, those that must not sleep without one.

use std::collections::VecDeque;

use hadron_consensus::{Event as CoreEvent, GroupId, Message, NodeId, ReplicaId};

use crate::event::Effects;
use crate::groups::Replica;
use crate::node::Node;
use crate::peer::PeerMessage;

/// Groups that a node wakes in a second because they need a leader although nobody asks for anything.
const WAKES_PER_SECOND: u64 = 100;

/// Groups that sleep without a leader and must not.
#[derive(Debug, Default)]
pub(crate) struct Dormant {
    /// To be woken, in this order.
    groups: VecDeque<GroupId>,
    /// The revision of the roster with which they were last looked for.
    looked_at: Option<i64>,
}

impl Node {
    /// `node` is silent: groups that it led look for a new leader, those that are led here whether they still have a quorum.
    pub(crate) fn suspect(&mut self, node: NodeId, effects: &mut Effects) {
        for (group, replica, _) in self.groups_with(node) {
            self.step_group(group, CoreEvent::Suspect { replica }, effects);
        }
    }

    /// `node` has a new process: groups that the old one led look for a new leader, those that are led here look after the replica
    /// that is back.
    pub(crate) fn on_restarted(&mut self, node: NodeId, effects: &mut Effects) {
        for (group, replica, is_led_here) in self.groups_with(node) {
            let event = if is_led_here { CoreEvent::Wake } else { CoreEvent::Suspect { replica } };
            self.step_group(group, event, effects);
        }
    }

    /// The groups that are led by a replica on `node`, or from here with one on `node`; that replica; and whether it is the latter.
    fn groups_with(&self, node: NodeId) -> Vec<(GroupId, ReplicaId, bool)> {
        let depends = |replica: &Replica| {
            let leader = replica.core.leader()?;
            let is_led_here = leader == replica.me;
            let there = if is_led_here { replica.replica_on(node)? } else { leader };
            (replica.node_of(there) == Some(node)).then_some((replica.id, there, is_led_here))
        };
        self.replicas.values().filter_map(depends).collect()
    }

    /// Shows whether a group sleeps. What its leader measures is measured a last time, so that it is not shown as of a moment at which
    /// somebody lagged.
    pub(crate) fn show_sleep(&mut self, group: GroupId) {
        let Some(replica) = self.replicas.get_mut(&group) else { return };
        let is_asleep = replica.core.is_asleep();
        if is_asleep && !replica.board.is_asleep() && replica.core.is_leader() {
            replica.sample_shares();
        }
        replica.board.set_asleep(is_asleep);
    }

    /// A request of a client waits for a leader that this replica does not know: unless it looks for one already, it does now. Returns
    /// whether it asked; the answers are no reason to ask again.
    pub(crate) fn wake_for_request(&mut self, group: GroupId, effects: &mut Effects) -> bool {
        let Some(replica) = self.replicas.get(&group) else { return false };
        let looks_for_one = !replica.core.is_asleep() && replica.core.voters().contains(replica.me);
        let asks = replica.core.leader().is_none() && !looks_for_one;
        if asks {
            self.step_group(group, CoreEvent::Wake, effects);
            self.wake_unknown(group, effects);
        }
        asks
    }

    /// A replica that no leader has told who its group is asks those for one who should know: they may all sleep.
    fn wake_unknown(&self, group: GroupId, effects: &mut Effects) {
        let is_told = |replica: &&Replica| !replica.core.configuration().voters.is_empty();
        let Some(replica) = self.replicas.get(&group).filter(|replica| !is_told(replica)) else { return };
        let Some(wanted) = self.wanted_seats(replica) else { return };
        let (from, term) = (replica.me, replica.core.term());
        let others = wanted.seats.iter().filter(|seat| seat.node != self.config.node);
        effects.sends.extend(others.map(|seat| {
            (seat.node, PeerMessage::Group { group, from, to: seat.replica, message: Message::Wake { term } })
        }));
    }

    /// With every heartbeat: wakes some of the groups that must not sleep without a leader. Not in the first moments after a start:
    /// whoever has a leader elsewhere hears of it first.
    pub(crate) fn wake_some(&mut self, effects: &mut Effects) {
        if self.now.micros_since(self.started_at) < self.config.election_timeout_us {
            return;
        }
        self.look_for_dormant();
        let shards = self.shard.count() as u64;
        let mut left = (WAKES_PER_SECOND * self.config.heartbeat_us / 1_000_000 / shards).max(1);
        while left > 0
            && let Some(group) = self.dormant.groups.pop_front()
        {
            if self.replicas.get(&group).is_some_and(Replica::is_dormant) {
                self.step_group(group, CoreEvent::Wake, effects);
                left -= 1;
            }
        }
    }

    /// Looks which groups need a leader, once after the start and after each change of the roster.
    fn look_for_dormant(&mut self) {
        let revision = self.newest_roster().0;
        if self.dormant.looked_at == Some(revision) {
            return;
        }
        self.dormant.looked_at = Some(revision);
        let needs_leader = |replica: &&Replica| self.needs_leader(replica);
        let mut groups: Vec<_> =
            self.replicas.values().filter(needs_leader).map(|replica| (replica.turn(), replica.id)).collect();
        groups.sort_unstable();
        self.dormant.groups = groups.into_iter().map(|(_, group)| group).collect();
    }
}

impl Node {
    /// A group came, or is wanted elsewhere: it is woken in its turn if it must not sleep without a leader.
    pub(crate) fn look_after_dormant(&mut self, group: GroupId) {
        if self.replicas.get(&group).is_some_and(|replica| self.needs_leader(replica)) {
            self.dormant.groups.push_back(group);
        }
    }

    /// Whether a replica sleeps and follows nobody although its group has something to do.
    fn needs_leader(&self, replica: &Replica) -> bool {
        let wanted_at = match replica.follows_roster {
            true => Some(self.newest_roster().0),
            false => self.board.with_catalog(|catalog| Some(catalog.placement(replica.id)?.revision)),
        };
        let is_behind = wanted_at.is_some_and(|revision| replica.places.revision < revision);
        replica.is_dormant() && (is_behind || replica.holds_leases() || replica.is_commit_uncertain())
    }
}

impl Replica {
    /// Whether it sleeps and follows nobody.
    fn is_dormant(&self) -> bool {
        self.core.is_asleep() && self.core.leader().is_none()
    }

    /// Its time stands still without a leader, and its leases never end.
    fn holds_leases(&self) -> bool {
        self.keyspace.next_expiry().is_some()
    }

    /// What was acknowledged may not be applied here, and nobody would ever say so.
    fn is_commit_uncertain(&self) -> bool {
        self.core.commit() < self.core.last()
    }

    /// Nodes that start together begin with different groups: whose turn it is with this one, 0 for this node's.
    fn turn(&self) -> u64 {
        let voters = self.core.configuration().voters.len().max(1) as u64;
        let before_me = self.core.voters().iter().filter(|voter| *voter < self.me).count() as u64;
        (self.id.0 + before_me) % voters
    }

    /// The replica of this group on `node`.
    fn replica_on(&self, node: NodeId) -> Option<ReplicaId> {
        self.places.nodes.iter().find(|(_, on)| **on == node).map(|(replica, _)| *replica)
    }
}
