//! What a planner would do with a view, round after round, and where that leads: without anybody doing it.
//!
//! Loads stay as they are, moves take no time and none fails. Between two rounds passes what a group rests after a change, so that
//! the first round is what would be decided now. A disk that is slow now is not in later rounds.

use std::collections::BTreeMap;

use hadron_consensus::NodeId;

use crate::assess::{Assessment, assess};
use crate::load::Load;
use crate::moves::{Move, MoveKind};
use crate::plan::plan;
use crate::policy::Policy;
use crate::view::{Disk, NodeState, NodeView, View};

/// What would become of a pool.
#[derive(Clone, Debug, PartialEq)]
pub struct Simulation {
    /// How it stands, with the moves in progress done.
    pub before: Assessment,
    /// How it would stand.
    pub after: Assessment,
    /// The moves of each round.
    pub rounds: Vec<Vec<Move>>,
    /// Nothing would be left to do. False if there was still something after the last round.
    pub is_settled: bool,
    /// The pool as it would be.
    pub view: View,
}

/// Plans and carries out until nothing is left to do, `rounds_max` times at most.
pub fn simulate(view: &View, policy: &Policy, rounds_max: usize) -> Simulation {
    let mut next = view.clone();
    std::mem::take(&mut next.moves).into_iter().for_each(|(group, kind)| next.carry_out(group, &kind));
    next.groups.values_mut().for_each(|group| group.leaving.clear());
    let before = assess(&next, policy);
    let mut rounds = Vec::new();
    let is_settled = loop {
        let moves = plan(&next, policy);
        if moves.is_empty() && !next.has_slow_nodes(policy) {
            break true;
        }
        if rounds.len() == rounds_max {
            break false;
        }
        moves.iter().for_each(|it| next.carry_out(it.group, &it.kind));
        next.pass(policy);
        rounds.extend(Some(moves).filter(|moves| !moves.is_empty()));
    };
    Simulation { before, after: assess(&next, policy), rounds, is_settled, view: next }
}

impl View {
    /// Adds `count` nodes that have nothing, each like the first that can be reached, in the zone with the fewest nodes. Returns their ids.
    pub fn add_nodes(&mut self, count: usize) -> Vec<NodeId> {
        let alive = self.nodes.values().find(|node| node.state == NodeState::Alive && !node.draining);
        let Some(model) = alive.cloned() else { return Vec::new() };
        let disk = Disk { used: 0, ..model.disk };
        let model = NodeView { own_load: Load::ZERO, disk, learner: false, ..model };
        let unused = (1..).map(NodeId).filter(|id| !self.nodes.contains_key(id));
        let ids: Vec<NodeId> = unused.take(count).collect();
        for id in &ids {
            let zone = self.smallest_zone();
            self.nodes.insert(*id, NodeView { zone, ..model.clone() });
        }
        ids
    }

    /// Takes a node away for good, with what it has.
    pub fn lose(&mut self, node: NodeId) {
        self.nodes.get_mut(&node).into_iter().for_each(|node| node.state = NodeState::Dead);
        let led = self.groups.values_mut().filter(|group| group.leader == Some(node));
        for group in led {
            let alive = |id: &NodeId| self.nodes.get(id).is_some_and(|it| it.state == NodeState::Alive);
            let heirs: Vec<NodeId> = group.voters().filter(alive).collect();
            let has_quorum = heirs.len() > group.voters().count() / 2;
            group.leader = heirs.first().copied().filter(|_| has_quorum);
        }
    }

    fn smallest_zone(&self) -> String {
        let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
        self.nodes.values().for_each(|node| *counts.entry(&node.zone).or_default() += 1);
        let smallest = counts.into_iter().min_by_key(|(_, count)| *count);
        smallest.map_or_else(String::new, |(zone, _)| zone.to_owned())
    }

    /// Changes groups and disks as if a move were done.
    fn carry_out(&mut self, id: hadron_consensus::GroupId, kind: &MoveKind) {
        let Some(group) = self.groups.get_mut(&id) else { return };
        let bytes = group.bytes;
        group.carry_out(kind);
        let is_alive = |node: &NodeId| self.nodes.get(node).is_some_and(|it| it.state == NodeState::Alive);
        group.leader = group.leader.filter(is_alive).or_else(|| group.voters().find(is_alive));
        group.changed_at = Some(self.now);
        let mut change = |node: Option<NodeId>, change: fn(u64, u64) -> u64| {
            let node = node.and_then(|node| self.nodes.get_mut(&node));
            node.into_iter().for_each(|node| node.disk.used = change(node.disk.used, bytes));
        };
        change(kind.destination(), u64::saturating_add);
        change(kind.source(), u64::saturating_sub);
    }

    /// Whether somebody is given nothing because an fsync takes long.
    fn has_slow_nodes(&self, policy: &Policy) -> bool {
        self.nodes.values().any(|node| node.fsync_us > policy.fsync_us_max)
    }

    /// Lets groups rest, and disks recover. Who is out of reach is so no longer than before.
    fn pass(&mut self, policy: &Policy) {
        self.nodes.values_mut().for_each(|node| node.fsync_us = 0.0);
        let now = self.now;
        self.now = now.plus_micros(policy.cool_down_us);
        for node in self.nodes.values_mut().filter(|node| !node.is_lost(now, policy.grace_us)) {
            if let NodeState::Suspected { since } = &mut node.state {
                *since = since.plus_micros(policy.cool_down_us);
            }
        }
    }
}
