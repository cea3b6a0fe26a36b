//! How a pool stands: what an operator and the metrics are shown, and what a plan is measured by.

use hadron_consensus::{NodeId, Time};

use crate::load::{Resource, shares};
use crate::plan::Board;
use crate::policy::Policy;
use crate::view::View;

/// How a pool stands, as if all moves in progress were done.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Assessment {
    /// The moment that was looked at.
    pub at: Time,
    /// The nodes that can be reached, by id.
    pub nodes: Vec<NodeAssessment>,
    /// The mean of W over the nodes that carry it: those that stay, and those that have yet to be emptied. At most the largest.
    pub mean: f64,
    /// What each node would carry if load could be poured around the replicas that are heavier than that, once all who shall be emptied are.
    pub level: f64,
    /// The largest W.
    pub largest: f64,
    /// The largest part of W that one replica makes up where it is: no node that holds it can be below that.
    pub heaviest_replica: f64,
    /// The standard deviation of W.
    pub spread: f64,
    /// Groups with fewer voters that can be reached and are well than they shall have.
    pub short_of_replicas: usize,
    /// Groups of which no majority can be reached.
    pub without_quorum: usize,
    /// Groups with two replicas in a zone although there is another zone.
    pub sharing_a_zone: usize,
}

/// How a node stands.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct NodeAssessment {
    /// The node.
    pub node: NodeId,
    /// Its W, where 1 is full.
    pub load: f64,
    /// The resource that W is about.
    pub scarcest: Resource,
    /// B: its part in the sum of all W.
    pub share: f64,
    /// What its heaviest replica makes up alone, with what belongs to no group.
    pub heaviest_replica: f64,
    /// Replicas that it has.
    pub replicas: usize,
    /// Groups that it leads.
    pub leaders: usize,
}

/// Looks at a pool.
pub fn assess(view: &View, policy: &Policy) -> Assessment {
    let board = Board::new(view, policy);
    let mut nodes: Vec<NodeAssessment> = board.assess_nodes();
    let loads: Vec<f64> = nodes.iter().map(|node| node.load).collect();
    nodes.iter_mut().zip(shares(&loads)).for_each(|(node, share)| node.share = share);
    Assessment {
        at: view.now,
        mean: board.mean_carried(),
        level: board.level(),
        largest: loads.iter().copied().fold(0.0, f64::max),
        heaviest_replica: nodes.iter().map(|node| node.heaviest_replica).fold(0.0, f64::max),
        spread: deviation(&loads),
        short_of_replicas: board.count(|board, group| board.reachable(group) < group.view.factor),
        without_quorum: board.count(|_, group| !group.has_quorum),
        sharing_a_zone: board.count(|board, group| board.is_crowded(group)),
        nodes,
    }
}

fn deviation(loads: &[f64]) -> f64 {
    let count = loads.len().max(1) as f64;
    let mean = loads.iter().sum::<f64>() / count;
    (loads.iter().map(|load| (load - mean).powi(2)).sum::<f64>() / count).sqrt()
}

#[cfg(test)]
mod tests {
    use hadron_consensus::GroupId;

    use super::*;
    use crate::load::{Capacity, GroupLoad, Load};
    use crate::view::{GroupView, NodeView, ReplicaView};

    /// All load was divided by the nodes that stay, also that of those who had yet to be emptied: with two of three of them the mean was three
    /// times the largest.
    #[test]
    fn the_mean_is_not_above_the_largest_while_nodes_are_emptied() {
        let mut view = View::default();
        for id in 1..=3 {
            let capacity = Capacity::of(Load::each(|_| 10.0));
            view.nodes.insert(NodeId(id), NodeView { capacity, draining: id > 1, ..NodeView::default() });
            let load = GroupLoad { replica: Load::each(|_| 2.0), ..GroupLoad::default() };
            let replicas = vec![ReplicaView::voter(NodeId(id))];
            view.groups.insert(GroupId(id), GroupView { factor: 1, replicas, load, ..GroupView::default() });
        }
        let rounded = |it: Assessment| ((it.largest * 100.0).round(), (it.mean * 100.0).round());
        assert_eq!(rounded(assess(&view, &Policy::default())), (20.0, 20.0));
        for id in 2..=3 {
            view.groups.entry(GroupId(id)).and_modify(|it| it.replicas = vec![ReplicaView::voter(NodeId(1))]);
        }
        assert_eq!(rounded(assess(&view, &Policy::default())), (60.0, 60.0), "who is empty does not count");
    }
}
