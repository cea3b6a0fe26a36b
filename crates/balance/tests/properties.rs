//! What must hold for every plan, and that plans come to an end, on random pools.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;

use hadron_balance::{
    Capacity, Disk, GroupLoad, GroupView, Load, Move, MoveKind, NodeState, NodeView, Policy, ReplicaView,
    Resource, Step, View, assess, next_step, plan,
};
use hadron_consensus::{GroupId, NodeId, Time};
use proptest::prelude::*;
use proptest::sample::subsequence;

/// Rounds within which a pool that nothing happens to has to come to rest.
const ROUNDS_MAX: usize = 300;
const HOUR_US: u64 = 3_600_000_000;
/// What sums of loads may be off by, depending on the order in which they were added.
const ROUNDING: f64 = 1e-9;

fn load(scale: f64) -> impl Strategy<Value = Load> {
    let amount = move || prop_oneof![3 => 0.0..scale, 1 => Just(0.0)];
    (amount(), amount(), amount()).prop_map(|(cpu, written, storage)| {
        Load::ZERO.with(Resource::Cpu, cpu).with(Resource::Written, written).with(Resource::Storage, storage)
    })
}

fn node(zones: u8) -> impl Strategy<Value = NodeView> {
    let state = prop_oneof![
        12 => Just(NodeState::Alive),
        1 => Just(NodeState::Dead),
        1 => Just(NodeState::Suspected { since: Time(0) }),
        1 => Just(NodeState::Suspected { since: Time(HOUR_US - 1) }),
    ];
    let disk = (0u64..100, prop_oneof![4 => Just(100u64), 1 => Just(0)])
        .prop_map(|(used, total)| Disk { used, total });
    let size = prop_oneof![Just(10.0), Just(20.0)];
    (0..zones, state, proptest::bool::weighted(0.1), disk, size, load(1.0)).prop_map(
        |(zone, state, draining, disk, size, own_load)| NodeView {
            zone: format!("zone-{zone}"),
            capacity: Capacity::of(Load::each(|_| size)),
            state,
            draining,
            learner: false,
            disk,
            own_load,
            fsync_us: 0.0,
        },
    )
}

fn group(nodes: usize) -> impl Strategy<Value = GroupView> {
    let ids: Vec<u64> = (1..=nodes as u64).collect();
    let weight = prop_oneof![8 => Just(0.3), 1 => Just(4.0)];
    let loads = weight.prop_flat_map(|weight| (load(weight), load(weight)));
    (subsequence(ids, 1..=5.min(nodes)).prop_shuffle(), 1usize..=5, loads, 0u64..20).prop_map(
        |(replicas, factor, (leader, replica), bytes)| GroupView {
            factor,
            leader: Some(NodeId(replicas[0])),
            replicas: replicas.into_iter().map(|node| ReplicaView::voter(NodeId(node))).collect(),
            load: GroupLoad { leader, replica },
            bytes,
            changed_at: None,
            leaving: Vec::new(),
        },
    )
}

/// A pool; leaders that cannot be reached have been replaced where a majority can.
fn pool() -> impl Strategy<Value = View> {
    (3usize..12, 1u8..5).prop_flat_map(|(count, zones)| {
        let nodes = prop::collection::vec(node(zones), count);
        (nodes, prop::collection::vec(group(count), 1..40)).prop_map(|(nodes, groups)| {
            let mut view = View {
                now: Time(HOUR_US),
                nodes: (1..).map(NodeId).zip(nodes).collect(),
                groups: (1..).map(GroupId).zip(groups).collect(),
                ..View::default()
            };
            elect(&mut view);
            view
        })
    })
}

fn is_alive(view: &View, node: NodeId) -> bool {
    view.nodes[&node].state == NodeState::Alive
}

fn elect(view: &mut View) {
    let alive: BTreeSet<NodeId> = view.nodes.keys().copied().filter(|node| is_alive(view, *node)).collect();
    for group in view.groups.values_mut() {
        let reachable: Vec<NodeId> = group.voters().filter(|node| alive.contains(node)).collect();
        let has_quorum = reachable.len() > group.replicas.len() / 2;
        let leads = group.leader.filter(|leader| reachable.contains(leader));
        group.leader = leads.or(reachable.first().copied()).filter(|_| has_quorum);
    }
}

/// Other replicas of the group in the zone of `node`.
fn company(view: &View, group: &GroupView, node: NodeId) -> usize {
    let zone = &view.nodes[&node].zone;
    group.replicas.iter().filter(|it| it.node != node && view.nodes[&it.node].zone == *zone).count()
}

/// Whether `node` could have received `group` from `from` when this was planned, as far as the rules for places go.
fn had_room(view: &View, policy: &Policy, group: &GroupView, node: NodeId, incoming: &[NodeId]) -> bool {
    let it = &view.nodes[&node];
    it.state == NodeState::Alive
        && !it.draining
        && group.replica(node).is_none()
        && incoming.iter().filter(|other| **other == node).count() < policy.incoming_max
        && (it.disk.total == 0
            || (it.disk.used + group.bytes) as f64 <= policy.disk_max * it.disk.total as f64)
}

/// Holds one move against the rules. `view` is as all moves before it will have left it; disks are as full as they will get.
fn check_move(view: &View, policy: &Policy, it: &Move, incoming: &[NodeId]) {
    let group = &view.groups[&it.group];
    if let Some(to) = it.kind.destination() {
        assert!(group.replica(to).is_none(), "two replicas on {to}: {it}");
        assert!(had_room(view, policy, group, to, incoming), "{to} may not receive: {it}");
        check_zones(view, policy, it, to, incoming);
    }
    if let MoveKind::TransferLeader { from, to } = it.kind {
        assert!(group.leader == Some(from) && is_alive(view, to) && !view.nodes[&to].draining, "{it}");
        assert!(group.replica(to).is_some(), "{it}");
    }
    if it.reason.is_balancing() {
        let (from, to) = (it.effect.from.unwrap(), it.effect.to.unwrap());
        let (before, after) = (from.before.max(to.before), from.after.max(to.after));
        assert!(after < before, "the pair is not better off: {it}");
        assert!(it.effect.largest.after <= it.effect.largest.before + ROUNDING, "the largest grows: {it}");
    }
}

