//! One pool: who has which replicas, what is on its way, and what becomes of it.
//!
//! A move goes step by step, as [`next_step`] says, and a learner catches up as fast as its bytes arrive. Elections take no time.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use hadron_balance::{
    Capacity, Disk, GroupView, Move, MoveKind, NodeState, NodeView, Policy, ReplicaRole, ReplicaView,
    Resource, Step, View, next_step,
};
use hadron_consensus::{GroupId, NodeId, Time};
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};
use rustix::time::{ClockId, clock_gettime};

use super::Settings;
use super::report::Tally;
use super::trouble::Trouble;
use super::workload::{Workload, capacity};

/// Zones, with as many nodes each.
const ZONES: usize = 5;
/// Replicas of each keyspace.
const FACTOR: usize = 3;
/// What a learner is sent in a second.
const BYTES_PER_SECOND: u64 = 50_000_000;
/// One in so many nodes has twice the capacity of the others.
const LARGE_ONE_IN: usize = 5;
/// One in so many nodes has a disk that others have filled nearly up to the limit.
const FULL_ONE_IN: usize = 33;

/// A planner.
pub(super) type Planner = fn(&View, &Policy) -> Vec<Move>;

/// A pool.
#[derive(Clone)]
pub(super) struct Pool {
    pub(super) view: View,
    pub(super) policy: Policy,
    planner: Planner,
    pub(super) tally: Tally,
    /// Moves on their way: why, and the bytes that have to arrive yet.
    under_way: BTreeMap<GroupId, UnderWay>,
    next_node: u64,
}

#[derive(Clone)]
struct UnderWay {
    reason: &'static str,
    is_balancing: bool,
    bytes_left: u64,
}

impl Pool {
    /// Nodes in zones, and the replicas of each keyspace at random in three different ones.
    pub(super) fn new(settings: &Settings, workload: &Workload, planner: Planner) -> Pool {
        let mut random = StdRng::seed_from_u64(settings.seed ^ 0x706f_6f6c);
        let mut pool = Pool {
            view: View::default(),
            policy: Policy::default(),
            planner,
            tally: Tally::default(),
            under_way: BTreeMap::new(),
            next_node: 1,
        };
        (0..settings.nodes).for_each(|_| pool.add_node());
        let mut zones: BTreeMap<String, Vec<NodeId>> = BTreeMap::new();
        for (id, node) in &pool.view.nodes {
            zones.entry(node.zone.clone()).or_default().push(*id);
        }
        let mut zones: Vec<Vec<NodeId>> = zones.into_values().collect();
        for (id, bytes) in workload.bytes() {
            zones.shuffle(&mut random);
            let nodes: Vec<NodeId> =
                zones.iter().take(FACTOR).map(|zone| zone[random.random_range(0..zone.len())]).collect();
            pool.add_group(id, bytes, &nodes);
        }
        pool
    }

    /// The same pool with another planner.
    pub(super) fn planned_by(&self, planner: Planner) -> Pool {
        Pool { planner, ..self.clone() }
    }

    fn add_node(&mut self) {
        let number = self.next_node as usize;
        self.next_node += 1;
        let size = if number.is_multiple_of(LARGE_ONE_IN) { 2.0 } else { 1.0 };
        let amounts = capacity() * size;
        let total = amounts[Resource::Storage] as u64;
        let used = if number.is_multiple_of(FULL_ONE_IN) { total / 10 * 7 } else { 0 };
        let node = NodeView {
            zone: format!("zone-{}", number % ZONES),
            capacity: Capacity::of(amounts),
            disk: Disk { used, total },
            ..NodeView::default()
        };
        self.view.nodes.insert(NodeId(number as u64), node);
    }

    fn add_group(&mut self, id: GroupId, bytes: u64, nodes: &[NodeId]) {
        let replicas = nodes.iter().map(|node| ReplicaView::voter(*node)).collect();
        let group = GroupView {
            factor: FACTOR,
            replicas,
            leader: nodes.first().copied(),
            bytes,
            ..GroupView::default()
        };
        self.view.groups.insert(id, group);
        nodes.iter().for_each(|node| self.fill_disk(*node, bytes));
    }

    fn fill_disk(&mut self, node: NodeId, bytes: u64) {
        self.view.nodes.get_mut(&node).into_iter().for_each(|node| node.disk.used += bytes);
    }

    fn free_disk(&mut self, node: NodeId, bytes: u64) {
        let nodes = self.view.nodes.get_mut(&node).into_iter();
        nodes.for_each(|node| node.disk.used = node.disk.used.saturating_sub(bytes));
    }

    /// Plans, and begins what was planned. How long the plan took of a processor: others may want it too.
    pub(super) fn plan(&mut self) -> Duration {
        let began = processor_time();
        let moves = (self.planner)(&self.view, &self.policy);
        let took = processor_time().saturating_sub(began);
        for it in moves {
            let (reason, is_balancing) = (it.reason.name(), it.reason.is_balancing());
            let bytes_left = self.view.groups[&it.group].bytes;
            self.tally.begin(self.view.now, &it);
            self.under_way.insert(it.group, UnderWay { reason, is_balancing, bytes_left });
            self.view.moves.insert(it.group, it.kind);
        }
        took
    }

