//! What a planner decides: a [`Move`], with its reason and what it is expected to bring.

use std::fmt;

use hadron_consensus::{GroupId, NodeId};

use crate::load::Resource;

/// A change of where one group's replicas are, or of who leads it.
#[derive(Clone, Debug, PartialEq)]
pub struct Move {
    /// The group.
    pub group: GroupId,
    /// What is to be done.
    pub kind: MoveKind,
    /// Why.
    pub reason: Reason,
    /// What it is expected to bring.
    pub effect: Effect,
}

/// What is to be done. [`next_step`](crate::next_step) says how.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MoveKind {
    /// Another voter leads.
    TransferLeader {
        /// Who leads now.
        from: NodeId,
        /// Who shall.
        to: NodeId,
    },
    /// A replica is built at `to`, and then the one at `from` is removed. If that one leads, `to` leads afterwards.
    MoveReplica {
        /// The node that is to be without.
        from: NodeId,
        /// The node that is to have one.
        to: NodeId,
    },
    /// A replica is built.
    AddReplica {
        /// The node that is to have one.
        to: NodeId,
    },
    /// A replica is removed. If it leads, another voter is to lead first.
    RemoveReplica {
        /// The node that is to be without.
        from: NodeId,
    },
}

impl MoveKind {
    /// The node that loses its replica.
    pub fn source(&self) -> Option<NodeId> {
        match *self {
            MoveKind::MoveReplica { from, .. } | MoveKind::RemoveReplica { from } => Some(from),
            MoveKind::TransferLeader { .. } | MoveKind::AddReplica { .. } => None,
        }
    }

    /// The node that gets a replica.
    pub fn destination(&self) -> Option<NodeId> {
        match *self {
            MoveKind::MoveReplica { to, .. } | MoveKind::AddReplica { to } => Some(to),
            MoveKind::TransferLeader { .. } | MoveKind::RemoveReplica { .. } => None,
        }
    }

    /// Who leads when this is done, if `leader` does now.
    pub fn leader_after(&self, leader: Option<NodeId>) -> Option<NodeId> {
        match *self {
            MoveKind::TransferLeader { to, .. } => Some(to),
            MoveKind::MoveReplica { from, to } if leader == Some(from) => Some(to),
            MoveKind::RemoveReplica { from } if leader == Some(from) => None,
            _ => leader,
        }
    }

    /// The move that would take this one back.
    pub fn inverse(&self) -> MoveKind {
        match *self {
            MoveKind::TransferLeader { from, to } => MoveKind::TransferLeader { from: to, to: from },
            MoveKind::MoveReplica { from, to } => MoveKind::MoveReplica { from: to, to: from },
            MoveKind::AddReplica { to } => MoveKind::RemoveReplica { from: to },
            MoveKind::RemoveReplica { from } => MoveKind::AddReplica { to: from },
        }
    }
}

/// Why a move is made, the most urgent first.
#[derive(Clone, Debug, PartialEq)]
pub enum Reason {
    /// The group has more replicas than it shall have.
    TooMany {
        /// Voters it has.
        have: usize,
        /// Voters it shall have.
        want: usize,
    },
    /// The node has been out of reach for longer than the grace time, or is gone for good.
    Lost {
        /// The node.
        node: NodeId,
        /// Voters that can be reached.
        left: usize,
        /// Voters it shall have.
        want: usize,
    },
    /// The replica on the node differs from the others, or cannot be opened.
    Damaged {
        /// The node.
        node: NodeId,
        /// Voters that can be reached and are well.
        left: usize,
        /// Voters it shall have.
        want: usize,
    },
    /// The group has fewer replicas than it shall have.
    TooFew {
        /// Voters it has.
        have: usize,
        /// Voters it shall have.
        want: usize,
    },
    /// The node is to be emptied.
    Drained {
        /// The node.
        node: NodeId,
    },
    /// Two replicas share a zone although another has room.
    ZoneShared {
        /// The zone.
        zone: String,
    },
    /// The node's disk is too full.
    DiskFull {
        /// The node.
        node: NodeId,
        /// How full, from 0 to 1.
        used: f64,
    },
    /// The node carries more than it should.
    Overloaded {
        /// The node.
        node: NodeId,
        /// Its scarcest resource.
        resource: Resource,
        /// Its W, where 1 is full.
        load: f64,
        /// What it should carry: the level, or its heaviest replica if that is more.
        goal: f64,
    },
    /// A node carries less than it could, and others carry more than the level.
    Underused {
        /// The node.
        node: NodeId,
        /// Its W.
        load: f64,
        /// The level.
        goal: f64,
    },
}

impl Reason {
    /// In one word, for metrics and tables.
    pub fn name(&self) -> &'static str {
        match self {
            Reason::TooMany { .. } => "too-many",
            Reason::Lost { .. } => "lost",
            Reason::Damaged { .. } => "damaged-replica",
            Reason::TooFew { .. } => "too-few",
            Reason::Drained { .. } => "drained",
            Reason::ZoneShared { .. } => "zone-shared",
            Reason::DiskFull { .. } => "disk-full",
            Reason::Overloaded { .. } => "overloaded",
            Reason::Underused { .. } => "underused",
        }
    }

    /// Made for the sake of load alone: it may wait, and must not flap.
    pub fn is_balancing(&self) -> bool {
        matches!(self, Reason::Overloaded { .. } | Reason::Underused { .. })
    }
}

