//! Damaged replicas of keyspaces that are placed. An alarm accuses one; or it shows another digest than the others, until these name it; or a record of it rots. Whoever
//! leads the root group plans, as the server's driver does. Each accused replica must be rebuilt, on another node or in its place, whatever goes wrong
//! meanwhile, and its alarm must end with it.

use std::collections::{BTreeMap, BTreeSet};

use hadron_balance::{Policy, Resource, plan};
use hadron_consensus::{GroupId, NodeId, ROOT_GROUP, ReplicaId, Time};
use hadron_keyspace::Command;
use hadron_node::{
    Balancer, Board, Catalog, Decision, Event as NodeEvent, PeerMessage, Report, damaged, decide, settled,
};
use hadron_proto::etcdserverpb::{AlarmRequest, AlarmType, alarm_request::AlarmAction};
use rand::Rng;

use super::machine::Asked;
use super::story::StoryEvent;
use super::{Happening, Life, World};
use crate::history::Violation;

/// Between two plans.
const PLAN_US: u64 = 300_000;
/// Nodes are to be emptied, or not any more, once in so many plans.
const DRAINED_ONE_IN: u32 = 8;
/// Nodes that a group has at least whose replica is accused: what is on one alone would be lost.
const REPLICAS_MIN: usize = 3;

/// Who accuses replicas and has them rebuilt.
#[derive(Debug, Default)]
pub(super) struct Repairs {
    /// The replica of each group that was accused last.
    accused: BTreeMap<GroupId, ReplicaId>,
    /// Where replicas were ever accused: only these may be named, and are quarantined.
    ever: BTreeSet<(GroupId, NodeId)>,
    /// Replicas that show another digest than they have, until the others name them.
    strange: BTreeMap<GroupId, NodeId>,
    /// How often the others did.
    pub(super) named: u64,
    /// Moves because of damage that were decided.
    pub(super) decided: u64,
}

impl World {
    /// All nodes report, somebody may be accused, and whoever leads the root group plans.
    pub(super) fn repair(&mut self) {
        self.schedule.after(PLAN_US, Happening::Repair);
        let lives: Vec<Life> = self.nodes().into_iter().filter_map(|node| self.life(node)).collect();
        for life in &lives {
            if let Some(report) = self.report_of(*life) {
                self.deliver(*life, NodeEvent::Report(report));
            }
        }
        let pause = self.settings.accusations_us / PLAN_US;
        if pause > 0 && self.faults_on && self.rng.random_range(0..pause) == 0 {
            self.accuse();
        }
        self.raise_false_alarm();
        let is_time = self.settings.member_changes_us == 0 && self.rng.random_range(0..DRAINED_ONE_IN) == 0;
        if !self.faults_on || is_time {
            self.drain_or_not();
        }
        self.name_all_rotten();
        self.see_who_is_named();
        let leads = |life: &Life| self.leads_root(*life);
        if let Some(life) = lives.iter().copied().find(leads) {
            self.plan_repairs(life);
        }
    }

    pub(super) fn board(&self, life: Life) -> Option<std::sync::Arc<Board>> {
        let machine = self.machines.get(&life.node)?;
        machine.process.as_ref().map(|process| process.node().board())
    }

    fn leads_root(&self, life: Life) -> bool {
        let root = self.board(life).and_then(|board| board.group(ROOT_GROUP));
        root.is_some_and(|root| root.leader() == Some(NodeId(life.node)))
    }

    fn report_of(&self, life: Life) -> Option<Report> {
        let (board, me) = (self.board(life)?, NodeId(life.node));
        let led = board.groups().into_iter().filter(|(_, group)| group.leader() == Some(me));
        let leads = led.map(|(group, _)| group.0).collect();
        let capacity = vec![1.0; Resource::ALL.len()];
        let (settled, damaged) = (settled(&board, me), damaged(&board));
        Some(Report { leads, settled, damaged, capacity, ..Report::default() })
    }

