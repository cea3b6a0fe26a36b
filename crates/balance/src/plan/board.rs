//! The planner's working copy of a view: nodes and groups by number, loads added up, moves applied as they are decided.

use std::collections::BTreeMap;

use hadron_consensus::{GroupId, NodeId, Time};

use crate::assess::NodeAssessment;
use crate::load::{Capacity, Load};
use crate::moves::{Change, Effect, Move, MoveKind, Reason};
use crate::policy::Policy;
use crate::view::{Disk, GroupView, NodeState, NodeView, ReplicaRole, ReplicaView, View};

/// Nodes refuse what would leave less of their disks free than 320 MiB, or a twentieth. Of what is on its way a part may be there already.
const REFUSED_ABOVE: f64 = 0.95;

/// The working copy.
pub(crate) struct Board<'a> {
    pub(super) policy: &'a Policy,
    pub(super) now: Time,
    /// The nodes, in the order of their ids. Also those that are only known from replicas: they are lost.
    pub(super) seats: Vec<Seat<'a>>,
    /// The groups, in the order of their ids.
    pub(super) groups: Vec<Draft<'a>>,
    moves: Vec<Move>,
    /// Bytes of all replicas, for each node.
    pub(super) bytes_per_node: f64,
    /// Replicas that may still be built, and leaderships that may still be handed over.
    builds_left: usize,
    transfers_left: usize,
}

/// A node, as if all moves were done.
pub(super) struct Seat<'a> {
    pub(super) id: NodeId,
    pub(super) zone: usize,
    pub(super) zone_name: &'a str,
    capacity: Capacity,
    pub(super) load: Load,
    /// W: kept up to date with `load`.
    pub(super) weight: f64,
    own_load: &'a Load,
    /// Numbers of the groups that have a replica here.
    pub(super) held: Vec<usize>,
    /// With what is on its way here.
    disk: Disk,
    /// Bytes that are to leave it.
    leaving: u64,
    incoming: usize,
    outgoing: usize,
    pub(super) is_alive: bool,
    pub(super) is_lost: bool,
    /// It will not come back with what it had.
    pub(super) is_gone: bool,
    pub(super) is_draining: bool,
    pub(super) is_learner: bool,
    pub(super) is_slow: bool,
}

/// A group, as if all moves were done.
pub(crate) struct Draft<'a> {
    pub(super) id: GroupId,
    pub(crate) view: &'a GroupView,
    /// Numbers of the nodes with a replica.
    pub(super) replicas: Vec<usize>,
    pub(super) leader: Option<usize>,
    /// A majority of the voters, as they are now, can be reached.
    pub(crate) has_quorum: bool,
    /// There is a move, from before or from this plan, that can come to its end.
    pub(super) is_busy: bool,
}

static NO_LOAD: Load = Load::ZERO;

