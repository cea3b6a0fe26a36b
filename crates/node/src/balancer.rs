//! The balancer: from what the root group says and the nodes report to a planner's [`View`], and from a planned [`Move`] to what
//! carries it out.
//!
//! ```text
//!   catalog, roster ─┐                                     ┌─▶ a txn on the catalog ─▶ `reconfigure`, `placement`
//!   reports ─────────┼─▶ View ─▶ hadron_balance::plan ─▶ Move
//!   who is alive ────┘                                     └─▶ a question to the leader: hand over
//! ```
//! A move is decided by changing the placement. What is under way is read off the catalog: a replica that is leaving, and the
//! one that has yet to come in its place. So there is no list of moves that somebody would have to carry on when the root group's leader
//! changes in the middle: the groups' leaders go on by themselves.

use std::collections::{BTreeMap, BTreeSet};

use hadron_balance::{
    Disk, GroupLoad, GroupView, Move, MoveKind, NodeState, NodeView, ReplicaView, Resource, View,
};
use hadron_consensus::{GroupId, NodeId, Time};
use hadron_keyspace::Command;

use crate::board::Board;
use crate::catalog::{Catalog, MoveRecord, Placement, Recorded};
use crate::report::{Report, Settled, load_of};
use crate::roster::Pool;

/// As much of the time between two looks counts as silence of those who are not there at the second: nobody knows who was there in the rest
/// of it. It is twice the pause between two plans. Who leads the root group again looked perhaps an hour ago.
const LOOK_US: u64 = 10_000_000;

/// What a planner remembers from one view to the next.
#[derive(Debug, Default)]
pub struct Balancer {
    /// When it looked last.
    looked_at: Option<Time>,
    /// When each node was alive last; moved up by the time in which nobody looked.
    alive_at: BTreeMap<NodeId, Time>,
    /// Each group's placement and leader, and since when they are that.
    known: BTreeMap<GroupId, Known>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Known {
    revision: i64,
    leader: Option<NodeId>,
    /// `None` for what was found so at the first look.
    since: Option<Time>,
}

/// How a move is begun.
#[derive(Debug, PartialEq)]
pub enum Decision {
    /// By this command of the root group.
    Place(Command),
    /// By a word to the node that leads: see [`crate::Event::HandOverTo`].
    HandOver {
        /// The group.
        group: GroupId,
        /// Who leads it.
        from: NodeId,
        /// Who shall.
        to: NodeId,
        /// The command of the root group that remembers it.
        record: Command,
    },
}

impl Balancer {
    /// The pool as `me` knows it at `now`.
    pub fn view(&mut self, now: Time, board: &Board, me: NodeId) -> View {
        let reports = board.reports();
        let pool = board.pool();
        let mut alive = board.alive();
        alive.insert(me);
        self.look(now, &alive);
        let leads = leads(&reports, &alive);
        board.with_catalog(|catalog| {
            let mut view = View { now, ..View::default() };
            for member in &pool.roster.members {
                let node = member.node();
                let state = self.state_of(node, alive.contains(&node), now);
                let seen = node_view(state, reports.get(&node));
                let draining = catalog.is_draining(node);
                view.nodes.insert(node, NodeView { draining, learner: member.is_learner, ..seen });
            }
            for (group, placement) in catalog.placements() {
                let leader = leads.get(&group).copied();
                let leaving: Vec<NodeId> = catalog.leaving_of(group).collect();
                let said = said(&reports, group, leader, &leaving);
                let change = Change::of(catalog, group, placement, said);
                view.moves.extend(change.kind().map(|kind| (group, kind)));
                let seen = self.group_view(now, (group, placement), &change, (leader, &reports, &alive));
                view.groups.insert(group, GroupView { leaving, ..seen });
            }
            for keyspace in catalog.keyspaces() {
                if let Some(group) = view.groups.get_mut(&keyspace.group_id()) {
                    group.factor = keyspace.replicas as usize;
                }
            }
            self.known.retain(|group, _| view.groups.contains_key(group));
            bury(&mut view, &pool);
            view
        })
    }

    fn look(&mut self, now: Time, alive: &BTreeSet<NodeId>) {
        let since = self.looked_at.replace(now).map_or(0, |before| now.micros_since(before));
        let unseen = since.saturating_sub(LOOK_US);
        self.alive_at.values_mut().for_each(|at| *at = at.plus_micros(unseen));
        self.alive_at.extend(alive.iter().map(|node| (*node, now)));
    }

