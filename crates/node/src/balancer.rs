//! The balancer: from what the root group says and the nodes report to a planner's [`View`], and from a planned [`Move`] to what
//! carries it out.
//!
//! ```text
//!   catalog, roster ─┐                                     ┌─▶ a txn on the catalog ─▶ `reconfigure`, `placement`
//!   reports ─────────┼─▶ View ─▶ hadron_balance::plan ─▶ Move
//!   who is alive ────┘                                     └─▶ a question to the leader: hand over
//! ```
//! A move is decided by changing the placement. What is under way is read off the catalog: a replica that is leaving, and the
//! one that came last in its place. So there is no list of moves that somebody would have to carry on when the root group's leader
//! changes in the middle: the groups' leaders go on by themselves.

use std::collections::{BTreeMap, BTreeSet};

use hadron_balance::{
    Disk, GroupLoad, GroupView, Move, MoveKind, NodeState, NodeView, ReplicaView, Resource, View,
};
use hadron_consensus::{GroupId, NodeId, Time};
use hadron_keyspace::Command;

use crate::board::Board;
use crate::catalog::{Catalog, MoveRecord, Placement, Recorded};
use crate::report::{Report, load_of};
use crate::roster::Pool;

/// What a planner remembers from one view to the next.
#[derive(Debug, Default)]
pub struct Balancer {
    /// When each node was alive last.
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
        for node in &alive {
            self.alive_at.insert(*node, now);
        }
        let leads = leads(&reports, &alive);
        board.with_catalog(|catalog| {
            let mut view = View { now, ..View::default() };
            for member in &pool.roster.members {
                let node = member.node();
                let state = self.state_of(node, alive.contains(&node), now);
                view.nodes.insert(node, node_view(state, catalog.is_draining(node), reports.get(&node)));
            }
            for (group, placement) in catalog.placements() {
                let under_way = move_under_way(catalog, group, &placement.record, settled(&reports, group));
                view.moves.extend(under_way.map(|kind| (group, kind)));
                let who = (leads.get(&group).copied(), &reports, &alive);
                let seen = self.group_view(now, (group, placement), under_way, who);
                view.groups.insert(group, seen);
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
        under_way: Option<MoveKind>,
        (leader, reports, alive): (Option<NodeId>, &BTreeMap<NodeId, Report>, &BTreeSet<NodeId>),
    ) -> GroupView {
        let mut nodes: Vec<NodeId> = placement.record.nodes().collect();
        if let Some(kind) = under_way {
            nodes.retain(|node| Some(*node) != kind.destination());
            nodes.extend(kind.source());
        }
        let measured = |node: &NodeId| {
            let replica = reports.get(node).and_then(|report| report.replica(group));
            replica.map(|replica| load_of(&replica.steady)).unwrap_or_default()
        };
        let followers: Vec<_> = nodes.iter().filter(|node| Some(**node) != leader).map(measured).collect();
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
        let replica = |node| ReplicaView { is_damaged: is_damaged(node), ..ReplicaView::voter(node) };
        GroupView {
            factor: nodes.len(),
            bytes: nodes
                .iter()
                .map(|node| measured(node)[Resource::Storage] as u64)
                .max()
                .unwrap_or_default(),
            // A group that sleeps since all its nodes were started has no leader, and gets one as soon as it is wanted elsewhere.
            leader: leader.or_else(|| nodes.iter().copied().find(may_lead)),
            replicas: nodes.into_iter().map(replica).collect(),
            load,
            changed_at: self.changed_at(now, group, placement.revision, leader),
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
    let mut nodes: Vec<NodeId> = present.nodes().collect();
    nodes.retain(|node| Some(*node) != planned.kind.source());
    nodes.extend(planned.kind.destination());
    catalog.place_recorded(group, &nodes, &record).map(Decision::Place)
}

fn node_view(state: NodeState, draining: bool, report: Option<&Report>) -> NodeView {
    let Some(report) = report else { return NodeView { state, draining, ..NodeView::default() } };
    NodeView {
        zone: report.zone.clone(),
        capacity: report.capacity(),
        state,
        draining,
        disk: Disk { used: report.disk_used, total: report.disk_total },
        own_load: load_of(&report.own),
        fsync_us: report.fsync_us,
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

/// The revision of the newest placement to which a group has come, as whoever led it reports.
fn settled(reports: &BTreeMap<NodeId, Report>, group: GroupId) -> Option<i64> {
    reports.values().filter_map(|report| report.settled(group)).max()
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
        let settled = settled(reports, group);
        for node in catalog.leaving_of(group).filter(|node| settled < leaving_since(catalog, group, *node)) {
            *counts.entry(node).or_default() += 1;
        }
    }
    counts
}

/// The move of a group that is under way: the last one, until the replica is gone, or the group's leader says that it came to the placement
/// of the revision `settled`. A replica on a dead node is never gone.
fn move_under_way(
    catalog: &Catalog,
    group: GroupId,
    placement: &Placement,
    settled: Option<i64>,
) -> Option<MoveKind> {
    let since = |node| leaving_since(catalog, group, node);
    let from = catalog.leaving_of(group).max_by_key(|node| since(*node))?;
    if settled >= since(from) {
        return None;
    }
    // Who came last came in its place, unless all were there from the start.
    let newest = placement.places.iter().max_by_key(|place| place.replica)?;
    let is_new = placement.first.iter().all(|place| place.replica != newest.replica);
    Some(match is_new {
        true => MoveKind::MoveReplica { from, to: NodeId(newest.node) },
        false => MoveKind::RemoveReplica { from },
    })
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
    use hadron_keyspace::{Applied, Keyspace};
    use hadron_storage::engine::ModelEngine;

    use super::*;
    use crate::catalog::{KeyspaceRecord, keys_of};
    use crate::membership::Member;
    use crate::report::Damaged;
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
            let root = Keyspace::open(Arc::new(ModelEngine::new()), 0, Default::default()).unwrap();
            let board = Board::default();
            let member = |id| Member { id, replica: id, ..Member::default() };
            let roster = Roster::of(&[1, 2, 3, 4].map(member));
            board.set_pool(Arc::new(Pool { roster, ..Pool::default() }), ME);
            board.set_alive([2, 3, 4].map(NodeId).into());
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
    }

    fn moving(kind: MoveKind) -> Move {
        let reason = Reason::Drained { node: NodeId(2) };
        Move { group: GROUP, kind, reason, effect: Default::default() }
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
            let settled = vec![crate::report::Settled { group: GROUP.0, revision: settled }];
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
