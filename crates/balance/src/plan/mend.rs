//! What is broken is mended: too many replicas, lost, damaged and stranded ones, too few, nodes to be emptied, zones that are shared, disks that are full.
//!
//! A group is left alone while it has no leader or no majority: nothing can be changed then, and nothing would be known.

use std::cmp::Reverse;

use super::board::{Board, Draft, Seat};
use crate::load::Load;
use crate::moves::{MoveKind, Reason};
use crate::view::ReplicaRole;

/// Removes replicas that are more than there shall be, and learners that a move has left behind.
pub(super) fn surplus(board: &mut Board<'_>) {
    for group in board.idle_groups(|_, draft| draft.replicas.len() > draft.view.factor) {
        let (have, want) = (board.groups[group].replicas.len(), board.groups[group].view.factor);
        if let Some(from) = board.dispensable(group) {
            let from = board.seats[from].id;
            board.decide(group, MoveKind::RemoveReplica { from }, Reason::TooMany { have, want });
        }
    }
}

/// Rebuilds elsewhere what was on nodes that are lost, first for groups that can bear the fewest further losses. What was to come to such a
/// node and can come to no other is given up: the group goes on with the others, and then there is one too few. So is what is on a node that is no
/// member any more, and stops only once nobody needs it.
pub(super) fn lost(board: &mut Board<'_>) {
    let is_on_lost =
        |board: &Board<'_>, draft: &Draft<'_>| draft.replicas.iter().any(|it| board.seats[*it].is_lost);
    let mut groups = board.idle_groups(is_on_lost);
    groups.sort_by_key(|group| board.spare(&board.groups[*group]));
    for group in groups {
        let draft = &board.groups[group];
        let (left, want, load) = (board.reachable(draft), draft.view.factor, draft.view.load.replica);
        let may_go = |node| !board.may_ever_move(draft) && board.may_be_given_up(draft, node);
        let given_up = board.lost(draft, may_go);
        let Some(from) = given_up.or_else(|| board.lost(draft, |_| true)) else { continue };
        let node = board.seats[from].id;
        let reason = Reason::Lost { node, left, want };
        if given_up.is_some() {
            board.decide(group, MoveKind::RemoveReplica { from: node }, reason);
        } else if board.may_build() && board.has_open_node() {
            board.rebuild(group, from, &load, reason);
        }
    }
}

/// Rebuilds damaged replicas elsewhere, or where there is no other node, where they are: first they go, and then there is one too few.
pub(super) fn damaged(board: &mut Board<'_>) {
    let is_damaged = |board: &Board<'_>, draft: &Draft<'_>| board.damaged(draft).is_some();
    let mut groups = board.idle_groups(is_damaged);
    groups.sort_by_key(|group| board.spare(&board.groups[*group]));
    for group in groups {
        let draft = &board.groups[group];
        let Some(from) = board.damaged(draft) else { continue };
        let (left, want, load) = (board.reachable(draft), draft.view.factor, draft.view.load.replica);
        let reason = Reason::Damaged { node: board.seats[from].id, left, want };
        if board.may_ever_move(draft) {
            board.rebuild(group, from, &load, reason);
        } else if board.may_be_rebuilt_in_place(draft, from) {
            board.decide(group, MoveKind::RemoveReplica { from: board.seats[from].id }, reason);
        }
    }
}

/// Sends elsewhere what was on its way to a node whose disk has become too full for it meanwhile. If it can go nowhere else, it waits, and
/// nothing else is begun with its group.
pub(super) fn stranded(board: &mut Board<'_>) {
    for group in board.idle_groups(|board, draft| board.stranded(draft).is_some()) {
        let draft = &board.groups[group];
        let Some(from) = board.stranded(draft) else { continue };
        let (seat, load) = (&board.seats[from], draft.view.load.replica);
        let reason = Reason::DiskFull { node: seat.id, used: board.disk_left(seat) };
        if !board.rebuild(group, from, &load, reason) {
            board.groups[group].is_busy = true;
        }
    }
}

/// Adds replicas where there are fewer than there shall be.
pub(super) fn shortage(board: &mut Board<'_>) {
    for group in board.idle_groups(|_, draft| draft.view.voters().count() < draft.view.factor) {
        if !board.may_build() || !board.has_open_node() {
            return;
        }
        let draft = &board.groups[group];
        let (have, want) = (draft.view.voters().count(), draft.view.factor);
        let load = draft.view.load.replica;
        let half_built = board.learner(group);
        let place = half_built.or_else(|| board.best_place(group, None, &load).map(|place| place.node));
        if let Some(to) = place {
            let to = board.seats[to].id;
            board.decide(group, MoveKind::AddReplica { to }, Reason::TooFew { have, want });
        }
    }
}