    /// Names one replica of a group whose replicas are where they shall be, and of which no other accused one is left: of two voters, one of them
    /// damaged, the other may lack what only the damaged one knows to be durable.
    fn accuse(&mut self) {
        let keyspace = GroupId(self.rng.random_range(2..=self.settings.keyspaces));
        let node = self.any_node();
        let Some(life) = self.life(node) else { return };
        let (Some(board), Some(group)) = (self.board(life), self.present_group(keyspace, life)) else {
            return;
        };
        let settled = board.group(group).map(|here| here.settled());
        let places = board.with_catalog(|catalog| {
            let placement = catalog.placement(group)?;
            // That of the beginning has no revision.
            let is_first = placement.record.places == placement.record.first && settled == Some(0);
            let is_settled = is_first || settled == Some(placement.revision);
            is_settled.then(|| placement.record.places.clone())
        });
        let places = places.unwrap_or_default();
        let is_there = |replica: &ReplicaId| places.iter().any(|place| place.replica == replica.0);
        if places.len() < REPLICAS_MIN || self.repairs.accused.get(&group).is_some_and(is_there) {
            return;
        }
        let accused = places[self.rng.random_range(0..places.len())];
        if self.rng.random_bool(0.5) {
            self.repairs.ever.insert((group, NodeId(accused.node)));
            if self.rot(accused.node, group) {
                self.repairs.accused.insert(group, ReplicaId(accused.replica));
            }
            return;
        }
        let asked = places[self.rng.random_range(0..places.len())].node;
        let Some(life) = self.life(asked) else { return };
        self.repairs.accused.insert(group, ReplicaId(accused.replica));
        self.repairs.ever.insert((group, NodeId(accused.node)));
        if self.rng.random_bool(0.5) {
            self.repairs.strange.insert(group, NodeId(accused.node));
            return;
        }
        self.tell(StoryEvent::Accused { node: accused.node, group: group.0 });
        let command = alarm_about(accused.node).to_bytes();
        self.ask(life, Asked::Placer, |token| NodeEvent::Write { token, group, command });
    }

    /// Somebody wants a node emptied, or not any more; in the end none.
    fn drain_or_not(&mut self) {
        let (asked, other) = (self.any_node(), self.any_node());
        let Some(life) = self.life(asked) else { return };
        let Some(board) = self.board(life) else { return };
        let (node, wanted) = match board.with_catalog(|catalog| catalog.draining().next()) {
            Some(node) => (node, false),
            None if self.faults_on => (NodeId(other), true),
            None => return,
        };
        self.tell(StoryEvent::DrainWanted { node: node.0, wanted });
        self.decide(life, Asked::Placer, &Catalog::drain(node, wanted));
    }

    /// What a node says of its digest is not so, if its replica is to be strange.
    pub(super) fn change_digest(&self, life: Life, message: &mut PeerMessage) {
        if let PeerMessage::Digest { group, live, answer: true, .. } = message
            && self.faults_on
            && self.repairs.strange.get(group) == Some(&NodeId(life.node))
        {
            *live ^= 1;
        }
    }

    /// Whether a replica of the group on this node was ever to be taken for damaged.
    pub(super) fn is_accused(&self, group: GroupId, node: u64) -> bool {
        self.repairs.ever.contains(&(group, NodeId(node)))
    }

