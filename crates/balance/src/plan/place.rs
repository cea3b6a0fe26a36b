//! Where further replicas of a group go, and which can be missed, when somebody wants more or fewer: the group is new, or is to have
//! another number of replicas.
//!
//! Unlike a [`plan`](super::plan) this is asked for, so nothing bounds how many are built at a time, and who should rather not take a
//! replica takes one before nobody does. Of the load of a new group nothing is known. So nodes that are about as loaded as
//! the least loaded one are alike, and of them the one with the fewest replicas comes first: a hundred groups that
//! are made within a second do not all come to the same nodes.

use std::cmp::Ordering;

use hadron_consensus::NodeId;

use super::board::{Board, Seat};
use crate::policy::Policy;
use crate::view::View;

/// How far above the least loaded node a node may be, in parts of its capacity, and count as alike.
const ALIKE: f64 = 0.05;

/// What is wanted.
#[derive(Clone, Debug, Default)]
pub struct Wanted {
    /// Where the group has replicas.
    pub present: Vec<NodeId>,
    /// How many more, or fewer.
    pub count: usize,
    /// Where its replicas are damaged: those are missed least.
    pub damaged: Vec<NodeId>,
    /// Of nodes that suit equally well this one comes first.
    pub near: Option<NodeId>,
}

/// Nodes for `wanted.count` more replicas, the most suitable first; fewer if there are not so many of which `may_come` is true. Zones without
/// the group come first, then who is not too loaded, then who has few replicas. Who is slow, or more than 85 % full, comes after all others,
/// then who is to be emptied, and at last who is out of reach.
pub fn place(
    view: &View,
    policy: &Policy,
    wanted: &Wanted,
    may_come: impl Fn(NodeId) -> bool,
) -> Vec<NodeId> {
    let board = Board::new(view, policy);
    let mut taken: Vec<usize> = board.numbers(&wanted.present);
    let mut chosen = Vec::new();
    while chosen.len() < wanted.count {
        let open = (0..board.seats.len())
            .filter(|node| board.is_known(*node) && !taken.contains(node) && may_come(board.seats[*node].id));
        let Some(best) = board.best(open.collect(), &taken, wanted.near) else { break };
        taken.push(best);
        chosen.push(board.seats[best].id);
    }
    chosen
}

/// The `wanted.count` replicas that are missed least, first the one that is missed least of all: damaged, or on nodes that are lost, out of reach, to be
/// emptied, slow or full, with company in their zone, and then on the most loaded ones. Never the leader's.
pub fn release(view: &View, policy: &Policy, wanted: &Wanted, leader: Option<NodeId>) -> Vec<NodeId> {
    let board = Board::new(view, policy);
    let known = |node: &NodeId| board.numbers(&[*node]).into_iter().any(|node| board.is_known(node));
    // Who is no member any more goes first, and then what is damaged.
    let is_useless = |node: &NodeId| !known(node) || wanted.damaged.contains(node);
    let (mut gone, left): (Vec<NodeId>, Vec<NodeId>) = wanted.present.iter().copied().partition(is_useless);
    gone.sort_by_key(|node| known(node));
    let mut left = board.numbers(&left);
    while gone.len() < wanted.count {
        let offered = left.iter().copied().filter(|node| Some(board.seats[*node].id) != leader);
        let least = offered.max_by(|one, other| board.compare_present(*one, *other, &left));
        let Some(least) = least else { break };
        left.retain(|node| *node != least);
        gone.push(board.seats[least].id);
    }
    gone.truncate(wanted.count);
    gone
}

/// How suitable a node is for any replica, the best first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Fitness {
    Good,
    /// It takes long for an fsync, or its disk is too full.
    Strained,
    Draining,
    OutOfReach,
    Lost,
}

impl Board<'_> {
    fn numbers(&self, nodes: &[NodeId]) -> Vec<usize> {
        nodes.iter().filter_map(|node| self.number(*node)).collect()
    }

    fn fitness(&self, seat: &Seat<'_>) -> Fitness {
        match seat {
            seat if seat.is_lost => Fitness::Lost,
            seat if !seat.is_alive => Fitness::OutOfReach,
            seat if seat.is_draining => Fitness::Draining,
            seat if !seat.receives() || !self.has_room(seat, 0) => Fitness::Strained,
            _ => Fitness::Good,
        }
    }

    /// Of `open` the node that a further replica should come to, beside those on `taken`.
    fn best(&self, open: Vec<usize>, taken: &[usize], near: Option<NodeId>) -> Option<usize> {
        let place = |node: &usize| (self.fitness(&self.seats[*node]), self.company_of(*node, taken));
        let first = open.iter().map(place).min()?;
        let suitable: Vec<usize> = open.into_iter().filter(|node| place(node) == first).collect();
        let weight = |node: &usize| self.seats[*node].weight;
        let least = suitable.iter().map(weight).fold(f64::INFINITY, f64::min);
        let rank = |node: &usize| {
            let seat = &self.seats[*node];
            (seat.weight > least + ALIKE, seat.held.len(), Some(seat.id) != near)
        };
        suitable.into_iter().min_by(|one, other| {
            rank(one).cmp(&rank(other)).then(weight(one).total_cmp(&weight(other))).then(one.cmp(other))
        })
    }

    /// Which of two replicas is missed less: that is the greater.
    fn compare_present(&self, one: usize, other: usize, all: &[usize]) -> Ordering {
        let rank = |node: usize| (self.fitness(&self.seats[node]), self.company_of(node, all));
        let weight = |node: usize| self.seats[node].weight;
        rank(one).cmp(&rank(other)).then(weight(one).total_cmp(&weight(other))).then(one.cmp(&other))
    }

    /// How many of `others` are in the zone of `node`, not counting itself.
    fn company_of(&self, node: usize, others: &[usize]) -> usize {
        let zone = self.seats[node].zone;
        others.iter().filter(|other| **other != node && self.seats[**other].zone == zone).count()
    }
}
