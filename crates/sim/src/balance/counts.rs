//! The planner to compare with: it balances how many replicas and leaders nodes have, whatever they cost. What is broken it mends as
//! ours does.

use std::collections::{BTreeMap, BTreeSet};

use hadron_balance::{
    Effect, GroupView, Move, MoveKind, NodeState, NodeView, Policy, Reason, Resource, View,
};
use hadron_consensus::{GroupId, NodeId};

/// How far from the mean a count may be.
const BAND: f64 = 0.05;

/// What is to be done now.
pub(super) fn plan(view: &View, policy: &Policy) -> Vec<Move> {
    let moves = hadron_balance::plan(view, &Policy { balance: false, ..policy.clone() });
    let mut counts = Counts::new(view, policy, moves);
    counts.level(false);
    counts.level(true);
    counts.moves
}

/// Nodes by what they have, as if all moves were done.
struct Counts<'a> {
    view: &'a View,
    policy: &'a Policy,
    moves: Vec<Move>,
    seats: BTreeMap<NodeId, Seat<'a>>,
    busy: BTreeSet<GroupId>,
    builds_left: usize,
    transfers_left: usize,
}

struct Seat<'a> {
    node: &'a NodeView,
    held: Vec<GroupId>,
    replicas: usize,
    leaders: usize,
    incoming: usize,
    outgoing: usize,
    disk_used: u64,
}

impl Seat<'_> {
    fn count(&self, of_leaders: bool) -> f64 {
        (if of_leaders { self.leaders } else { self.replicas }) as f64
    }

    fn receives(&self) -> bool {
        self.node.state == NodeState::Alive && !self.node.draining
    }
}