    /// A strange replica that an alarm names is strange no more. Nobody else may be named.
    fn see_who_is_named(&mut self) {
        let running = self.machines.values().filter_map(|machine| machine.process.as_ref());
        let boards: Vec<_> = running.map(|process| process.node().board()).collect();
        let groups = boards.iter().flat_map(|board| board.groups());
        let alarms = groups
            .flat_map(|(group, here)| here.keyspace.alarms().into_iter().map(move |alarm| (group, alarm)));
        let alarms = alarms.filter(|(_, alarm)| alarm.alarm == AlarmType::Corrupt as i32);
        let all: BTreeSet<_> = alarms.map(|(group, alarm)| (group, NodeId(alarm.member_id))).collect();
        if let Some((group, node)) = all.difference(&self.repairs.ever).next() {
            let node = node.0;
            let found = format!("n{node} is said to have a damaged replica of {group}, which nobody damaged");
            return self.violate(Violation::new("digest_agreement", found));
        }
        let strange = self.repairs.strange.iter().filter(|(group, node)| all.contains(&(**group, **node)));
        let named: Vec<_> = strange.map(|(group, node)| (*group, *node)).collect();
        for (group, node) in named {
            self.repairs.strange.remove(&group);
            self.repairs.named += 1;
            self.tell(StoryEvent::Accused { node: node.0, group: group.0 });
        }
    }

    fn plan_repairs(&mut self, life: Life) {
        let Some(board) = self.board(life) else { return };
        let policy = Policy { balance: false, ..Policy::default() };
        let view = Balancer::default().view(Time(self.schedule.now()), &board, NodeId(life.node));
        let pool = board.pool();
        let is_member = |node: NodeId| pool.roster.member(node.0).is_some();
        if let Some(command) = board.with_catalog(|catalog| catalog.forget_strangers(is_member)) {
            self.decide(life, Asked::Placer, &command);
        }
        for planned in plan(&view.without_unheard(), &policy) {
            let decided = board.with_catalog(|catalog| decide(catalog, &planned, 0));
            let command = match decided {
                None => continue,
                Some(Decision::Place(command)) => command,
                Some(Decision::HandOver { group, from, to, record }) => {
                    self.deliver(life, NodeEvent::HandOverTo { group, from, to });
                    record
                }
            };
            self.repairs.decided += u64::from(planned.reason.name() == "damaged-replica");
            self.tell(StoryEvent::MoveDecided { planned: planned.to_string() });
            self.decide(life, Asked::Placer, &command);
        }
    }

    /// Whether no replica is damaged or accused any more; says which otherwise.
    pub(super) fn check_repaired(&self) -> Result<(), String> {
        // Who was removed takes what it has along.
        let is_here = |node: &u64| self.machines.get(node).is_some_and(|machine| !machine.is_gone);
        if let Some((node, group)) = self.rotten().find(|(node, _)| is_here(node)) {
            return Err(format!("n{node} still has the replica of {group} of which a record rotted"));
        }
        for (node, machine) in &self.machines {
            let Some(board) = machine.process.as_ref().map(|process| process.node().board()) else {
                continue;
            };
            if !board.damaged().is_empty() {
                return Err(format!("n{node} has damaged replicas: {:?}", board.damaged()));
            }
            for (group, here) in board.groups() {
                let alarms = here.keyspace.alarms();
                if alarms.iter().any(|alarm| alarm.alarm == AlarmType::Corrupt as i32) {
                    return Err(format!("n{node} knows of alarms in {group}: {alarms:?}"));
                }
            }
            // Who joined last as a learner may be left as one.
            let voters = board.pool().roster.voters().count();
            board.with_catalog(|catalog| {
                let is_short = |(group, wanted): &(GroupId, u32)| {
                    let placement = catalog.placement(*group);
                    placement.is_none_or(|it| it.record.places.len() != voters.min(*wanted as usize))
                };
                let wanted = catalog.keyspaces().map(|record| (record.group_id(), record.replicas));
                let short: Vec<_> = wanted.filter(is_short).collect();
                if short.is_empty() { Ok(()) } else { Err(format!("n{node}: short of replicas: {short:?}")) }
            })?;
        }
        Ok(())
    }
}

/// The command that says that a node's replica is damaged.
pub(super) fn alarm_about(node: u64) -> Command {
    let (action, alarm) = (AlarmAction::Activate as i32, AlarmType::Corrupt as i32);
    Command::Alarm(AlarmRequest { action, member_id: node, alarm })
}
