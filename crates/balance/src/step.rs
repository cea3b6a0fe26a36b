//! How a move is carried out: one [`Step`] at a time, each read off what is there now.
//!
//! ```text
//!   AddLearner ──▶ CatchUp ──▶ Promote ──▶ TransferLeader (if the one that goes leads) ──▶ Remove ──▶ Done
//! ```
//! Nothing is remembered between steps. Whoever leads the pool next reads the move and the group, and goes on where it was;
//! a step that was asked for twice is found done the second time.
//!
//! **Invariant**: no step leaves a group to voters of whom no majority can be reached.

use std::fmt;

use hadron_consensus::NodeId;

use crate::moves::MoveKind;
use crate::policy::Policy;
use crate::view::{GroupView, NodeState, ReplicaRole, View};

/// What is to be done next for a move.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// A learner is to be added.
    AddLearner {
        /// Where.
        to: NodeId,
    },
    /// Wait until it lacks little.
    CatchUp {
        /// The node that catches up.
        to: NodeId,
        /// Entries that it lacks.
        lag: u64,
    },
    /// The learner is to vote.
    Promote {
        /// Where it is.
        to: NodeId,
    },
    /// Leadership is to be handed over.
    TransferLeader {
        /// To whom.
        to: NodeId,
    },
    /// The replica is to be removed.
    Remove {
        /// Where it is.
        from: NodeId,
    },
    /// Nothing: the move is done.
    Done,
    /// Nothing: the move makes no sense any more, and is to be forgotten. What it leaves is for the planner.
    Abandon(Obstacle),
}

/// Why a move makes no sense any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Obstacle {
    /// The node that was to receive is lost.
    DestinationLost(NodeId),
    /// The node that was to receive is to be emptied.
    DestinationDrained(NodeId),
    /// The group is not as it was when this was decided: somebody else changed it.
    Overtaken,
    /// The voters that would be left have no majority that can be reached.
    QuorumAtRisk,
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Step::AddLearner { to } => write!(f, "add a learner on {to}"),
            Step::CatchUp { to, lag } => write!(f, "wait for {to}, which lacks {lag} entries"),
            Step::Promote { to } => write!(f, "let {to} vote"),
            Step::TransferLeader { to } => write!(f, "hand the leadership to {to}"),
            Step::Remove { from } => write!(f, "remove the replica on {from}"),
            Step::Done => f.write_str("done"),
            Step::Abandon(obstacle) => write!(f, "given up: {obstacle}"),
        }
    }
}

impl fmt::Display for Obstacle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Obstacle::DestinationLost(node) => write!(f, "{node} is lost"),
            Obstacle::DestinationDrained(node) => write!(f, "{node} is drained"),
            Obstacle::Overtaken => f.write_str("the group was changed meanwhile"),
            Obstacle::QuorumAtRisk => f.write_str("too few of the voters that would be left can be reached"),
        }
    }
}

/// What is to be done next for a move of `group`.
pub fn next_step(view: &View, group: &GroupView, kind: &MoveKind, policy: &Policy) -> Step {
    let scene = Scene { view, group, policy };
    match *kind {
        MoveKind::TransferLeader { from, to } => scene.transfer(from, to),
        MoveKind::AddReplica { to } => scene.build(to).unwrap_or(Step::Done),
        MoveKind::RemoveReplica { from } => scene.remove(from, None),
        MoveKind::MoveReplica { from, to } => scene.replace(from, to),
    }
}

struct Scene<'a> {
    view: &'a View,
    group: &'a GroupView,
    policy: &'a Policy,
}

impl Scene<'_> {
    fn replace(&self, from: NodeId, to: NodeId) -> Step {
        let is_over = |node| self.group.replica(node).is_none();
        if is_over(from) && is_over(to) {
            return Step::Abandon(Obstacle::Overtaken);
        }
        self.build(to).unwrap_or_else(|| self.remove(from, Some(to)))
    }

    /// What is left to do until `to` votes.
    fn build(&self, to: NodeId) -> Option<Step> {
        let replica = self.group.replica(to);
        if replica.is_some_and(|replica| replica.role == ReplicaRole::Voter) {
            return None;
        }
        if let Some(obstacle) = self.obstacle(to) {
            return Some(Step::Abandon(obstacle));
        }
        Some(match replica {
            None => Step::AddLearner { to },
            Some(replica) if replica.lag > self.policy.lag_max || !self.is_alive(to) => {
                Step::CatchUp { to, lag: replica.lag }
            }
            Some(_) => Step::Promote { to },
        })
    }

    /// What is left to do until `from` is gone.
    fn remove(&self, from: NodeId, heir: Option<NodeId>) -> Step {
        let Some(replica) = self.group.replica(from) else { return Step::Done };
        if replica.role == ReplicaRole::Voter && !self.has_quorum_without(from) {
            return Step::Abandon(Obstacle::QuorumAtRisk);
        }
        if self.group.leader != Some(from) {
            return Step::Remove { from };
        }
        match heir.filter(|heir| self.can_lead(*heir)).or_else(|| self.best_heir(from)) {
            Some(to) => Step::TransferLeader { to },
            // Who leads is removed without handing over rather than never: the others elect.
            None => Step::Remove { from },
        }
    }

    fn transfer(&self, from: NodeId, to: NodeId) -> Step {
        let leader = self.group.leader;
        let replica = self.group.replica(to).filter(|replica| replica.role == ReplicaRole::Voter);
        match replica {
            Some(_) if leader == Some(to) => Step::Done,
            Some(replica) if leader == Some(from) => {
                if let Some(obstacle) = self.obstacle(to) {
                    return Step::Abandon(obstacle);
                }
                if self.can_lead(to) {
                    Step::TransferLeader { to }
                } else {
                    Step::CatchUp { to, lag: replica.lag }
                }
            }
            _ => Step::Abandon(Obstacle::Overtaken),
        }
    }

    fn obstacle(&self, to: NodeId) -> Option<Obstacle> {
        match self.view.nodes.get(&to) {
            Some(node) if node.is_lost(self.view.now, self.policy.grace_us) => {
                Some(Obstacle::DestinationLost(to))
            }
            Some(node) if node.draining => Some(Obstacle::DestinationDrained(to)),
            Some(_) => None,
            None => Some(Obstacle::DestinationLost(to)),
        }
    }

    fn is_alive(&self, node: NodeId) -> bool {
        self.view.nodes.get(&node).is_some_and(|node| node.state == NodeState::Alive)
    }

    fn can_lead(&self, node: NodeId) -> bool {
        let replica = self.group.replica(node);
        self.is_alive(node)
            && replica.is_some_and(|it| {
                it.role == ReplicaRole::Voter && it.lag <= self.policy.lag_max && !it.is_damaged
            })
    }

    /// Who lacks least of those that can lead.
    fn best_heir(&self, from: NodeId) -> Option<NodeId> {
        let others = self.group.replicas.iter().filter(|it| it.node != from && self.can_lead(it.node));
        others.min_by_key(|it| (it.lag, it.node)).map(|it| it.node)
    }

    fn has_quorum_without(&self, from: NodeId) -> bool {
        let left: Vec<NodeId> = self.group.voters().filter(|node| *node != from).collect();
        let alive = left.iter().filter(|node| self.is_alive(**node)).count();
        alive > left.len() / 2
    }
}