/// What a move is expected to bring: W before and after, where 1 is full.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Effect {
    /// Of the node that gives, if there is one that can be reached.
    pub from: Option<Change>,
    /// Of the node that takes, if there is one.
    pub to: Option<Change>,
    /// Of the most loaded node of the pool.
    pub largest: Change,
    /// Bytes that have to be sent.
    pub bytes: u64,
}

/// A number before and after.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Change {
    /// Before.
    pub before: f64,
    /// After.
    pub after: f64,
}

impl fmt::Display for Move {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Move { group, kind, reason, effect } = self;
        write!(f, "{group}: {kind}, because {reason} ({effect})")
    }
}

impl fmt::Display for MoveKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            MoveKind::TransferLeader { from, to } => write!(f, "leader {from} → {to}"),
            MoveKind::MoveReplica { from, to } => write!(f, "replica {from} → {to}"),
            MoveKind::AddReplica { to } => write!(f, "replica → {to}"),
            MoveKind::RemoveReplica { from } => write!(f, "no replica on {from}"),
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Reason::TooMany { have, want } => write!(f, "it has {have} replicas and shall have {want}"),
            Reason::Lost { node, left, want } => {
                write!(f, "{node} is lost and {left} of {want} replicas are left")
            }
            Reason::Damaged { node, left, want } => {
                write!(f, "the replica on {node} is damaged and {left} of {want} replicas are well")
            }
            Reason::TooFew { have, want } => write!(f, "it has {have} replicas and shall have {want}"),
            Reason::Drained { node } => write!(f, "{node} is drained"),
            Reason::ZoneShared { zone } => {
                write!(f, "two replicas share the zone {zone:?} and another has room")
            }
            Reason::DiskFull { node, used } => write!(f, "the disk of {node} is {} full", Percent(*used)),
            Reason::Overloaded { node, resource, load, goal } => {
                write!(
                    f,
                    "{node} is at {} of its {resource} and should be at {}",
                    Percent(*load),
                    Percent(*goal)
                )
            }
            Reason::Underused { node, load, goal } => {
                write!(f, "{node} is at {} and should be at {}", Percent(*load), Percent(*goal))
            }
        }
    }
}

impl fmt::Display for Effect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.from.iter().try_for_each(|change| write!(f, "from {change}, "))?;
        self.to.iter().try_for_each(|change| write!(f, "to {change}, "))?;
        write!(f, "largest {}", self.largest)?;
        if self.bytes > 0 { write!(f, ", {} to send", Bytes(self.bytes)) } else { Ok(()) }
    }
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ⇒ {}", Percent(self.before), Percent(self.after))
    }
}

/// The text of a move, a reason or a step with names in the place of the ids of nodes, as far as `name` knows them.
pub fn with_names(text: &str, name: impl Fn(NodeId) -> Option<String>) -> String {
    let named = |word: &str| {
        let digits = word.strip_prefix('n')?;
        let id = u64::from_str_radix(digits, 16).ok().map(NodeId);
        // Earlier versions wrote them in decimal.
        let earlier = digits.parse().ok().map(NodeId);
        id.and_then(&name).or_else(|| earlier.and_then(&name)).filter(|name| !name.is_empty())
    };
    let word = |word: &str| named(word).unwrap_or_else(|| word.to_owned());
    text.split(' ').map(word).collect::<Vec<_>>().join(" ")
}

/// A fraction, shown with one decimal: 31.4 %.
struct Percent(f64);

impl fmt::Display for Percent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.1} %", self.0 * 100.0)
    }
}

/// Bytes, in the largest unit of which there is one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bytes(pub u64);

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
        let power = (1..UNITS.len()).rev().find(|power| self.0 >> (10 * power) > 0);
        match power {
            None => write!(f, "{} B", self.0),
            Some(power) => write!(f, "{:.1} {}", self.0 as f64 / 1024f64.powi(power as i32), UNITS[power]),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nodes_are_shown_by_their_names_or_in_hexadecimal() {
        let kind = MoveKind::MoveReplica { from: NodeId(0xfeed), to: NodeId(31) };
        let reason = Reason::Damaged { node: NodeId(31), left: 2, want: 3 }.to_string();
        assert_eq!(kind.to_string(), "replica nfeed → n1f");
        let name = |id: NodeId| (id == NodeId(31)).then(|| "paris".to_owned());
        assert_eq!(with_names(&kind.to_string(), name), "replica nfeed → paris");
        assert_eq!(with_names(&reason, name), "the replica on paris is damaged and 2 of 3 replicas are well");
        assert_eq!(with_names("n31 is needed", name), "paris is needed", "as it was written before");
    }

    #[test]
    fn bytes_are_shown_in_the_largest_unit_there_is_one_of() {
        let shown = [0, 1023, 1024, 1536 << 20, 5 << 40].map(|bytes| Bytes(bytes).to_string());
        assert_eq!(shown, ["0 B", "1023 B", "1.0 KiB", "1.5 GiB", "5.0 TiB"]);
    }

    #[test]
    fn a_move_of_the_leader_s_replica_takes_the_leadership_along() {
        let (here, there) = (NodeId(1), NodeId(2));
        let kind = MoveKind::MoveReplica { from: here, to: there };
        assert_eq!(kind.leader_after(Some(here)), Some(there));
        assert_eq!(kind.leader_after(Some(NodeId(3))), Some(NodeId(3)));
        assert_eq!(kind.inverse(), MoveKind::MoveReplica { from: there, to: here });
        assert_eq!(MoveKind::RemoveReplica { from: here }.leader_after(Some(here)), None);
    }
}