    /// Time passes: moves go on.
    pub(super) fn advance(&mut self, now: Time, elapsed_us: u64) {
        self.view.now = now;
        let moves: Vec<(GroupId, MoveKind)> = self.view.moves.iter().map(|(id, kind)| (*id, *kind)).collect();
        let bytes = BYTES_PER_SECOND * elapsed_us / 1_000_000;
        for (id, kind) in moves {
            self.receive(id, bytes);
            while self.step(id, &kind) {}
        }
        self.forget_the_empty();
    }

    /// The learner of a move gets some bytes, if both ends can be reached.
    fn receive(&mut self, id: GroupId, bytes: u64) {
        let Some(group) = self.view.groups.get_mut(&id) else { return };
        let Some(learner) = group.replicas.iter_mut().find(|it| it.role == ReplicaRole::Learner) else {
            return;
        };
        let is_alive = self.view.nodes.get(&learner.node).is_some_and(|node| node.state == NodeState::Alive);
        if let Some(it) = self.under_way.get_mut(&id).filter(|_| is_alive && group.leader.is_some()) {
            let sent = bytes.min(it.bytes_left);
            it.bytes_left -= sent;
            learner.lag = it.bytes_left / 1_000;
            self.tally.sent(it.reason, it.is_balancing, sent);
        }
    }

    /// Does what the next step asks for. True if another may follow at once.
    fn step(&mut self, id: GroupId, kind: &MoveKind) -> bool {
        let Some(group) = self.view.groups.get(&id) else { return false };
        let step = next_step(&self.view, group, kind, &self.policy);
        let is_led = group.leader.is_some();
        let bytes = group.bytes;
        match step {
            Step::CatchUp { .. } => return false,
            Step::Done => self.end(id, true),
            Step::Abandon(_) => self.end(id, false),
            // Nothing is changed without a leader.
            _ if !is_led => return false,
            Step::AddLearner { to } => {
                self.tally.place(&self.view, &self.policy, to, bytes);
                self.fill_disk(to, bytes);
                self.change(id, |group| group.replicas.push(ReplicaView::learner(to, bytes.max(1_000_000))));
            }
            Step::Promote { to } => self.change(id, |group| group.carry_out(&MoveKind::AddReplica { to })),
            Step::TransferLeader { to } => self.change(id, |group| group.leader = Some(to)),
            Step::Remove { from } => {
                self.free_disk(from, bytes);
                self.change(id, |group| group.carry_out(&MoveKind::RemoveReplica { from }));
                let nodes = &self.view.nodes;
                self.view.groups.get_mut(&id).into_iter().for_each(|group| elect(nodes, id, group));
            }
        }
        !matches!(step, Step::Done | Step::Abandon(_))
    }

    fn change(&mut self, id: GroupId, change: impl FnMut(&mut GroupView)) {
        self.view.groups.get_mut(&id).into_iter().for_each(change);
    }

    fn end(&mut self, id: GroupId, is_done: bool) {
        self.view.moves.remove(&id);
        self.under_way.remove(&id);
        self.tally.end(is_done);
        let now = self.view.now;
        self.change(id, |group| group.changed_at = Some(now));
    }

    /// Something happens to the nodes.
    pub(super) fn suffer(&mut self, trouble: &Trouble, now: Time) {
        match trouble {
            Trouble::Falls { nodes, .. } => self.set_state(nodes, NodeState::Suspected { since: now }),
            Trouble::Returns { nodes, .. } => self.set_state(nodes, NodeState::Alive),
            Trouble::Join { count } => (0..*count).for_each(|_| self.add_node()),
            Trouble::Drain { nodes } => {
                for node in nodes {
                    self.view.nodes.get_mut(node).into_iter().for_each(|node| node.draining = true);
                }
            }
        }
    }

    fn set_state(&mut self, nodes: &[NodeId], state: NodeState) {
        for node in nodes {
            self.view.nodes.get_mut(node).into_iter().for_each(|node| node.state = state);
        }
        let nodes = &self.view.nodes;
        self.view.groups.iter_mut().for_each(|(id, group)| elect(nodes, *id, group));
    }

    /// Nodes that were to be emptied and are leave the pool.
    fn forget_the_empty(&mut self) {
        let draining: Vec<NodeId> =
            self.view.nodes.iter().filter(|(_, node)| node.draining).map(|(id, _)| *id).collect();
        if draining.is_empty() {
            return;
        }
        let groups = self.view.groups.values();
        let needed: BTreeSet<NodeId> =
            groups.flat_map(|group| &group.replicas).map(|replica| replica.node).collect();
        for node in draining.into_iter().filter(|node| !needed.contains(node)) {
            self.view.nodes.remove(&node);
            self.tally.left += 1;
        }
    }
}

/// What this thread has taken of a processor so far.
fn processor_time() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec.unsigned_abs(), time.tv_nsec.try_into().unwrap_or_default())
}

/// A group whose leader cannot be reached elects another, if a majority can be.
fn elect(nodes: &BTreeMap<NodeId, NodeView>, id: GroupId, group: &mut GroupView) {
    let is_alive = |id: &NodeId| nodes.get(id).is_some_and(|node| node.state == NodeState::Alive);
    let alive: Vec<NodeId> = group.voters().filter(is_alive).collect();
    let has_quorum = alive.len() > group.voters().count() / 2;
    let stays = group.leader.filter(|leader| alive.contains(leader));
    let elected = alive.get(id.0 as usize % alive.len().max(1)).copied();
    group.leader = stays.or(elected).filter(|_| has_quorum);
}
