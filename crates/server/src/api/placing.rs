//! Which nodes a keyspace comes to, and which it leaves: decided by what the planner knows, loads, zones, disks and who is to be
//! emptied. A node that has not heard from all others yet decides by the number of replicas alone.

use std::collections::BTreeSet;

use hadron_balance::{GroupLoad, NodeState, NodeView, Policy, View, Wanted, place, release};
use hadron_consensus::{GroupId, NodeId};
use tonic::Status;

use super::backend::Backend;
use super::beside;
use super::context::Context;

/// Replicas that a keyspace gets when nobody says how many.
const REPLICAS: usize = 3;

/// The pool, as one who places sees it.
pub(super) struct Placing {
    view: View,
    policy: Policy,
    /// The members that may carry keyspaces.
    members: BTreeSet<NodeId>,
    own: NodeId,
}

impl<B: Backend> Context<B> {
    /// Looks at the pool.
    pub(super) async fn placing(&self) -> Result<Placing, Status> {
        let (view, policy) = self.outlook().await?;
        let members = self.backend.members();
        let voters = members.iter().filter(|member| !member.is_learner).map(|member| NodeId(member.id));
        Ok(Placing::new(view, policy, voters.collect(), self.backend.identity().member_id))
    }

    /// What the planner would plan with now.
    pub(super) async fn outlook(&self) -> Result<(View, Policy), Status> {
        let backend = self.backend.clone();
        beside::run(move || backend.outlook()).await
    }
}

impl Placing {
    fn new(view: View, policy: Policy, members: BTreeSet<NodeId>, own: NodeId) -> Placing {
        let view = if view.unheard() == 0 { view } else { without_reports(view) };
        Placing { view, policy, members, own }
    }

    /// Nodes for a new keyspace; 0 replicas stand for as many as is usual.
    pub(super) fn pick(&self, replicas: usize) -> Result<Vec<NodeId>, Status> {
        let count = if replicas == 0 { REPLICAS.min(self.members.len()) } else { replicas };
        let wanted = Wanted { count, near: Some(self.own), ..Wanted::default() };
        let nodes = place(&self.view, &self.policy, &wanted, |node| self.members.contains(&node));
        self.check(&nodes, count)?;
        Ok(nodes)
    }

    /// Nodes for a keyspace that is on `present` and is to have so many replicas. Who stays keeps its place, and the leader stays.
    pub(super) fn resize(
        &self,
        group: GroupId,
        present: &[NodeId],
        replicas: usize,
        leader: Option<NodeId>,
        may_come: impl Fn(NodeId) -> bool,
    ) -> Result<Vec<NodeId>, Status> {
        let count = replicas.abs_diff(present.len());
        let replicas_seen = self.view.groups.get(&group).map(|group| group.replicas.as_slice());
        let damaged = replicas_seen.unwrap_or_default().iter().filter(|replica| replica.is_damaged);
        let damaged = damaged.map(|replica| replica.node).filter(|node| Some(*node) != leader).collect();
        let wanted = Wanted { present: present.to_vec(), count, near: Some(self.own), damaged };
        if replicas <= present.len() {
            let gone = release(&self.view, &self.policy, &wanted, leader);
            return Ok(present.iter().copied().filter(|node| !gone.contains(node)).collect());
        }
        let may_come = |node| self.members.contains(&node) && may_come(node);
        let come = place(&self.view, &self.policy, &wanted, may_come);
        let nodes: Vec<NodeId> = present.iter().copied().chain(come).collect();
        self.check(&nodes, replicas)?;
        Ok(nodes)
    }

    /// Refuses what could not begin to serve, or has too few nodes.
    fn check(&self, nodes: &[NodeId], wanted: usize) -> Result<(), Status> {
        if nodes.len() < wanted {
            let members = self.members.len();
            let text = format!("hadron: {wanted} replicas need as many nodes, and {members} can take one");
            return Err(Status::failed_precondition(text));
        }
        let is_alive =
            |node: &&NodeId| self.view.nodes.get(node).is_some_and(|node| node.state == NodeState::Alive);
        let alive = nodes.iter().filter(is_alive).count();
        if alive < wanted / 2 + 1 {
            let text =
                format!("hadron: {wanted} replicas need a majority of nodes that are alive, and {alive} are");
            return Err(Status::unavailable(text));
        }
        Ok(())
    }
}