/// Nobody joins another in a zone while a node of an empty zone has room; and load never adds company.
fn check_zones(view: &View, policy: &Policy, it: &Move, to: NodeId, incoming: &[NodeId]) {
    let mut group = view.groups[&it.group].clone();
    let before = it.kind.source().map_or(0, |from| company(view, &group, from));
    group.replicas.retain(|replica| Some(replica.node) != it.kind.source());
    let joined = company(view, &group, to);
    if it.reason.is_balancing() {
        assert!(joined <= before, "load makes replicas share a zone: {it}");
    }
    if joined > 0 {
        for node in view.nodes.keys().filter(|node| company(view, &group, **node) == 0) {
            let is_free = group.replica(*node).is_none() && Some(*node) != it.kind.source();
            assert!(
                !is_free || !had_room(view, policy, &group, *node, incoming),
                "{node} has room in an empty zone: {it}"
            );
        }
    }
}

/// Plans once, checks every move and carries all of them out. The number of moves.
fn round(view: &mut View, policy: &Policy) -> usize {
    let moves = plan(view, policy);
    assert_eq!(moves, plan(view, policy), "the same view gives the same plan");
    let groups: BTreeSet<GroupId> = moves.iter().map(|it| it.group).collect();
    assert_eq!(groups.len(), moves.len(), "one move for a group");
    let mut incoming = Vec::new();
    for it in &moves {
        check_move(view, policy, it, &incoming);
        incoming.extend(it.kind.destination());
        let bytes = view.groups[&it.group].bytes;
        it.kind.destination().into_iter().for_each(|to| view.nodes.get_mut(&to).unwrap().disk.used += bytes);
        view.groups.get_mut(&it.group).unwrap().carry_out(&it.kind);
    }
    for it in &moves {
        let bytes = view.groups[&it.group].bytes;
        let sources = it.kind.source().into_iter();
        sources.for_each(|from| {
            let disk = &mut view.nodes.get_mut(&from).unwrap().disk;
            disk.used = disk.used.saturating_sub(bytes);
        });
    }
    elect(view);
    moves.len()
}

/// Takes each move in progress one step further, as groups would: one round of replication.
fn advance(view: &mut View, policy: &Policy) {
    for (id, kind) in view.moves.clone() {
        let step = next_step(view, &view.groups[&id], &kind, policy);
        let group = view.groups.get_mut(&id).unwrap();
        match step {
            Step::AddLearner { to } => group.replicas.push(ReplicaView::learner(to, 1)),
            Step::Promote { to } => group.carry_out(&MoveKind::AddReplica { to }),
            Step::TransferLeader { to } => group.leader = Some(to),
            Step::Remove { from } => group.replicas.retain(|it| it.node != from),
            Step::CatchUp { .. } => {}
            Step::Done | Step::Abandon(_) => drop(view.moves.remove(&id)),
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_move_keeps_the_rules_and_moves_come_to_an_end(mut view in pool()) {
        let policy = Policy::default();
        let rounds = (0..ROUNDS_MAX).take_while(|_| round(&mut view, &policy) > 0).count();
        prop_assert!(rounds < ROUNDS_MAX, "still moving: {:?}", plan(&view, &policy));
        let lost = |node: &NodeId| view.nodes[node].is_lost(view.now, policy.grace_us);
        let left_behind = view.groups.values().filter(|group| {
            let could = group.leader.is_some() && view.nodes.keys().any(|node| had_room(&view, &policy, group, *node, &[]));
            could && group.voters().any(|node| lost(&node))
        });
        prop_assert_eq!(left_behind.count(), 0, "lost replicas are rebuilt where there is room");
    }

    #[test]
    fn steps_end_where_the_plan_said_and_planning_meanwhile_does_not_change_that(mut view in pool()) {
        let policy = Policy::default();
        let first = plan(&view, &policy);
        let mut wanted = view.clone();
        for it in &first {
            wanted.groups.get_mut(&it.group).unwrap().carry_out(&it.kind);
            view.moves.insert(it.group, it.kind);
        }
        for _ in 0..10 {
            let busy: BTreeSet<GroupId> = view.moves.keys().copied().collect();
            prop_assert!(plan(&view, &policy).iter().all(|it| !busy.contains(&it.group)), "a second move for a group");
            advance(&mut view, &policy);
        }
        prop_assert!(view.moves.is_empty(), "{:?}", view.moves);
        for it in &first {
            let nodes = |view: &View| view.groups[&it.group].voters().collect::<BTreeSet<_>>();
            prop_assert_eq!(nodes(&view), nodes(&wanted), "{}", it);
        }
    }

    #[test]
    fn what_is_in_progress_counts_as_done(view in pool()) {
        let policy = Policy::default();
        let mut done = view.clone();
        let mut begun = view;
        for it in plan(&begun, &policy) {
            begun.moves.insert(it.group, it.kind);
            done.groups.get_mut(&it.group).unwrap().carry_out(&it.kind);
        }
        let (begun, done) = (assess(&begun, &policy), assess(&done, &policy));
        for (begun, done) in begun.nodes.iter().zip(&done.nodes) {
            prop_assert!((begun.load - done.load).abs() < ROUNDING, "{begun:?} {done:?}");
        }
    }
}