/// Empties the nodes that are to be emptied: leaderships at once, replicas as there is room for them.
pub(super) fn drain(board: &mut Board<'_>) {
    let draining =
        |board: &Board<'_>, node: &usize| board.seats[*node].is_draining && board.seats[*node].is_alive;
    let nodes: Vec<usize> = (0..board.seats.len()).filter(|node| draining(board, node)).collect();
    for &node in &nodes {
        hand_over(board, node);
    }
    for &node in &nodes {
        let reason = Reason::Drained { node: board.seats[node].id };
        board.clear(node, &reason, |_, _| true);
    }
}

/// Hands over the leaderships that `node` has.
fn hand_over(board: &mut Board<'_>, node: usize) {
    let reason = Reason::Drained { node: board.seats[node].id };
    for group in board.seats[node].held.clone() {
        if board.groups[group].leader == Some(node)
            && board.may_transfer()
            && board.is_idle(&board.groups[group])
            && let Some(heir) = board.lightest_heir(group)
        {
            let (from, to) = (board.seats[node].id, board.seats[heir].id);
            board.decide(group, MoveKind::TransferLeader { from, to }, reason.clone());
        }
    }
}

/// Takes replicas apart that share a zone although another has room.
pub(super) fn zones(board: &mut Board<'_>) {
    let mut open = board.open_zones();
    for group in board.idle_groups(|board, draft| board.shares_a_zone(draft)) {
        if !board.may_build() {
            return;
        }
        let draft = &board.groups[group];
        if !open.iter().any(|zone| board.company(draft, *zone, None) == 0) {
            continue;
        }
        if let Some((from, zone)) = board.crowded(group) {
            let load = board.groups[group].view.load.at(board.groups[group].leader == Some(from));
            if board.best_place(group, Some(from), &load).is_some_and(|place| place.company == 0) {
                board.rebuild(group, from, &load, Reason::ZoneShared { zone });
                open = board.open_zones();
            }
        }
    }
}

/// Takes the largest replicas off disks that are too full.
pub(super) fn disks(board: &mut Board<'_>) {
    let limit = board.policy.disk_max;
    for node in 0..board.seats.len() {
        let used = board.disk_left(&board.seats[node]);
        if used > limit && board.seats[node].is_alive {
            let reason = Reason::DiskFull { node: board.seats[node].id, used };
            board.clear(node, &reason, |board, node| board.disk_left(&board.seats[node]) > limit);
        }
    }
}