/// The view of one who knows the roster and the catalog alone. What a few nodes said would only mislead.
fn without_reports(mut view: View) -> View {
    for node in view.nodes.values_mut() {
        *node = NodeView { state: node.state, draining: node.draining, ..NodeView::default() };
    }
    view.groups.values_mut().for_each(|group| group.load = GroupLoad::default());
    view
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use hadron_balance::{Capacity, Disk, GroupView, Load, ReplicaView, Resource};
    use hadron_consensus::Time;
    use tonic::Code;

    use super::*;

    fn nodes(ids: &[u64]) -> Vec<NodeId> {
        ids.iter().copied().map(NodeId).collect()
    }

    /// Nodes 1 to 5, of which 5 is down; node n has n replicas. `is_heard` says who has reported.
    fn view(is_heard: impl Fn(u64) -> bool) -> View {
        let mut view = View { now: Time(1), ..View::default() };
        for id in 1..=5 {
            let state = if id == 5 { NodeState::Suspected { since: Time(1) } } else { NodeState::Alive };
            let cores = if is_heard(id) { 10.0 } else { 0.0 };
            let capacity = Capacity::of(Load::ZERO.with(Resource::Cpu, cores));
            view.nodes.insert(NodeId(id), NodeView { state, capacity, ..NodeView::default() });
            for number in 0..id {
                let replicas = vec![ReplicaView::voter(NodeId(id))];
                let group = GroupView { factor: 1, replicas, ..GroupView::default() };
                view.groups.insert(GroupId(id * 10 + number), group);
            }
        }
        view
    }

    fn placing(view: View) -> Placing {
        Placing::new(view, Policy::default(), nodes(&[1, 2, 3, 4, 5]).into_iter().collect(), NodeId(4))
    }

    #[test]
    fn a_new_keyspace_comes_to_those_with_the_fewest_replicas() {
        let placing = |is_heard: fn(u64) -> bool| placing(view(is_heard));
        for is_heard in [|_| true, |_| false, |id| id == 1] {
            assert_eq!(placing(is_heard).pick(0).unwrap(), nodes(&[1, 2, 3]));
            assert_eq!(placing(is_heard).pick(5).unwrap(), nodes(&[1, 2, 3, 4, 5]), "who is down comes last");
        }
        assert_eq!(placing(|_| true).pick(6).unwrap_err().code(), Code::FailedPrecondition);
        let empty = View { groups: Default::default(), ..view(|_| true) };
        assert_eq!(self::placing(empty).pick(1).unwrap(), nodes(&[4]), "the node that is asked");
    }

    #[test]
    fn loads_zones_and_disks_count_once_all_nodes_were_heard_of() {
        let change = |mut view: View| {
            let busy = view.nodes.get_mut(&NodeId(1)).unwrap();
            busy.own_load = Load::ZERO.with(Resource::Cpu, 5.0);
            view.nodes.get_mut(&NodeId(2)).unwrap().disk = Disk { used: 90, total: 100 };
            view.nodes.get_mut(&NodeId(3)).unwrap().zone = "a".to_owned();
            view.nodes.get_mut(&NodeId(4)).unwrap().zone = "b".to_owned();
            view
        };
        assert_eq!(placing(change(view(|_| true))).pick(3).unwrap(), nodes(&[3, 4, 1]), "a zone each");
        let mut one_zone = change(view(|_| true));
        one_zone.nodes.values_mut().for_each(|node| node.zone.clear());
        assert_eq!(
            placing(one_zone).pick(2).unwrap(),
            nodes(&[3, 4]),
            "neither the busy one nor the full one"
        );
        assert_eq!(
            placing(change(view(|id| id != 4))).pick(2).unwrap(),
            nodes(&[1, 2]),
            "one was not heard of"
        );
    }

    #[test]
    fn who_is_to_be_emptied_gets_nothing_while_others_can_take_it() {
        let mut view = view(|_| true);
        view.nodes.get_mut(&NodeId(1)).unwrap().draining = true;
        let placing = placing(view);
        assert_eq!(placing.pick(3).unwrap(), nodes(&[2, 3, 4]));
        assert_eq!(placing.pick(4).unwrap(), nodes(&[2, 3, 4, 1]));
        let resized = placing.resize(GroupId(1), &nodes(&[1, 2, 3]), 2, None, |_| true).unwrap();
        assert_eq!(resized, nodes(&[2, 3]), "and is left first");
    }

    #[test]
    fn a_pool_that_is_mostly_down_takes_no_keyspace() {
        let mut view = view(|_| true);
        for id in [2, 3, 4] {
            view.nodes.get_mut(&NodeId(id)).unwrap().state = NodeState::Suspected { since: Time(1) };
        }
        assert_eq!(placing(view.clone()).pick(0).unwrap_err().code(), Code::Unavailable);
        assert_eq!(placing(view).pick(1).unwrap(), nodes(&[1]));
    }

    #[test]
    fn who_stays_keeps_its_place_and_the_leader_stays() {
        let resize = |present: &[u64], replicas, leader: Option<u64>| {
            let placing = placing(view(|_| true));
            placing
                .resize(GroupId(1), &nodes(present), replicas, leader.map(NodeId), |node| node != NodeId(1))
        };
        assert_eq!(resize(&[3], 3, Some(3)).unwrap(), nodes(&[3, 2, 4]), "1 has yet to go");
        assert_eq!(resize(&[5, 3, 1], 1, Some(5)).unwrap(), nodes(&[5]));
        assert_eq!(resize(&[5, 3, 1], 2, None).unwrap(), nodes(&[3, 1]), "who is down goes");
        assert_eq!(resize(&[9, 3, 1], 2, None).unwrap(), nodes(&[3, 1]), "who is no member goes");
        assert_eq!(resize(&[2, 3], 2, None).unwrap(), nodes(&[2, 3]));
        assert_eq!(resize(&[2], 5, None).unwrap_err().code(), Code::FailedPrecondition);
    }
}
