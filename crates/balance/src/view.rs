//! What a planner sees: a [`View`] of the pool at one moment.
//!
//! Loads belong to groups and not to nodes. A node's load is the sum over the replicas that it has, plus what none of them accounts for,
//! so that it is right at once when a replica moves. A measured load of a node would be right a minute later, and a planner
//! that trusts it goes on moving in the meantime.

use std::collections::BTreeMap;

use hadron_consensus::{GroupId, NodeId, Time};

use crate::load::{Capacity, GroupLoad, Load};
use crate::moves::MoveKind;

/// The pool at one moment.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct View {
    /// The moment.
    pub now: Time,
    /// The nodes of the pool.
    pub nodes: BTreeMap<NodeId, NodeView>,
    /// The groups that are to be placed.
    pub groups: BTreeMap<GroupId, GroupView>,
    /// Moves that have been decided and are not done, at most one for a group. They are planned with as if they were done. Until then a
    /// replica that is to come is a learner, if it is there at all.
    pub moves: BTreeMap<GroupId, MoveKind>,
}

impl View {
    /// Nodes that can be reached and have not told yet what they have.
    pub fn unheard(&self) -> usize {
        self.nodes.values().filter(|node| node.state == NodeState::Alive && node.is_unheard()).count()
    }

    /// What a planner may plan with. Who has not told yet what it has, as all others when their planner has just begun, would be an empty
    /// node with an endless disk, and share its zone with all that are silent. It counts as one that fell silent just now, in a zone of its
    /// own: nothing comes to it, and nothing is taken from it.
    #[must_use]
    pub fn without_unheard(mut self) -> View {
        for (id, node) in self.nodes.iter_mut().filter(|(_, node)| node.is_unheard()) {
            node.zone = format!("of node {:x}", id.0);
            if node.state == NodeState::Alive {
                node.state = NodeState::Suspected { since: self.now };
                node.draining = false;
            }
        }
        self
    }
}

/// A node.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct NodeView {
    /// Where it stands: what fails together. Nodes without a zone are all in one, named by the empty string.
    pub zone: String,
    /// How much it has of each resource.
    pub capacity: Capacity,
    /// Whether it can be reached.
    pub state: NodeState,
    /// It is to be emptied.
    pub draining: bool,
    /// It has no vote in the root group: it keeps what it has, and is given nothing.
    pub learner: bool,
    /// Its disk.
    pub disk: Disk,
    /// The load that none of its groups accounts for.
    pub own_load: Load,
    /// The smoothed latency of fsync in microseconds; 0 when it is not known.
    pub fsync_us: f64,
}

/// Whether a node can be reached.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum NodeState {
    /// It can.
    #[default]
    Alive,
    /// It cannot since then. It may come back: its replicas are left alone for the grace time.
    Suspected {
        /// When it fell silent.
        since: Time,
    },
    /// It will not come back, or not with what it had: it was removed, or its disk is gone.
    Dead,
}

/// A node's disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Disk {
    /// Bytes in use.
    pub used: u64,
    /// Bytes there are; 0 when that is not known.
    pub total: u64,
}

/// A group.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct GroupView {
    /// How many voters it shall have.
    pub factor: usize,
    /// Its replicas. No two are on one node.
    pub replicas: Vec<ReplicaView>,
    /// The node of its leader, if there is one.
    pub leader: Option<NodeId>,
    /// What it costs the nodes that carry it: steady loads (see [`detect`](crate::detect)).
    pub load: GroupLoad,
    /// The bytes that a new replica has to be sent.
    pub bytes: u64,
    /// When its replicas or its leader were last changed on purpose: its load needs a while to be known again.
    pub changed_at: Option<Time>,
    /// Nodes that have yet to give up their last replica of it. Until they have they can take no other.
    pub leaving: Vec<NodeId>,
}

/// A replica.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReplicaView {
    /// Its node.
    pub node: NodeId,
    /// Whether it votes.
    pub role: ReplicaRole,
    /// The entries that it lacks.
    pub lag: u64,
    /// Its state is damaged: it votes at most, and serves nobody.
    pub is_damaged: bool,
}