impl<'a> Counts<'a> {
    fn new(view: &'a View, policy: &'a Policy, moves: Vec<Move>) -> Counts<'a> {
        let seat = |node: &'a NodeView| Seat {
            node,
            held: Vec::new(),
            replicas: 0,
            leaders: 0,
            incoming: 0,
            outgoing: 0,
            disk_used: node.disk.used,
        };
        let mut counts = Counts {
            view,
            policy,
            seats: view.nodes.iter().map(|(id, node)| (*id, seat(node))).collect(),
            busy: BTreeSet::new(),
            builds_left: policy.moves_max(view.nodes.len()),
            transfers_left: policy.transfers_max,
            moves: Vec::new(),
        };
        for (id, group) in &view.groups {
            group.replicas.iter().for_each(|replica| counts.seat(replica.node, |seat| seat.held.push(*id)));
            group.replicas.iter().for_each(|replica| counts.seat(replica.node, |seat| seat.replicas += 1));
            group.leader.into_iter().for_each(|leader| counts.seat(leader, |seat| seat.leaders += 1));
        }
        view.moves.iter().for_each(|(id, kind)| counts.carry_out(*id, kind));
        moves.iter().for_each(|it| counts.carry_out(it.group, &it.kind));
        counts.moves = moves;
        counts
    }

    fn seat(&mut self, node: NodeId, change: impl FnMut(&mut Seat<'a>)) {
        self.seats.get_mut(&node).into_iter().for_each(change);
    }

    fn carry_out(&mut self, id: GroupId, kind: &MoveKind) {
        self.busy.insert(id);
        let Some(group) = self.view.groups.get(&id) else { return };
        if let Some(to) = kind.destination() {
            self.builds_left = self.builds_left.saturating_sub(1);
            group.leader.into_iter().for_each(|leader| self.seat(leader, |seat| seat.outgoing += 1));
            self.seat(to, |seat| {
                seat.incoming += 1;
                seat.replicas += 1;
                seat.disk_used += group.bytes;
            });
        } else if matches!(kind, MoveKind::TransferLeader { .. }) {
            self.transfers_left = self.transfers_left.saturating_sub(1);
        }
        kind.source()
            .into_iter()
            .for_each(|from| self.seat(from, |seat| seat.replicas = seat.replicas.saturating_sub(1)));
        let after = kind.leader_after(group.leader);
        if after != group.leader {
            group
                .leader
                .into_iter()
                .for_each(|it| self.seat(it, |seat| seat.leaders = seat.leaders.saturating_sub(1)));
            after.into_iter().for_each(|it| self.seat(it, |seat| seat.leaders += 1));
        }
    }

    /// Moves from the fullest to the emptiest until all are near the mean, or nothing more can be moved.
    fn level(&mut self, of_leaders: bool) {
        let receivers = self.seats.values().filter(|seat| seat.receives());
        let (sum, number) =
            receivers.fold((0.0, 0.0), |(sum, number), it| (sum + it.count(of_leaders), number + 1.0));
        let mean: f64 = sum / f64::max(number, 1.0);
        let band = f64::max(mean * BAND, 2.0);
        let mut stuck = BTreeSet::new();
        while let Some(from) = self.fullest(of_leaders, &stuck) {
            let emptiest = self.emptiest_first(of_leaders);
            let lowest = emptiest.first().map_or(mean, |node| self.seats[node].count(of_leaders));
            let most = self.seats[&from].count(of_leaders);
            if most <= mean || (most <= mean + band && lowest >= mean - band) {
                return;
            }
            match self.find(from, &emptiest, mean, band, of_leaders) {
                Some((id, kind)) => {
                    let reason = Reason::Overloaded {
                        node: from,
                        resource: Resource::Requests,
                        load: most,
                        goal: mean,
                    };
                    self.carry_out(id, &kind);
                    self.moves.push(Move { group: id, kind, reason, effect: Effect::default() });
                }
                None => drop(stuck.insert(from)),
            }
        }
    }

    fn fullest(&self, of_leaders: bool, stuck: &BTreeSet<NodeId>) -> Option<NodeId> {
        let open = self.seats.iter().filter(|(id, seat)| seat.receives() && !stuck.contains(id));
        open.max_by(|a, b| a.1.count(of_leaders).total_cmp(&b.1.count(of_leaders))).map(|(id, _)| *id)
    }

    fn emptiest_first(&self, of_leaders: bool) -> Vec<NodeId> {
        let mut nodes: Vec<NodeId> =
            self.seats.iter().filter(|(_, seat)| seat.receives()).map(|(id, _)| *id).collect();
        nodes.sort_by(|a, b| self.seats[a].count(of_leaders).total_cmp(&self.seats[b].count(of_leaders)));
        nodes
    }

    /// Something that may go from `from` to one of the emptiest nodes.
    fn find(
        &self,
        from: NodeId,
        emptiest: &[NodeId],
        mean: f64,
        band: f64,
        of_leaders: bool,
    ) -> Option<(GroupId, MoveKind)> {
        let most = self.seats[&from].count(of_leaders);
        let settled: Vec<(GroupId, &GroupView)> = self.settled(from).collect();
        let worth = |to: &&NodeId| {
            let count = self.seats[*to].count(of_leaders);
            count + 1.0 < most && (count < mean - band || (count < mean && most > mean + band))
        };
        emptiest.iter().take_while(worth).find_map(|to| {
            let fits = |group: &GroupView| {
                if of_leaders { self.may_lead(group, from, *to) } else { self.may_move(group, from, *to) }
            };
            let (id, _) = settled.iter().find(|(_, group)| fits(group))?;
            let kind = if of_leaders {
                MoveKind::TransferLeader { from, to: *to }
            } else {
                MoveKind::MoveReplica { from, to: *to }
            };
            Some((*id, kind))
        })
    }

    /// Groups on `node` that nothing is going on in.
    fn settled(&self, node: NodeId) -> impl Iterator<Item = (GroupId, &'a GroupView)> {
        let groups = self.seats[&node].held.iter().map(|id| (*id, &self.view.groups[id]));
        groups.filter(|(id, group)| {
            let rested =
                group.changed_at.is_none_or(|at| self.view.now.micros_since(at) >= self.policy.cool_down_us);
            rested && !self.busy.contains(id) && group.replicas.len() == group.factor
        })
    }

    fn may_lead(&self, group: &GroupView, from: NodeId, to: NodeId) -> bool {
        self.transfers_left > 0 && group.leader == Some(from) && group.voters().any(|voter| voter == to)
    }

    fn may_move(&self, group: &GroupView, from: NodeId, to: NodeId) -> bool {
        let (seat, policy) = (&self.seats[&to], self.policy);
        let sends =
            |leader: NodeId| self.seats.get(&leader).is_some_and(|it| it.outgoing < policy.outgoing_max);
        let others = || group.replicas.iter().filter(|it| it.node != from);
        let zone = |node: NodeId| self.view.nodes.get(&node).map(|node| &node.zone);
        self.builds_left > 0
            && seat.incoming < policy.incoming_max
            && group.leader.is_some_and(sends)
            && others().all(|it| it.node != to && zone(it.node) != zone(to))
            && (seat.disk_used + group.bytes) as f64 <= policy.disk_max * seat.node.disk.total as f64
    }
}