    fn state_of(&mut self, node: NodeId, is_alive: bool, now: Time) -> NodeState {
        if is_alive {
            return NodeState::Alive;
        }
        // Its grace begins with the first look: who leads the root group has perhaps just begun to.
        NodeState::Suspected { since: *self.alive_at.entry(node).or_insert(now) }
    }

    fn group_view(
        &mut self,
        now: Time,
        (group, placement): (GroupId, &Recorded<Placement>),
        change: &Change,
        (leader, reports, alive): (Option<NodeId>, &BTreeMap<NodeId, Report>, &BTreeSet<NodeId>),
    ) -> GroupView {
        let voters: Vec<NodeId> = change.staying.iter().copied().chain(change.going).collect();
        let measured = |node: &NodeId| {
            let replica = reports.get(node).and_then(|report| report.replica(group));
            replica.map(|replica| load_of(&replica.steady)).unwrap_or_default()
        };
        let followers: Vec<_> = voters.iter().filter(|node| Some(**node) != leader).map(measured).collect();
        let load = match &leader {
            Some(leader) => GroupLoad::split(&measured(leader), &followers),
            None => GroupLoad::split(&Default::default(), &followers),
        };
        let is_damaged = |node: NodeId| {
            let damaged = reports.get(&node).and_then(|report| report.damaged(group));
            // A report may be older than the replica that is there now.
            damaged.is_some() && damaged == placement.record.replica_on(node)
        };
        let may_lead = |node: &NodeId| alive.contains(node) && !is_damaged(*node);
        let learners = change.coming.iter().map(|node| ReplicaView::learner(*node, 0));
        let replicas = voters.iter().map(|node| ReplicaView::voter(*node)).chain(learners);
        GroupView {
            factor: placement.record.places.len(),
            bytes: voters
                .iter()
                .map(|node| measured(node)[Resource::Storage] as u64)
                .max()
                .unwrap_or_default(),
            // A group that sleeps since all its nodes were started has no leader, and gets one as soon as it is wanted elsewhere.
            leader: leader.or_else(|| voters.iter().copied().find(may_lead)),
            replicas: replicas.map(|it| ReplicaView { is_damaged: is_damaged(it.node), ..it }).collect(),
            load,
            changed_at: self.changed_at(now, group, placement.revision, leader),
            leaving: Vec::new(),
        }
    }

    fn changed_at(
        &mut self,
        now: Time,
        group: GroupId,
        revision: i64,
        leader: Option<NodeId>,
    ) -> Option<Time> {
        let found = Known { revision, leader, since: None };
        let known = self.known.entry(group).or_insert(found);
        // To get a leader at last is no change: it cost nobody its load.
        let is_led_as_before = known.leader == leader || known.leader.is_none() || leader.is_none();
        if known.revision != revision || !is_led_as_before {
            *known = Known { since: Some(now), ..found };
        }
        known.leader = leader.or(known.leader);
        known.since
    }
}

/// What a planner has decided, as it is begun; `None` if the catalog has moved on and the move makes no sense any more. `at_ms` is
/// for people.
pub fn decide(catalog: &Catalog, planned: &Move, at_ms: i64) -> Option<Decision> {
    let group = planned.group;
    let present = &catalog.placement(group)?.record;
    let record = MoveRecord {
        at_ms,
        group: group.0,
        kind: planned.kind.to_string(),
        cause: planned.reason.name().to_owned(),
        reason: planned.reason.to_string(),
        effect: planned.effect.to_string(),
        bytes: planned.effect.bytes,
    };
    if let MoveKind::TransferLeader { from, to } = planned.kind {
        return Some(Decision::HandOver { group, from, to, record: Catalog::remember(group, &record) });
    }
    let is_placed = |node: NodeId| present.replica_on(node).is_some();
    let (source, destination) = (planned.kind.source(), planned.kind.destination());
    if destination.is_some_and(is_placed) || source.is_some_and(|node| !is_placed(node)) {
        return None;
    }
    let mut nodes: Vec<NodeId> = present.nodes().collect();
    nodes.retain(|node| Some(*node) != source);
    nodes.extend(destination);
    catalog.place_recorded(group, &nodes, &record).map(Decision::Place)
}

fn node_view(state: NodeState, report: Option<&Report>) -> NodeView {
    let Some(report) = report else { return NodeView { state, ..NodeView::default() } };
    NodeView {
        zone: report.zone.clone(),
        capacity: report.capacity(),
        state,
        disk: Disk { used: report.disk_used, total: report.disk_total },
        own_load: load_of(&report.own),
        fsync_us: report.fsync_us,
        ..NodeView::default()
    }
}

/// Who leads what, as the nodes that are alive report. The last report of a node that died says for ever that it leads.
pub fn leads(reports: &BTreeMap<NodeId, Report>, alive: &BTreeSet<NodeId>) -> BTreeMap<GroupId, NodeId> {
    let mut leads = BTreeMap::new();
    for (node, report) in reports.iter().filter(|(node, _)| alive.contains(node)) {
        for group in &report.leads {
            leads.entry(GroupId(*group)).or_insert(*node);
        }
    }
    leads
}

/// How far a group has come that a replica is to leave: who says most knows best.
fn settled(reports: &BTreeMap<NodeId, Report>, group: GroupId) -> Option<&Settled> {
    let said = reports.values().filter_map(|report| report.settled(group));
    said.max_by_key(|settled| (settled.revision, settled.voters.len()))
}

/// How far a group has come, if that is told. Where no replica is to leave, it is told by its leader alone, and only as long as there is
/// something to be done.
fn said<'a>(
    reports: &'a BTreeMap<NodeId, Report>,
    group: GroupId,
    leader: Option<NodeId>,
    leaving: &[NodeId],
) -> Option<&'a Settled> {
    match leaving {
        [] => leader.and_then(|leader| reports.get(&leader)?.settled(group)),
        _ => settled(reports, group),
    }
}

