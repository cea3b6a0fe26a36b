//! Why a node that is to be emptied still has replicas.

use std::collections::BTreeMap;
use std::fmt;

use hadron_consensus::NodeId;

use super::board::{Board, Draft, Seat};
use crate::policy::Policy;
use crate::view::View;

/// What keeps a replica on a node that is to be emptied, the hardest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Hindrance {
    /// The group has no majority that can be reached: nothing about it can be changed.
    NoMajority,
    /// Every node that can be reached and stays has a replica of the group already.
    TooFewNodes,
    /// The disks of all nodes that could take it are too full for it.
    DisksFull,
    /// The disks of all nodes that could take it are too slow.
    DisksSlow,
    /// Of the nodes that could take it, some have disks that are too full for it, and the others disks that are too slow.
    DisksFullOrSlow,
    /// It will be moved once others have been.
    Turn,
}

impl Hindrance {
    /// In one word, for programs.
    pub fn name(self) -> &'static str {
        match self {
            Hindrance::NoMajority => "no-majority",
            Hindrance::TooFewNodes => "too-few-nodes",
            Hindrance::DisksFull => "disks-full",
            Hindrance::DisksSlow => "disks-slow",
            Hindrance::DisksFullOrSlow => "disks-full-or-slow",
            Hindrance::Turn => "turn",
        }
    }
}

impl fmt::Display for Hindrance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Hindrance::NoMajority => "no majority of their keyspaces' replicas can be reached",
            Hindrance::TooFewNodes => {
                "every other node that can be reached, is no learner and is not to be emptied has a replica of their keyspaces \
                 already: add a node, or want fewer replicas"
            }
            Hindrance::DisksFull => "the disks of the nodes that could take them are too full",
            Hindrance::DisksSlow => "the disks of the nodes that could take them are too slow",
            Hindrance::DisksFullOrSlow => "the disks of the nodes that could take them are too full or too slow",
            Hindrance::Turn => "others are moved first",
        })
    }
}

/// For each node that is to be emptied, how many replicas wait there for what; moves in progress count as done.
pub fn waiting(view: &View, policy: &Policy) -> BTreeMap<NodeId, BTreeMap<Hindrance, usize>> {
    let board = Board::new(view, policy);
    let mut all = BTreeMap::new();
    for seat in board.seats.iter().filter(|seat| seat.is_draining) {
        let waiting: &mut BTreeMap<Hindrance, usize> = all.entry(seat.id).or_default();
        for group in &seat.held {
            *waiting.entry(board.hindrance(&board.groups[*group])).or_default() += 1;
        }
    }
    all
}

impl Board<'_> {
    /// What keeps a replica of a group where it is.
    fn hindrance(&self, draft: &Draft<'_>) -> Hindrance {
        if draft.is_busy {
            return Hindrance::Turn;
        }
        if !self.is_idle(draft) {
            return Hindrance::NoMajority;
        }
        let is_open = |(number, seat): &(usize, &Seat<'_>)| seat.stays() && !draft.replicas.contains(number);
        let mut open = self.seats.iter().enumerate().filter(is_open).map(|(_, seat)| seat).peekable();
        if open.peek().is_none() {
            return Hindrance::TooFewNodes;
        }
        let (mut any_full, mut any_slow) = (false, false);
        for seat in open {
            match (self.has_room(seat, draft.view.bytes), seat.is_slow) {
                (true, false) => return Hindrance::Turn,
                (false, _) => any_full = true,
                (true, true) => any_slow = true,
            }
        }
        match (any_full, any_slow) {
            (true, true) => Hindrance::DisksFullOrSlow,
            (true, false) => Hindrance::DisksFull,
            (false, _) => Hindrance::DisksSlow,
        }
    }
}
