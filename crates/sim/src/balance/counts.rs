//! The planner to compare with: it balances how many replicas and leaders nodes have, whatever they cost. What is broken it mends as
//! ours does.

use hadron_balance::{
    Effect, GroupView, Move, MoveKind, NodeState, NodeView, Policy, Reason, Resource, View,
};
use hadron_consensus::{GroupId, NodeId};

/// How far from the mean a count may be, in parts of the mean; two in any case.
const BAND: f64 = 0.05;

/// What is to be done now.
pub(super) fn plan(view: &View, policy: &Policy) -> Vec<Move> {
    let moves = hadron_balance::plan(view, &Policy { balance: false, ..policy.clone() });
    let mut counts = Counts::new(view, policy, moves);
    counts.level(Kind::Replicas);
    counts.level(Kind::Leaders);
    counts.moves
}

/// What is counted.
#[derive(Clone, Copy, PartialEq)]
enum Kind {
    Replicas,
    Leaders,
}

/// Nodes and groups by number, as if all moves were done.
struct Counts<'a> {
    view: &'a View,
    policy: &'a Policy,
    moves: Vec<Move>,
    seats: Vec<Seat<'a>>,
    groups: Vec<Item<'a>>,
    builds_left: usize,
    transfers_left: usize,
}

struct Seat<'a> {
    id: NodeId,
    node: &'a NodeView,
    held: Vec<usize>,
    replicas: usize,
    leaders: usize,
    incoming: usize,
    outgoing: usize,
    disk_used: u64,
    /// Nothing can be taken off it.
    is_stuck: bool,
}

struct Item<'a> {
    id: GroupId,
    group: &'a GroupView,
    replicas: Vec<usize>,
    leader: Option<usize>,
    is_busy: bool,
}

impl Seat<'_> {
    fn count(&self, kind: Kind) -> f64 {
        (if kind == Kind::Leaders { self.leaders } else { self.replicas }) as f64
    }

    fn receives(&self) -> bool {
        self.node.state == NodeState::Alive && !self.node.draining
    }
}