/// Since which revision the group's replica on a node is to leave.
fn leaving_since(catalog: &Catalog, group: GroupId, node: NodeId) -> Option<i64> {
    catalog.leaving(group, node).map(|leaving| leaving.revision)
}

/// Replicas that are wanted elsewhere and still needed where they are, by node. A node that is gone for good does not tell that its
/// replicas are; that they are not needed any more their groups' leaders do.
pub fn still_needed(catalog: &Catalog, reports: &BTreeMap<NodeId, Report>) -> BTreeMap<NodeId, usize> {
    let mut counts = BTreeMap::new();
    for (group, _) in catalog.placements() {
        let settled = settled(reports, group).map(|settled| settled.revision);
        for node in catalog.leaving_of(group).filter(|node| settled < leaving_since(catalog, group, *node)) {
            *counts.entry(node).or_default() += 1;
        }
    }
    counts
}

/// The way from a group's voters to its placement.
struct Change {
    /// The nodes that vote and shall.
    staying: Vec<NodeId>,
    /// The nodes that shall vote and do not yet, the newest last.
    coming: Vec<NodeId>,
    /// A node that votes and shall not.
    going: Option<NodeId>,
}

impl Change {
    fn of(
        catalog: &Catalog,
        group: GroupId,
        placement: &Recorded<Placement>,
        said: Option<&Settled>,
    ) -> Change {
        let mut places = placement.record.places.clone();
        places.sort_by_key(|place| place.replica);
        let wanted: Vec<NodeId> = places.iter().map(|place| NodeId(place.node)).collect();
        let voters = match said {
            Some(said) if said.revision >= placement.revision => wanted.clone(),
            Some(said) if !said.voters.is_empty() => said.voters.iter().copied().map(NodeId).collect(),
            _ => before_last_move(catalog, group, &placement.record, said.map(|said| said.revision)),
        };
        let going = voters.iter().copied().find(|node| !wanted.contains(node));
        let (staying, coming) = wanted.into_iter().partition(|node| voters.contains(node));
        Change { staying, coming, going }
    }

    /// What is under way.
    fn kind(&self) -> Option<MoveKind> {
        Some(match (self.going, self.coming.last().copied()) {
            (Some(from), Some(to)) => MoveKind::MoveReplica { from, to },
            (Some(from), None) => MoveKind::RemoveReplica { from },
            (None, Some(to)) => MoveKind::AddReplica { to },
            (None, None) => return None,
        })
    }
}

/// The voters of a group as far as the catalog tells, until somebody says who they are: those before the last move, if a replica is to leave
/// and the group has not come to that yet. Who came last came in its place, unless all were there from the start.
fn before_last_move(
    catalog: &Catalog,
    group: GroupId,
    placement: &Placement,
    settled: Option<i64>,
) -> Vec<NodeId> {
    let since = |node: &NodeId| leaving_since(catalog, group, *node);
    let last = catalog.leaving_of(group).max_by_key(since).filter(|node| settled < since(node));
    let newest = placement.places.iter().max_by_key(|place| place.replica);
    let newest = newest.filter(|newest| placement.first.iter().all(|place| place.replica != newest.replica));
    let came = last.and(newest).map(|place| NodeId(place.node));
    placement.nodes().filter(|node| Some(*node) != came).chain(last).collect()
}