impl Board<'_> {
    /// Numbers of the groups that are so, and of which something can be changed now.
    fn idle_groups(&self, is_so: impl Fn(&Board<'_>, &Draft<'_>) -> bool) -> Vec<usize> {
        let is_one = |group: &usize| {
            let draft = &self.groups[*group];
            is_so(self, draft) && self.is_idle(draft)
        };
        (0..self.groups.len()).filter(is_one).collect()
    }

    /// Whether nothing is going on in the group, and something could be.
    pub(super) fn is_idle(&self, draft: &Draft<'_>) -> bool {
        let leads = |node: usize| self.seats[node].is_alive && !self.is_damaged(draft, node);
        !draft.is_busy && draft.leader.is_some_and(leads) && draft.has_quorum
    }

    fn has_open_node(&self) -> bool {
        self.seats.iter().any(|seat| self.may_receive(seat, 0))
    }

    /// Zones in which a node may receive.
    fn open_zones(&self) -> Vec<usize> {
        let open = self.seats.iter().filter(|seat| self.may_receive(seat, 0));
        let mut zones: Vec<usize> = open.map(|seat| seat.zone).collect();
        zones.sort_unstable();
        zones.dedup();
        zones
    }

    /// Moves the replica of `group` on `from` to the best place, if there is one.
    fn rebuild(&mut self, group: usize, from: usize, load: &Load, reason: Reason) -> bool {
        let Some(place) = self.best_place(group, Some(from), load) else { return false };
        let (from, to) = (self.seats[from].id, self.seats[place.node].id);
        self.decide(group, MoveKind::MoveReplica { from, to }, reason);
        true
    }

    /// Moves replicas away from `node`, the largest first, as long as that is wanted and possible.
    fn clear(&mut self, node: usize, reason: &Reason, is_wanted: impl Fn(&Board<'_>, usize) -> bool) {
        let mut groups = self.seats[node].held.clone();
        groups.sort_by_key(|group| Reverse(self.groups[*group].view.bytes));
        for group in groups {
            if !self.may_build() || !self.has_open_node() || !is_wanted(self, node) {
                return;
            }
            let draft = &self.groups[group];
            if self.is_idle(draft) {
                let load = draft.view.load.at(draft.leader == Some(node));
                self.rebuild(group, node, &load, reason.clone());
            }
        }
    }

    /// The learner of a group without a move.
    fn learner(&self, group: usize) -> Option<usize> {
        let draft = &self.groups[group];
        let is_learner = |node: &usize| {
            let replica = draft.view.replica(self.seats[*node].id);
            replica.is_some_and(|it| it.role == ReplicaRole::Learner) && self.seats[*node].receives()
        };
        draft.replicas.iter().copied().find(is_learner)
    }

    /// The node of a replica that is stranded.
    fn stranded(&self, draft: &Draft<'_>) -> Option<usize> {
        draft.replicas.iter().copied().find(|node| self.is_stranded(draft, *node))
    }

    /// The node of a replica that is damaged.
    fn damaged(&self, draft: &Draft<'_>) -> Option<usize> {
        draft.replicas.iter().copied().find(|node| self.is_damaged(draft, *node))
    }

    /// Whether some node could take a replica of the group, now or when it is done with what it takes.
    fn may_ever_move(&self, draft: &Draft<'_>) -> bool {
        let bytes = draft.view.bytes;
        // Who is out of reach for a moment is waited for.
        let open = |(number, seat): (usize, &Seat<'_>)| {
            let stays = !seat.is_lost && !seat.is_draining && !seat.is_learner && !seat.is_slow;
            stays && self.has_room(seat, bytes) && self.is_free_of(draft, number)
        };
        self.seats.iter().enumerate().any(open)
    }

    /// The node of a replica that is lost and `suits`, one that has yet to vote before others: the group waits for it.
    fn lost(&self, draft: &Draft<'_>, suits: impl Fn(usize) -> bool) -> Option<usize> {
        let lost = draft.replicas.iter().copied().filter(|node| self.seats[*node].is_lost && suits(*node));
        lost.min_by_key(|node| !self.is_half_built(draft, *node))
    }

    /// Whether the replica on `node` can be given up: the others can do without it. It votes, and its node will not come back with it; or it has yet
    /// to come, and who was to leave for it may come back. Otherwise the group would have fewer replicas than it has now.
    fn may_be_given_up(&self, draft: &Draft<'_>, node: usize) -> bool {
        let others = draft.replicas.len() - 1;
        let mut going = draft.view.voters().filter_map(|node| self.number(node));
        let may_come_back = |node: usize| {
            let seat = &self.seats[node];
            draft.replicas.contains(&node) || seat.receives() && self.has_room(seat, 0)
        };
        let is_missed = match self.is_half_built(draft, node) {
            true => !going.all(may_come_back),
            false => !self.seats[node].is_gone,
        };
        2 * self.reachable(draft) > others && !is_missed
    }

    /// Whether the damaged replica on `node` can be missed until there is another in its place.
    fn may_be_rebuilt_in_place(&self, draft: &Draft<'_>, node: usize) -> bool {
        let seat = &self.seats[node];
        let others = draft.replicas.len() - 1;
        self.may_build()
            && self.has_sender(draft)
            && self.may_receive(seat, 0)
            && draft.replicas.len() <= draft.view.factor
            && 2 * self.reachable(draft) > others
    }

    /// The replica that is missed least: a learner, a damaged one, a lost one, one that cannot be reached, one on a node that is to be emptied, one
    /// with company in its zone, not the leader, and then the one on the most loaded node.
    fn dispensable(&self, group: usize) -> Option<usize> {
        let draft = &self.groups[group];
        let value = |node: &usize| {
            let seat = &self.seats[*node];
            let is_voter = !self.is_half_built(draft, *node);
            let company = self.company(draft, seat.zone, Some(*node));
            let leads = draft.leader == Some(*node);
            let is_well = !self.is_damaged(draft, *node);
            (is_voter, is_well, !seat.is_lost, seat.is_alive, !seat.is_draining, Reverse(company), leads)
        };
        let candidates = draft.replicas.iter().copied();
        candidates.min_by(|a, b| {
            let lighter = self.seats[*b].weight.total_cmp(&self.seats[*a].weight);
            value(a).cmp(&value(b)).then(lighter)
        })
    }

    /// Who of the other voters is least loaded with the leadership.
    fn lightest_heir(&self, group: usize) -> Option<usize> {
        let draft = &self.groups[group];
        let others = draft.replicas.iter().copied().filter(|node| Some(*node) != draft.leader);
        let able = others.filter(|node| self.may_lead(*node, draft));
        able.min_by(|a, b| {
            let weight = |node: &usize| self.seats[*node].weight_with(&draft.view.load.leader);
            weight(a).total_cmp(&weight(b))
        })
    }

    /// Of the replicas with company in their zone a follower before the leader, then the one on the most loaded node; and the
    /// zone's name.
    fn crowded(&self, group: usize) -> Option<(usize, String)> {
        let draft = &self.groups[group];
        let crowded = draft.replicas.iter().copied();
        let crowded = crowded.filter(|node| self.company(draft, self.seats[*node].zone, Some(*node)) > 0);
        let follows = |node: &usize| draft.leader != Some(*node);
        let node = crowded.max_by(|a, b| {
            follows(a).cmp(&follows(b)).then(self.seats[*a].weight.total_cmp(&self.seats[*b].weight))
        })?;
        Some((node, self.seats[node].zone_name.to_string()))
    }
}