impl<'a> Board<'a> {
    pub(crate) fn new(view: &'a View, policy: &'a Policy) -> Board<'a> {
        let seats = seats(view, policy);
        let mut board = Board {
            policy,
            now: view.now,
            builds_left: policy.moves_max(view.nodes.len()),
            transfers_left: policy.transfers_max(view.nodes.len()),
            bytes_per_node: bytes(view) / view.nodes.len().max(1) as f64,
            seats,
            groups: Vec::with_capacity(view.groups.len()),
            moves: Vec::new(),
        };
        view.groups.iter().for_each(|(id, group)| board.add(*id, group));
        board.anticipate(&view.moves);
        board.seats.iter_mut().for_each(Seat::weigh);
        board
    }

    /// The number of a node; every node that has a replica has one.
    pub(super) fn number(&self, node: NodeId) -> Option<usize> {
        self.seats.binary_search_by_key(&node, |seat| seat.id).ok()
    }

    fn add(&mut self, id: GroupId, view: &'a GroupView) {
        let number = self.groups.len();
        let replicas: Vec<usize> =
            view.replicas.iter().filter_map(|replica| self.number(replica.node)).collect();
        let leader = view.leader.and_then(|leader| self.number(leader));
        for &replica in &replicas {
            let seat = &mut self.seats[replica];
            seat.held.push(number);
            seat.load += &view.load.replica;
        }
        if let Some(leader) = leader {
            self.seats[leader].load += &view.load.leader;
        }
        let has_quorum = self.has_quorum(view, &replicas);
        self.groups.push(Draft { id, view, replicas, leader, has_quorum, is_busy: false });
    }

    /// Whether a majority of the voters can be reached. `replicas` are the numbers of the nodes.
    fn has_quorum(&self, view: &GroupView, replicas: &[usize]) -> bool {
        let voters = view.replicas.iter().zip(replicas).filter(|(it, _)| it.role == ReplicaRole::Voter);
        let (all, alive) = voters.fold((0, 0), |(all, alive), (_, number)| {
            (all + 1, alive + usize::from(self.seats[*number].is_alive))
        });
        alive > all / 2
    }

    /// Takes moves in progress for done. One that is stuck keeps its group from nothing: what it waits for is lost or damaged as any
    /// other replica, or stranded, and so is mended.
    fn anticipate(&mut self, moves: &BTreeMap<GroupId, MoveKind>) {
        let mut known: Vec<(usize, &MoveKind)> = Vec::with_capacity(moves.len());
        for (id, kind) in moves {
            let ends = [kind.source(), kind.destination(), kind.leader_after(None)];
            let is_known = ends.into_iter().flatten().all(|node| self.number(node).is_some());
            if let Ok(group) = self.groups.binary_search_by_key(id, |group| group.id)
                && is_known
            {
                self.relocate(group, kind);
                known.push((group, kind));
            }
        }
        // Nobody sends or receives anything of a group that has no leader.
        known.retain(|(group, _)| {
            let draft = &self.groups[*group];
            draft.has_quorum && !self.is_stuck(draft)
        });
        known.into_iter().for_each(|(group, kind)| self.begin(group, kind));
    }

    /// Whether a group does not get to the replicas that it shall have: one that has yet to vote is lost, damaged or stranded, or a
    /// majority is lost.
    fn is_stuck(&self, draft: &Draft<'_>) -> bool {
        let is_lost = |node: &&usize| self.seats[**node].is_lost;
        let cannot_come = |node: &usize| {
            let is_broken = is_lost(&node) || self.is_damaged(draft, *node);
            self.is_stranded(draft, *node) || is_broken && self.is_half_built(draft, *node)
        };
        let lost = draft.replicas.iter().filter(is_lost).count();
        draft.replicas.iter().any(cannot_come) || 2 * lost >= draft.replicas.len()
    }

    /// Changes loads and places as `kind` will, and takes the room that it needs meanwhile.
    fn carry_out(&mut self, group: usize, kind: &MoveKind) {
        self.relocate(group, kind);
        self.begin(group, kind);
    }

    /// Changes the places of replicas as `kind` will.
    fn relocate(&mut self, group: usize, kind: &MoveKind) {
        if let Some(to) = kind.destination().and_then(|to| self.number(to)) {
            self.put(group, to);
        }
        if let Some(from) = kind.source().and_then(|from| self.number(from)) {
            self.take(group, from);
        }
    }

    /// Takes what `kind` needs while it is under way, and hands over the leadership as it will.
    fn begin(&mut self, group: usize, kind: &MoveKind) {
        let (bytes, sender) = (self.groups[group].view.bytes, self.groups[group].leader);
        self.groups[group].is_busy = true;
        if let Some(to) = kind.destination().and_then(|to| self.number(to)) {
            self.seats[to].incoming += 1;
            self.seats[to].disk.used += bytes;
            sender.into_iter().for_each(|sender| self.seats[sender].outgoing += 1);
            self.builds_left = self.builds_left.saturating_sub(1);
        }
        let leader = kind.leader_after(sender.map(|sender| self.seats[sender].id));
        self.lead(group, leader.and_then(|leader| self.number(leader)));
        if let Some(from) = kind.source().and_then(|from| self.number(from)) {
            self.seats[from].leaving += bytes;
        }
        if matches!(kind, MoveKind::TransferLeader { .. }) {
            self.transfers_left = self.transfers_left.saturating_sub(1);
        }
    }

    fn put(&mut self, group: usize, node: usize) {
        let draft = &mut self.groups[group];
        if draft.replicas.contains(&node) {
            return;
        }
        draft.replicas.push(node);
        self.seats[node].held.push(group);
        self.seats[node].change(&draft.view.load.replica, &Load::ZERO);
    }

    fn take(&mut self, group: usize, node: usize) {
        let draft = &mut self.groups[group];
        if !draft.replicas.contains(&node) {
            return;
        }
        draft.replicas.retain(|replica| *replica != node);
        self.seats[node].held.retain(|held| *held != group);
        self.seats[node].change(&Load::ZERO, &draft.view.load.replica);
    }

    fn lead(&mut self, group: usize, leader: Option<usize>) {
        let draft = &mut self.groups[group];
        let part = &draft.view.load.leader;
        let before = std::mem::replace(&mut draft.leader, leader);
        before.into_iter().for_each(|node| self.seats[node].change(&Load::ZERO, part));
        leader.into_iter().for_each(|node| self.seats[node].change(part, &Load::ZERO));
    }

    /// Decides a move of a group that has none.
    pub(super) fn decide(&mut self, group: usize, kind: MoveKind, reason: Reason) {
        let ends = self.ends(&kind);
        let (before, largest) = (self.weights(ends), self.largest());
        self.carry_out(group, &kind);
        let after = self.weights(ends);
        let change =
            |before: Option<f64>, after: Option<f64>| Some(Change { before: before?, after: after? });
        let effect = Effect {
            from: change(before.0, after.0),
            to: change(before.1, after.1),
            largest: Change { before: largest, after: self.largest() },
            bytes: kind.destination().map_or(0, |_| self.groups[group].view.bytes),
        };
        self.moves.push(Move { group: self.groups[group].id, kind, reason, effect });
    }

    /// Numbers of the nodes that give and take.
    fn ends(&self, kind: &MoveKind) -> (Option<usize>, Option<usize>) {
        let (from, to) = match *kind {
            MoveKind::TransferLeader { from, to } | MoveKind::MoveReplica { from, to } => {
                (Some(from), Some(to))
            }
            MoveKind::AddReplica { to } => (None, Some(to)),
            MoveKind::RemoveReplica { from } => (Some(from), None),
        };
        let number = |node: NodeId| self.number(node);
        (from.and_then(number), to.and_then(number))
    }

    /// W of two nodes, of each that can be reached.
    fn weights(&self, ends: (Option<usize>, Option<usize>)) -> (Option<f64>, Option<f64>) {
        let alive =
            |node: usize| Some(&self.seats[node]).filter(|seat| seat.is_alive).map(|seat| seat.weight);
        (ends.0.and_then(alive), ends.1.and_then(alive))
    }

    pub(super) fn into_moves(self) -> Vec<Move> {
        self.moves
    }

    /// Whether another replica may be built at all.
    pub(super) fn may_build(&self) -> bool {
        self.builds_left > 0
    }

    /// Whether another leadership may be handed over.
    pub(super) fn may_transfer(&self) -> bool {
        self.transfers_left > 0
    }

    /// Whether the group's leader may send another replica.
    pub(super) fn has_sender(&self, group: &Draft<'_>) -> bool {
        let sender = group.leader.map(|leader| &self.seats[leader]);
        sender.is_some_and(|sender| sender.is_alive && sender.outgoing < self.policy.outgoing_max)
    }

    /// Whether `node` may receive a replica of so many bytes.
    pub(super) fn may_receive(&self, node: &Seat<'_>, bytes: u64) -> bool {
        node.receives() && node.incoming < self.policy.incoming_max && self.has_room(node, bytes)
    }

    /// Whether the disk of `node` may take so many bytes.
    pub(super) fn has_room(&self, node: &Seat<'_>, bytes: u64) -> bool {
        let Disk { used, total } = node.disk;
        total == 0 || (used + bytes) as f64 <= self.policy.disk_max * total as f64
    }

    /// Whether a replica is on its way to `node` and cannot come: its disk is too full by itself, and so that it refuses as much.
    pub(super) fn is_stranded(&self, draft: &Draft<'_>, node: usize) -> bool {
        let Disk { used, total } = self.seats[node].disk;
        let is_full = used as f64 > self.policy.disk_max * total as f64;
        let refuses = (used + draft.view.bytes) as f64 > REFUSED_ABOVE * total as f64;
        total > 0 && is_full && refuses && self.is_half_built(draft, node)
    }

    /// Whether the pool knows the node, and not only a replica on it.
    pub(super) fn is_known(&self, node: usize) -> bool {
        self.seats[node].zone != usize::MAX
    }

    /// Whether `node` may be handed the leadership of a group in which it has a replica.
    pub(super) fn may_lead(&self, node: usize, group: &Draft<'_>) -> bool {
        let seat = &self.seats[node];
        let is_able = |it: &ReplicaView| {
            it.role == ReplicaRole::Voter && it.lag <= self.policy.lag_max && !it.is_damaged
        };
        seat.receives() && group.view.replica(seat.id).is_some_and(is_able)
    }

    /// Whether the group's replica on `node` is damaged.
    pub(super) fn is_damaged(&self, group: &Draft<'_>, node: usize) -> bool {
        group.view.replica(self.seats[node].id).is_some_and(|replica| replica.is_damaged)
    }

    /// Whether the group's replica on `node` has yet to vote.
    pub(super) fn is_half_built(&self, group: &Draft<'_>, node: usize) -> bool {
        group.view.replica(self.seats[node].id).is_none_or(|replica| replica.role == ReplicaRole::Learner)
    }

    /// How full the disk of `node` will be.
    pub(super) fn disk_left(&self, node: &Seat<'_>) -> f64 {
        let used = node.disk.used.saturating_sub(node.leaving);
        if node.disk.total == 0 { 0.0 } else { used as f64 / node.disk.total as f64 }
    }

    /// The mean of W over those who stay, as if they had the load of those who shall be emptied too.
    pub(crate) fn mean(&self) -> f64 {
        let loaded = self.seats.iter().filter(|seat| seat.is_alive);
        let staying = self.seats.iter().filter(|seat| seat.stays()).count();
        loaded.map(|seat| seat.weight).sum::<f64>() / staying.max(1) as f64
    }

    /// The mean of W over those who carry it: who stays, and who has yet to be emptied. At most the largest.
    pub(crate) fn mean_carried(&self) -> f64 {
        let carries = |seat: &&Seat<'_>| seat.is_alive && (seat.stays() || !seat.held.is_empty());
        let weights: Vec<f64> = self.seats.iter().filter(carries).map(|seat| seat.weight).collect();
        weights.iter().sum::<f64>() / weights.len().max(1) as f64
    }

    /// What each node would carry if load could be poured: the mean over those who have no replica that is heavier alone. Who has one
    /// stands out of it like a rock, with nothing but that replica. At most the mean.
    pub(crate) fn level(&self) -> f64 {
        self.level_around(&self.rocks())
    }

    /// What the heaviest replica makes up alone on each node that stays, from the largest.
    pub(super) fn rocks(&self) -> Vec<f64> {
        let staying = (0..self.seats.len()).filter(|node| self.seats[*node].stays());
        let mut rocks: Vec<f64> = staying.map(|node| self.heaviest(node)).collect();
        rocks.sort_by(|a, b| b.total_cmp(a));
        rocks
    }

    /// The level for these rocks.
    pub(super) fn level_around(&self, rocks: &[f64]) -> f64 {
        let mut load = self.mean() * rocks.len() as f64;
        for (number, rock) in rocks.iter().enumerate() {
            let level = load / (rocks.len() - number) as f64;
            if *rock <= level {
                return level;
            }
            load -= rock;
        }
        self.mean()
    }

    /// The largest W of those that can be reached.
    fn largest(&self) -> f64 {
        self.seats.iter().filter(|seat| seat.is_alive).map(|seat| seat.weight).fold(0.0, f64::max)
    }

    /// What the heaviest replica on `node` makes up alone there, with what belongs to no group.
    pub(super) fn heaviest(&self, node: usize) -> f64 {
        let seat = &self.seats[node];
        let alone = |group: &usize| {
            let draft = &self.groups[*group];
            seat.capacity.utilisation(&(draft.view.load.at(draft.leader == Some(node)) + seat.own_load))
        };
        seat.held.iter().map(alone).fold(0.0, f64::max)
    }

    /// Voters of a group that can be reached and are well; moves in progress count as done.
    pub(crate) fn reachable(&self, group: &Draft<'_>) -> usize {
        let is_well = |replica: &&usize| self.seats[**replica].is_alive && !self.is_damaged(group, **replica);
        group.replicas.iter().filter(is_well).count()
    }

    /// How many more losses a group can bear, and how many replicas can be reached.
    pub(super) fn spare(&self, group: &Draft<'_>) -> (usize, usize) {
        let reachable = self.reachable(group);
        (reachable.saturating_sub(group.replicas.len() / 2 + 1), reachable)
    }

    /// Whether two replicas share a zone although there is one without.
    pub(crate) fn is_crowded(&self, group: &Draft<'_>) -> bool {
        let has_none = |seat: &Seat<'_>| seat.stays() && self.company(group, seat.zone, None) == 0;
        self.shares_a_zone(group) && self.seats.iter().any(has_none)
    }

    /// Whether two replicas are in one zone.
    pub(super) fn shares_a_zone(&self, group: &Draft<'_>) -> bool {
        group
            .replicas
            .iter()
            .any(|replica| self.company(group, self.seats[*replica].zone, Some(*replica)) > 0)
    }

    /// Replicas of the group in `zone`, not counting the one on the node `without`.
    pub(super) fn company(&self, group: &Draft<'_>, zone: usize, without: Option<usize>) -> usize {
        let others = group.replicas.iter().filter(|replica| Some(**replica) != without);
        others.filter(|replica| self.seats[**replica].zone == zone).count()
    }

    /// How many groups are so.
    pub(crate) fn count(&self, is_so: impl Fn(&Board<'_>, &Draft<'_>) -> bool) -> usize {
        self.groups.iter().filter(|group| is_so(self, group)).count()
    }

    /// How each node stands that can be reached; without shares.
    pub(crate) fn assess_nodes(&self) -> Vec<NodeAssessment> {
        let alive = self.seats.iter().enumerate().filter(|(_, seat)| seat.is_alive);
        alive
            .map(|(number, seat)| NodeAssessment {
                node: seat.id,
                load: seat.weight,
                scarcest: seat.scarcest().0,
                share: 0.0,
                heaviest_replica: self.heaviest(number),
                replicas: seat.held.len(),
                leaders: seat.held.iter().filter(|group| self.groups[**group].leader == Some(number)).count(),
            })
            .collect()
    }
}