/// Whether a replica votes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReplicaRole {
    /// It does.
    Voter,
    /// It does not: it has yet to catch up, or its promotion is on its way.
    Learner,
}

impl ReplicaView {
    /// A voter that lacks nothing.
    pub fn voter(node: NodeId) -> ReplicaView {
        ReplicaView { node, role: ReplicaRole::Voter, lag: 0, is_damaged: false }
    }

    /// A learner that lacks `lag` entries.
    pub fn learner(node: NodeId, lag: u64) -> ReplicaView {
        ReplicaView { node, role: ReplicaRole::Learner, lag, is_damaged: false }
    }
}

impl GroupView {
    /// The replica on `node`, if there is one.
    pub fn replica(&self, node: NodeId) -> Option<&ReplicaView> {
        self.replicas.iter().find(|replica| replica.node == node)
    }

    /// The nodes of its voters.
    pub fn voters(&self) -> impl Iterator<Item = NodeId> {
        self.replicas.iter().filter(|replica| replica.role == ReplicaRole::Voter).map(|replica| replica.node)
    }

    /// Changes the replicas and the leader as if `kind` were done.
    pub fn carry_out(&mut self, kind: &MoveKind) {
        if let Some(from) = kind.source() {
            self.replicas.retain(|replica| replica.node != from);
        }
        if let Some(to) = kind.destination() {
            self.replicas.retain(|replica| replica.node != to);
            self.replicas.push(ReplicaView::voter(to));
        }
        self.leader = kind.leader_after(self.leader);
    }
}

impl NodeView {
    fn is_unheard(&self) -> bool {
        self.capacity == Capacity::default()
    }

    /// Whether its replicas have to be rebuilt elsewhere. Who is to be emptied and out of reach has no grace.
    pub fn is_lost(&self, now: Time, grace_us: u64) -> bool {
        match self.state {
            NodeState::Alive => false,
            NodeState::Suspected { .. } if self.draining => true,
            NodeState::Suspected { since } => now.micros_since(since) >= grace_us,
            NodeState::Dead => true,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan;
    use crate::policy::Policy;

    /// A planner that had just begun filled whoever had not told it yet how full it is, and took replicas apart whose zones it did not know.
    #[test]
    fn nothing_is_planned_with_nodes_that_have_told_nothing_yet() {
        let capacity = Capacity::of(Load::each(|_| 10.0));
        let heard = |zone: &str| NodeView { zone: zone.into(), capacity, ..NodeView::default() };
        let mut view = View { now: Time(5), ..View::default() };
        for (id, zone) in [(1, "a"), (4, "d"), (5, "e")] {
            view.nodes.insert(NodeId(id), heard(zone));
        }
        for id in [2, 3, 6] {
            view.nodes.insert(NodeId(id), NodeView::default());
        }
        view.nodes.entry(NodeId(6)).and_modify(|node| node.draining = true);
        let load = GroupLoad { replica: Load::each(|_| 2.0), leader: Load::each(|_| 1.0) };
        let mut place = |id: u64, nodes: &[u64], factor: usize| {
            let replicas = nodes.iter().map(|node| ReplicaView::voter(NodeId(*node))).collect();
            let leader = nodes.first().map(|node| NodeId(*node));
            view.groups
                .insert(GroupId(id), GroupView { factor, replicas, leader, load, ..GroupView::default() });
        };
        place(1, &[4, 2, 5, 3, 1], 5);
        place(2, &[1, 4], 2);
        place(3, &[1, 5, 6], 3);
        let policy = Policy::default();
        assert_eq!(view.unheard(), 3);
        let destination = |it: &crate::Move| it.kind.destination();
        let planned = plan(&view, &policy);
        assert!(planned.iter().any(|it| destination(it).is_some_and(|node| [2, 3].contains(&node.0))));
        let known = view.without_unheard();
        assert_eq!(known.unheard(), 0);
        let planned = plan(&known, &policy);
        let touches = |it: &crate::Move| {
            [it.kind.source(), destination(it)].into_iter().flatten().any(|node| [2, 3, 6].contains(&node.0))
        };
        assert!(!planned.iter().any(touches), "{planned:?}");
    }
}