impl<'a> Counts<'a> {
    fn new(view: &'a View, policy: &'a Policy, moves: Vec<Move>) -> Counts<'a> {
        let mut counts = Counts {
            view,
            policy,
            seats: view.nodes.iter().map(|(id, node)| seat(*id, node)).collect(),
            groups: Vec::with_capacity(view.groups.len()),
            builds_left: policy.moves_max(view.nodes.len()),
            transfers_left: policy.transfers_max(view.nodes.len()),
            moves: Vec::new(),
        };
        view.groups.iter().for_each(|(id, group)| counts.add(*id, group));
        view.moves.iter().for_each(|(id, kind)| counts.carry_out(*id, kind));
        moves.iter().for_each(|it| counts.carry_out(it.group, &it.kind));
        counts.moves = moves;
        counts
    }

    fn number(&self, node: NodeId) -> Option<usize> {
        self.seats.binary_search_by_key(&node, |seat| seat.id).ok()
    }

    fn add(&mut self, id: GroupId, group: &'a GroupView) {
        let number = self.groups.len();
        let replicas: Vec<usize> = group.replicas.iter().filter_map(|it| self.number(it.node)).collect();
        let leader = group.leader.and_then(|leader| self.number(leader));
        for &replica in &replicas {
            self.seats[replica].held.push(number);
            self.seats[replica].replicas += 1;
        }
        leader.into_iter().for_each(|leader| self.seats[leader].leaders += 1);
        self.groups.push(Item { id, group, replicas, leader, is_busy: false });
    }

    fn carry_out(&mut self, id: GroupId, kind: &MoveKind) {
        let Ok(group) = self.groups.binary_search_by_key(&id, |it| it.id) else { return };
        let before = self.groups[group].leader;
        self.groups[group].is_busy = true;
        if let Some(to) = kind.destination().and_then(|to| self.number(to)) {
            self.builds_left = self.builds_left.saturating_sub(1);
            before.into_iter().for_each(|leader| self.seats[leader].outgoing += 1);
            let seat = &mut self.seats[to];
            seat.incoming += 1;
            seat.replicas += 1;
            seat.disk_used += self.groups[group].group.bytes;
        } else if matches!(kind, MoveKind::TransferLeader { .. }) {
            self.transfers_left = self.transfers_left.saturating_sub(1);
        }
        if let Some(from) = kind.source().and_then(|from| self.number(from)) {
            self.seats[from].replicas = self.seats[from].replicas.saturating_sub(1);
        }
        let after =
            kind.leader_after(before.map(|node| self.seats[node].id)).and_then(|node| self.number(node));
        before.into_iter().for_each(|node| self.seats[node].leaders -= 1);
        after.into_iter().for_each(|node| self.seats[node].leaders += 1);
        self.groups[group].leader = after;
    }

    /// Moves from the fullest to the emptiest until all are near the mean, or nothing more can be moved.
    fn level(&mut self, kind: Kind) {
        let receivers = self.seats.iter().filter(|seat| seat.receives());
        let (sum, number) =
            receivers.fold((0.0, 0.0), |(sum, number), it| (sum + it.count(kind), number + 1.0));
        let mean: f64 = sum / f64::max(number, 1.0);
        let band = f64::max(mean * BAND, 2.0);
        self.seats.iter_mut().for_each(|seat| seat.is_stuck = false);
        while let Some(from) = self.fullest(kind).filter(|_| self.has_room(kind)) {
            let most = self.seats[from].count(kind);
            let emptiest = self.emptiest_first(kind);
            let least = emptiest.first().map_or(mean, |node| self.seats[*node].count(kind));
            if most <= mean || (most <= mean + band && least >= mean - band) {
                return;
            }
            match self.find(from, &emptiest, mean, band, kind) {
                Some((group, what)) => self.decide(group, what, from, most, mean),
                None => self.seats[from].is_stuck = true,
            }
        }
    }

    fn has_room(&self, kind: Kind) -> bool {
        if kind == Kind::Leaders { self.transfers_left > 0 } else { self.builds_left > 0 }
    }

    fn decide(&mut self, group: usize, kind: MoveKind, from: usize, load: f64, goal: f64) {
        let (id, node) = (self.groups[group].id, self.seats[from].id);
        let reason = Reason::Overloaded { node, resource: Resource::Requests, load, goal };
        self.carry_out(id, &kind);
        self.moves.push(Move { group: id, kind, reason, effect: Effect::default() });
    }

    fn fullest(&self, kind: Kind) -> Option<usize> {
        let open = (0..self.seats.len()).filter(|it| self.seats[*it].receives() && !self.seats[*it].is_stuck);
        open.max_by(|a, b| self.seats[*a].count(kind).total_cmp(&self.seats[*b].count(kind)))
    }

    fn emptiest_first(&self, kind: Kind) -> Vec<usize> {
        let mut nodes: Vec<usize> = (0..self.seats.len()).filter(|it| self.seats[*it].receives()).collect();
        nodes.sort_by(|a, b| self.seats[*a].count(kind).total_cmp(&self.seats[*b].count(kind)));
        nodes
    }

    /// Something that may go from `from` to one of the emptiest nodes.
    fn find(
        &self,
        from: usize,
        emptiest: &[usize],
        mean: f64,
        band: f64,
        kind: Kind,
    ) -> Option<(usize, MoveKind)> {
        let most = self.seats[from].count(kind);
        let settled: Vec<usize> =
            self.seats[from].held.iter().copied().filter(|it| self.is_settled(*it)).collect();
        let worth = |to: &&usize| {
            let count = self.seats[**to].count(kind);
            count + 1.0 < most && (count < mean - band || (count < mean && most > mean + band))
        };
        emptiest.iter().take_while(worth).find_map(|to| {
            let (source, destination) = (self.seats[from].id, self.seats[*to].id);
            let what = match kind {
                Kind::Leaders => MoveKind::TransferLeader { from: source, to: destination },
                Kind::Replicas => MoveKind::MoveReplica { from: source, to: destination },
            };
            let fits = |group: usize| match kind {
                Kind::Leaders => self.may_lead(group, from, *to),
                Kind::Replicas => self.may_move(group, from, *to),
            };
            settled.iter().copied().find(|group| fits(*group)).map(|group| (group, what))
        })
    }

    /// Nothing is going on in the group, and nothing has been lately.
    fn is_settled(&self, group: usize) -> bool {
        let it = &self.groups[group];
        let changed_at = it.group.changed_at;
        !it.is_busy
            && it.replicas.len() == it.group.factor
            && changed_at.is_none_or(|at| self.view.now.micros_since(at) >= self.policy.cool_down_us)
    }

    fn may_lead(&self, group: usize, from: usize, to: usize) -> bool {
        let it = &self.groups[group];
        it.leader == Some(from) && it.replicas.contains(&to)
    }

    fn may_move(&self, group: usize, from: usize, to: usize) -> bool {
        let (it, seat) = (&self.groups[group], &self.seats[to]);
        let zone = |node: usize| &self.seats[node].node.zone;
        seat.incoming < self.policy.incoming_max
            && it.leader.is_some_and(|leader| self.seats[leader].outgoing < self.policy.outgoing_max)
            && it.replicas.iter().all(|other| *other == from || (*other != to && zone(*other) != zone(to)))
            && (seat.disk_used + it.group.bytes) as f64 <= self.policy.disk_max * seat.node.disk.total as f64
    }
}

fn seat(id: NodeId, node: &NodeView) -> Seat<'_> {
    Seat {
        id,
        node,
        held: Vec::new(),
        replicas: 0,
        leaders: 0,
        incoming: 0,
        outgoing: 0,
        disk_used: node.disk.used,
        is_stuck: false,
    }
}