impl Seat<'_> {
    fn weigh(&mut self) {
        self.weight = self.capacity.utilisation(&self.load);
    }

    fn change(&mut self, more: &Load, less: &Load) {
        self.load = (self.load + more).without(less);
        self.weigh();
    }

    /// W with `more` on top.
    pub(super) fn weight_with(&self, more: &Load) -> f64 {
        self.capacity.utilisation(&(self.load + more))
    }

    /// W without `less`.
    pub(super) fn weight_without(&self, less: &Load) -> f64 {
        self.capacity.utilisation(&self.load.without(less))
    }

    pub(super) fn scarcest(&self) -> (crate::load::Resource, f64) {
        self.capacity.scarcest(&self.load)
    }

    /// Whether it is there and shall be.
    pub(super) fn stays(&self) -> bool {
        self.is_alive && !self.is_draining && !self.is_learner
    }

    /// Whether it may be given anything.
    pub(super) fn receives(&self) -> bool {
        self.stays() && !self.is_slow
    }
}

/// The nodes of the view and those that only replicas know of.
fn seats<'a>(view: &'a View, policy: &Policy) -> Vec<Seat<'a>> {
    let known: Vec<NodeId> = view.nodes.keys().copied().collect();
    let mut nodes: BTreeMap<NodeId, Option<&NodeView>> =
        view.nodes.iter().map(|(id, node)| (*id, Some(node))).collect();
    for replica in view.groups.values().flat_map(|group| &group.replicas) {
        if known.binary_search(&replica.node).is_err() {
            nodes.insert(replica.node, None);
        }
    }
    let mut zones: Vec<&str> = view.nodes.values().map(|node| node.zone.as_str()).collect();
    zones.sort_unstable();
    zones.dedup();
    let zone = |node: &NodeView| zones.binary_search(&node.zone.as_str()).unwrap_or(usize::MAX);
    nodes
        .into_iter()
        .map(|(id, node)| match node {
            Some(node) => seat(id, node, zone(node), view.now, policy),
            None => stranger(id),
        })
        .collect()
}