/// Nodes that are no members any more and still shall have replicas.
fn bury(view: &mut View, pool: &Pool) {
    let is_member = |node: &NodeId| pool.roster.member(node.0).is_some();
    let placed: Vec<NodeId> =
        view.groups.values().flat_map(|group| group.replicas.iter().map(|replica| replica.node)).collect();
    for node in placed.into_iter().filter(|node| !is_member(node)) {
        view.nodes.entry(node).or_insert(NodeView { state: NodeState::Dead, ..NodeView::default() });
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::sync::Arc;

    use hadron_balance::{Policy, Reason, plan};
    use hadron_consensus::ReplicaId;
    use hadron_keyspace::{Applied, Keyspace};
    use hadron_storage::engine::ModelEngine;

    use super::*;
    use crate::catalog::{KeyspaceRecord, keys_of};
    use crate::membership::Member;
    use crate::reconfigure::first_configuration;
    use crate::report::{Damaged, settled as said_by};
    use crate::roster::Roster;

    const GROUP: GroupId = GroupId(2);
    const ME: NodeId = NodeId(1);

    struct World {
        board: Board,
        root: Arc<Keyspace>,
    }

    impl World {
        /// Nodes 1 to 4, with one keyspace on the first three.
        fn new() -> World {
            World::of(4)
        }

        /// Nodes from 1 on, with one keyspace on the first three.
        fn of(nodes: u64) -> World {
            let root = Keyspace::open(Arc::new(ModelEngine::new()), 0, Default::default()).unwrap();
            let board = Board::default();
            let member = |id| Member { id, replica: id, ..Member::default() };
            let roster = Roster::of(&(1..=nodes).map(member).collect::<Vec<_>>());
            board.set_pool(Arc::new(Pool { roster, ..Pool::default() }), ME);
            board.set_alive((2..=nodes).map(NodeId).collect());
            let world = World { board, root };
            let wanted = KeyspaceRecord { name: "a".into(), ..Default::default() };
            let nodes = [1, 2, 3].map(NodeId);
            let made = world.board.with_catalog(|catalog| catalog.create(&wanted, &nodes)).unwrap();
            world.apply(made);
            world
        }

        fn apply(&self, command: Command) {
            let keys = keys_of(&command);
            let applied = Applied { index: self.root.applied().index + 1, ..self.root.applied() };
            self.root.apply(applied, vec![command]);
            self.board.refresh_catalog(&self.root, &keys).unwrap();
        }

        fn decide(&self, planned: &Move) -> Option<Decision> {
            self.board.with_catalog(|catalog| decide(catalog, planned, 7))
        }

        /// Decides a move of a replica. Returns the revision of the placement.
        fn place(&self, kind: MoveKind) -> i64 {
            let Some(Decision::Place(command)) = self.decide(&moving(kind)) else {
                panic!("nothing decided")
            };
            self.apply(command);
            self.board.with_catalog(|catalog| catalog.placement(GROUP).unwrap().revision)
        }

        /// Node 1 leads the group and says how far it has come.
        fn report_settled(&self, revision: i64, voters: &[u64]) {
            let settled = vec![Settled { group: GROUP.0, revision, voters: voters.to_vec() }];
            self.board.set_report(ME, Report { leads: vec![GROUP.0], settled, ..Report::default() });
        }

        fn set_alive(&self, nodes: &[u64]) {
            self.board.set_alive(nodes.iter().copied().map(NodeId).collect());
        }

        /// What is planned for those who are out of reach by now for good.
        fn plan(&self) -> Vec<Move> {
            let view = Balancer::default().view(Time(1), &self.board, ME);
            plan(&view, &Policy { grace_us: 0, ..Policy::default() })
        }

        fn under_way(&self) -> Option<MoveKind> {
            let view = Balancer::default().view(Time(1), &self.board, ME);
            view.moves.get(&GROUP).copied()
        }
    }

    fn moving(kind: MoveKind) -> Move {
        let reason = Reason::Drained { node: NodeId(2) };
        Move { group: GROUP, kind, reason, effect: Default::default() }
    }

    /// While a replica had yet to vote, and the other newcomer was lost, the same one was wanted once more. Its node stood in the placement
    /// twice, so that the lost one went as one too many: three were counted where two were, for good.
    #[test]
    fn nobody_has_a_group_twice() {
        let world = World::new();
        let of = |kind| world.decide(&moving(kind));
        let (second, third, fourth) = (NodeId(2), NodeId(3), NodeId(4));
        assert!(of(MoveKind::AddReplica { to: third }).is_none());
        assert!(of(MoveKind::MoveReplica { from: second, to: third }).is_none());
        assert!(of(MoveKind::MoveReplica { from: fourth, to: NodeId(5) }).is_none());
        assert!(of(MoveKind::AddReplica { to: fourth }).is_some());
        let placed = world.board.with_catalog(|catalog| catalog.placement(GROUP).map(|it| it.record.clone()));
        let again = placed.unwrap().moved_to(&[third, fourth, third, fourth], "");
        assert_eq!(again.nodes().collect::<Vec<_>>(), [third, fourth]);
    }

    #[test]
    fn a_move_is_a_change_of_the_placement_and_is_seen_until_it_is_done() {
        let world = World::new();
        let mut balancer = Balancer::default();
        let view = balancer.view(Time(1), &world.board, ME);
        assert_eq!(view.groups[&GROUP].replicas.len(), 3);
        assert!(view.moves.is_empty() && view.groups[&GROUP].changed_at.is_none());

        let kind = MoveKind::MoveReplica { from: NodeId(2), to: NodeId(4) };
        let Some(Decision::Place(command)) = world.decide(&moving(kind)) else { panic!("nothing decided") };
        world.apply(command);
        let view = balancer.view(Time(5), &world.board, ME);
        assert_eq!(view.moves[&GROUP], kind);
        let mut nodes: Vec<u64> = view.groups[&GROUP].voters().map(|node| node.0).collect();
        nodes.sort_unstable();
        assert_eq!(nodes, [1, 2, 3], "as long as the one that goes is there");
        assert_eq!(view.groups[&GROUP].changed_at, Some(Time(5)));

        let since = world.board.with_catalog(|catalog| catalog.leaving(GROUP, NodeId(2)).unwrap().revision);
        world.apply(Catalog::left(&[(GROUP, since)], NodeId(2)));
        let view = balancer.view(Time(9), &world.board, ME);
        assert!(view.moves.is_empty());
        assert!(view.groups[&GROUP].replica(NodeId(4)).is_some());
        let recorded = crate::catalog::moves(&world.root);
        assert_eq!((recorded[0].at_ms, recorded[0].cause.as_str()), (7, "drained"));
    }

    /// Two nodes can receive two replicas each at a time. A dead node never said that its replicas were gone, so that after the
    /// first four nothing was rebuilt, and what had been rebuilt was never moved again.
    #[test]
    fn a_move_off_a_dead_node_is_done_when_the_group_does_without_it() {
        let world = World::new();
        let kind = MoveKind::MoveReplica { from: NodeId(3), to: NodeId(4) };
        let Some(Decision::Place(command)) = world.decide(&moving(kind)) else { panic!("nothing decided") };
        world.apply(command);
        let wanted = world.board.with_catalog(|catalog| catalog.placement(GROUP).unwrap().revision);
        let mut balancer = Balancer::default();
        let mut at = |settled: i64| {
            let settled = vec![Settled { group: GROUP.0, revision: settled, voters: Vec::new() }];
            let leads = vec![GROUP.0];
            world.board.set_report(NodeId(2), Report { leads, settled, ..Report::default() });
            balancer.view(Time(1), &world.board, ME)
        };
        assert_eq!(at(wanted - 1).moves[&GROUP], kind);
        let view = at(wanted);
        assert!(view.moves.is_empty());
        assert_eq!(view.groups[&GROUP].voters().collect::<Vec<_>>(), [1, 2, 4].map(NodeId));

        let kind = MoveKind::MoveReplica { from: NodeId(1), to: NodeId(5) };
        let Some(Decision::Place(command)) = world.decide(&moving(kind)) else { panic!("nothing decided") };
        world.apply(command);
        assert_eq!(at(wanted).moves[&GROUP], kind, "the last one");
    }

    /// A move was under way for as long as its group had not come to it. One to a node that died before it had caught up never ended: the
    /// group was not mended any more, and the node could not be removed.
    #[test]
    fn a_move_to_a_node_that_dies_goes_to_another() {
        let world = World::of(5);
        let kind = MoveKind::MoveReplica { from: NodeId(2), to: NodeId(4) };
        world.place(kind);
        world.report_settled(0, &[1, 2, 3]);
        assert_eq!((world.under_way(), world.plan()), (Some(kind), Vec::new()));
        world.set_alive(&[2, 3, 5]);
        let planned = world.plan();
        assert_eq!(planned[0].kind, MoveKind::MoveReplica { from: NodeId(4), to: NodeId(5) }, "{planned:?}");
        let wanted = world.place(planned[0].kind);
        let view = Balancer::default().view(Time(1), &world.board, ME);
        assert_eq!(view.moves[&GROUP], MoveKind::MoveReplica { from: NodeId(2), to: NodeId(5) });
        assert_eq!(view.groups[&GROUP].voters().collect::<BTreeSet<_>>(), [1, 2, 3].map(NodeId).into());
        assert_eq!(world.plan(), []);
        world.report_settled(wanted, &[]);
        assert_eq!(world.under_way(), None);
    }

    #[test]
    fn a_move_to_a_node_whose_replica_is_damaged_goes_to_another() {
        let world = World::of(5);
        world.place(MoveKind::MoveReplica { from: NodeId(2), to: NodeId(4) });
        world.report_settled(0, &[1, 2, 3]);
        let damaged = vec![Damaged { group: GROUP.0, replica: 4 }];
        world.board.set_report(NodeId(4), Report { damaged, ..Report::default() });
        let planned = world.plan();
        assert_eq!(planned[0].kind, MoveKind::MoveReplica { from: NodeId(4), to: NodeId(5) }, "{planned:?}");
        assert_eq!(planned[0].reason.name(), "damaged-replica");
    }

    /// The catalog went on to name the node although it was no member any more, and the next move waited for it too.
    #[test]
    fn a_move_to_a_node_that_is_removed_is_given_up_where_there_is_no_other() {
        let world = World::new();
        world.place(MoveKind::MoveReplica { from: NodeId(2), to: NodeId(4) });
        world.report_settled(0, &[1, 2, 3]);
        let mut pool = (*world.board.pool()).clone();
        pool.roster.remove(4).unwrap();
        world.board.set_pool(Arc::new(pool), ME);
        world.set_alive(&[2, 3]);
        let planned = world.plan();
        assert_eq!(planned[0].kind, MoveKind::RemoveReplica { from: NodeId(4) }, "{planned:?}");
        let wanted = world.place(planned[0].kind);
        assert_eq!(world.under_way(), Some(MoveKind::RemoveReplica { from: NodeId(2) }));

        world.report_settled(wanted, &[]);
        assert_eq!(world.plan(), [], "node 2 has yet to give up its replica");
        let since = world.board.with_catalog(|catalog| catalog.leaving(GROUP, NodeId(2)).unwrap().revision);
        world.apply(Catalog::left(&[(GROUP, since)], NodeId(2)));
        let mut record = world.board.with_catalog(|catalog| catalog.keyspace("a").unwrap());
        record.replicas = 3;
        world.apply(world.board.with_catalog(|catalog| catalog.alter(&record)).unwrap());
        assert_eq!(world.plan()[0].kind, MoveKind::AddReplica { to: NodeId(2) });
    }

    /// Only who led a group said how far it had come. A group that sleeps since all nodes were started has no leader: moves off a dead node
    /// that had long been over counted as under way, and took the turns of others.
    #[test]
    fn a_move_is_over_also_if_its_group_sleeps_without_a_leader() {
        let world = World::new();
        let kind = MoveKind::MoveReplica { from: NodeId(3), to: NodeId(4) };
        let wanted = world.place(kind);
        let keyspace = || Keyspace::open(Arc::new(ModelEngine::new()), 0, Default::default()).unwrap();
        let here = world.board.add_group(GROUP, keyspace());
        let seen = |settled: i64| {
            here.set_settled(settled);
            let report = Report { settled: said_by(&world.board, ME), ..Report::default() };
            world.board.set_report(ME, report);
            world.under_way()
        };
        assert_eq!(seen(wanted - 1), Some(kind));
        assert_eq!(seen(wanted), None);
        let wanted = KeyspaceRecord { name: "b".into(), ..Default::default() };
        let made = world.board.with_catalog(|catalog| catalog.create(&wanted, &[ME])).unwrap();
        world.apply(made);
        world.board.add_group(GroupId(3), keyspace());
        assert_eq!(said_by(&world.board, ME).len(), 1, "what is where it shall be is not worth a word");
    }

    /// What was added was seen as a voter at once, while its bytes had yet to be sent: its node was given one after the other.
    #[test]
    fn a_replica_that_is_added_is_under_way_until_it_votes() {
        let world = World::new();
        let kind = MoveKind::AddReplica { to: NodeId(4) };
        let wanted = world.place(kind);
        let keyspace = Keyspace::open(Arc::new(ModelEngine::new()), 0, Default::default()).unwrap();
        let here = world.board.add_group(GROUP, keyspace);
        let voters: Vec<_> = (1..=3).map(|id| (ReplicaId(id), NodeId(id))).collect();
        here.set_configuration(first_configuration(&voters), ReplicaId(1));
        let seen = |leader: u64| {
            here.set_status(Some(NodeId(leader)), Default::default(), 0);
            let leads = if leader == ME.0 { vec![GROUP.0] } else { Vec::new() };
            let settled = said_by(&world.board, ME);
            world.board.set_report(ME, Report { leads, settled, ..Report::default() });
            let view = Balancer::default().view(Time(1), &world.board, ME);
            (view.moves.get(&GROUP).copied(), view.groups[&GROUP].voters().count())
        };
        assert_eq!(seen(1), (Some(kind), 3));
        assert_eq!(seen(2), (None, 4), "who only follows may lag behind");
        here.set_settled(wanted);
        assert_eq!(seen(1), (None, 4));
    }

    /// The time for which a node that had just stopped was said to be silent began when this one had led the root group last.
    #[test]
    fn time_in_which_nobody_looked_is_no_silence() {
        const SECOND_US: u64 = 1_000_000;
        let world = World::new();
        let mut balancer = Balancer::default();
        let mut is_lost = |seconds: u64| {
            let view = balancer.view(Time(seconds * SECOND_US), &world.board, ME);
            view.nodes[&NodeId(2)].is_lost(view.now, Policy::default().grace_us)
        };
        assert!(!is_lost(1));
        world.set_alive(&[3, 4]);
        assert!(!is_lost(3_600), "it may have been there a moment ago");
        let silent = (1..).map(|look| 3_600 + look * 5).find(|at| is_lost(*at)).unwrap() - 3_600;
        assert!((590..=600).contains(&silent), "{silent}");
    }

    /// Keyspaces came to nodes that had been added as learners, which answer no clients.
    #[test]
    fn who_has_no_vote_in_the_root_group_receives_nothing() {
        let world = World::new();
        world.apply(Catalog::drain(NodeId(2), true));
        let with_learner = |is_learner| {
            let mut pool = (*world.board.pool()).clone();
            pool.roster.members.iter_mut().filter(|it| it.id == 4).for_each(|it| it.is_learner = is_learner);
            world.board.set_pool(Arc::new(pool), ME);
            world.plan()
        };
        assert_eq!(with_learner(true), []);
        let planned = with_learner(false);
        assert_eq!(planned[0].kind, MoveKind::MoveReplica { from: NodeId(2), to: NodeId(4) });
    }

    /// What a dead node had led was led by it for ever, going by its last report: a group whose leader is dead is left alone, and so its
    /// replica there was never rebuilt.
    #[test]
    fn the_last_report_of_a_dead_node_does_not_make_it_a_leader() {
        let world = World::new();
        let leading = || Report { leads: vec![GROUP.0], ..Report::default() };
        let leader =
            |world: &World| Balancer::default().view(Time(1), &world.board, ME).groups[&GROUP].leader;
        world.board.set_report(NodeId(2), leading());
        assert_eq!(leader(&world), Some(NodeId(2)));
        world.board.set_report(NodeId(3), leading());
        world.board.set_alive([3, 4].map(NodeId).into());
        assert_eq!(leader(&world), Some(NodeId(3)));
    }

    /// A damaged replica was named in the log and by an alarm, and stayed where it was for ever.
    #[test]
    fn a_damaged_replica_is_rebuilt() {
        let world = World::new();
        world.board.set_report(NodeId(2), Report { leads: vec![GROUP.0], ..Report::default() });
        let planned = |replica| {
            let damaged = vec![Damaged { group: GROUP.0, replica }];
            world.board.set_report(NodeId(3), Report { damaged, ..Report::default() });
            plan(&Balancer::default().view(Time(1), &world.board, ME), &Policy::default())
        };
        let moves = planned(3);
        assert_eq!(moves[0].kind, MoveKind::MoveReplica { from: NodeId(3), to: NodeId(4) });
        assert_eq!(moves[0].reason, Reason::Damaged { node: NodeId(3), left: 2, want: 3 });
        assert_eq!(planned(2), [], "that is not the replica that is there");
    }

    /// A keyspace that was just made was left alone for an hour, because it had no leader when it was seen first.
    #[test]
    fn to_get_a_leader_at_last_is_no_change() {
        let world = World::new();
        let mut balancer = Balancer::default();
        let mut led_by = |leader: Option<u64>, at| {
            for node in [1, 2] {
                let leads = if leader == Some(node) { vec![GROUP.0] } else { Vec::new() };
                world.board.set_report(NodeId(node), Report { leads, ..Report::default() });
            }
            balancer.view(Time(at), &world.board, ME).groups[&GROUP].changed_at
        };
        assert_eq!(led_by(None, 1), None);
        assert_eq!(led_by(Some(1), 2), None);
        assert_eq!(led_by(None, 3), None);
        assert_eq!(led_by(Some(2), 4), Some(Time(4)));
    }

    /// What a node that died had said of itself last counted for ever. A group that it had led was taken for one without a leader within
    /// reach, of which nothing can be changed, and was not rebuilt.
    #[test]
    fn a_group_whose_leader_died_is_rebuilt() {
        let world = World::new();
        world.board.set_report(NodeId(2), Report { leads: vec![GROUP.0], ..Report::default() });
        let view = |alive: &[u64]| {
            world.board.set_alive(alive.iter().copied().map(NodeId).collect());
            Balancer::default().view(Time(1), &world.board, ME)
        };
        assert_eq!(view(&[2, 3, 4]).groups[&GROUP].leader, Some(NodeId(2)));
        assert_eq!(view(&[3, 4]).groups[&GROUP].leader, Some(ME), "one of those within reach");
        world.board.set_report(NodeId(3), Report { leads: vec![GROUP.0], ..Report::default() });
        let view = view(&[3, 4]);
        assert_eq!(view.groups[&GROUP].leader, Some(NodeId(3)));
        let planned = plan(&view, &Policy { grace_us: 0, ..Policy::default() });
        assert_eq!(planned[0].kind, MoveKind::MoveReplica { from: NodeId(2), to: NodeId(4) }, "{planned:?}");
    }

    #[test]
    fn who_is_no_member_any_more_is_dead_and_rebuilt_elsewhere() {
        let world = World::new();
        let mut pool = (*world.board.pool()).clone();
        pool.roster.remove(3).unwrap();
        world.board.set_pool(Arc::new(pool), ME);
        let view = Balancer::default().view(Time(1), &world.board, ME);
        assert_eq!(view.nodes[&NodeId(3)].state, NodeState::Dead);
        let planned = plan(&view, &Policy::default());
        assert_eq!(planned[0].kind, MoveKind::MoveReplica { from: NodeId(3), to: NodeId(4) }, "{planned:?}");
        assert!(matches!(world.decide(&planned[0]), Some(Decision::Place(_))));
    }

    #[test]
    fn a_node_that_is_drained_gives_its_replicas_away() {
        let world = World::new();
        world.apply(Catalog::drain(NodeId(2), true));
        let view = Balancer::default().view(Time(1), &world.board, ME);
        assert!(view.nodes[&NodeId(2)].draining);
        let planned = plan(&view, &Policy::default());
        assert_eq!(planned[0].kind, MoveKind::MoveReplica { from: NodeId(2), to: NodeId(4) });
        world.apply(Catalog::drain(NodeId(2), false));
        assert!(!Balancer::default().view(Time(1), &world.board, ME).nodes[&NodeId(2)].draining);
    }

    #[test]
    fn loads_come_from_the_reports() {
        let world = World::new();
        let report = |cpu: f64, leads: bool| {
            let steady = vec![cpu];
            let replica = crate::report::ReplicaReport { group: GROUP.0, steady, short: Vec::new() };
            let leads = if leads { vec![GROUP.0] } else { Vec::new() };
            Report { capacity: vec![2.0], replicas: vec![replica], leads, ..Report::default() }
        };
        for (node, cpu) in [(1, 0.2), (2, 0.9), (3, 0.2)] {
            world.board.set_report(NodeId(node), report(cpu, node == 2));
        }
        let view = Balancer::default().view(Time(1), &world.board, ME);
        let group = &view.groups[&GROUP];
        assert_eq!(group.leader, Some(NodeId(2)));
        assert!((group.load.leader[Resource::Cpu] - 0.7).abs() < 1e-9, "{:?}", group.load);
        assert!((group.load.replica[Resource::Cpu] - 0.2).abs() < 1e-9);
        let hand_over = MoveKind::TransferLeader { from: NodeId(2), to: NodeId(3) };
        let Some(Decision::HandOver { group, from, to, record }) = world.decide(&moving(hand_over)) else {
            panic!("nothing decided")
        };
        assert_eq!((group, from, to), (GROUP, NodeId(2), NodeId(3)));
        world.apply(record);
        assert_eq!(crate::catalog::moves(&world.root)[0].kind, hand_over.to_string());
    }
}