/// Bytes of all replicas; 1 at least.
fn bytes(view: &View) -> f64 {
    let groups = view.groups.values();
    groups.map(|group| group.bytes as f64 * group.replicas.len() as f64).sum::<f64>().max(1.0)
}

fn seat<'a>(id: NodeId, node: &'a NodeView, zone: usize, now: Time, policy: &Policy) -> Seat<'a> {
    Seat {
        id,
        zone,
        zone_name: &node.zone,
        capacity: node.capacity,
        load: node.own_load,
        weight: 0.0,
        own_load: &node.own_load,
        held: Vec::new(),
        disk: node.disk,
        leaving: 0,
        incoming: 0,
        outgoing: 0,
        is_alive: node.state == NodeState::Alive,
        is_lost: node.is_lost(now, policy.grace_us),
        is_gone: node.state == NodeState::Dead,
        is_draining: node.draining,
        is_learner: node.learner,
        is_slow: node.fsync_us > policy.fsync_us_max,
    }
}

/// A node that the pool does not know any more.
fn stranger<'a>(id: NodeId) -> Seat<'a> {
    Seat {
        id,
        zone: usize::MAX,
        zone_name: "",
        capacity: Capacity::default(),
        load: Load::ZERO,
        weight: 0.0,
        own_load: &NO_LOAD,
        held: Vec::new(),
        disk: Disk::default(),
        leaving: 0,
        incoming: 0,
        outgoing: 0,
        is_alive: false,
        is_lost: true,
        is_gone: true,
        is_draining: false,
        is_learner: false,
        is_slow: false,
    }
}
