//! What is checked: at every turn what replicas show, at the end the history.

use std::collections::BTreeMap;
use std::sync::Arc;

use hadron_consensus::{DEFAULT_GROUP, GroupId};
use hadron_keyspace::Keyspace;
use hadron_node::{Board, GroupBoard};

use super::watchers::complete_history;
use super::{Life, World};
use crate::checkers::digest_agreement::DigestAgreement;
use crate::checkers::election_safety::ElectionSafety;
use crate::checkers::state_machine_safety::StateMachineSafety;
use crate::checkers::{durable_ack, lease_promise, linearizable, revision_order, watch_order};
use crate::history::{Event, Operation, Violation};

/// The checkers of replicas.
#[derive(Default)]
pub(super) struct Observer {
    elections: ElectionSafety,
    state_machines: StateMachineSafety,
    digests: DigestAgreement<u64>,
    last_revisions: BTreeMap<GroupId, i64>,
}

impl Observer {
    pub(super) fn terms_led(&self) -> usize {
        self.elections.terms_led(DEFAULT_GROUP.0)
    }

    /// The newest revision that any replica of `group` showed.
    pub(super) fn last_revision(&self, group: GroupId) -> i64 {
        self.last_revisions.get(&group).copied().unwrap_or_default()
    }
}

/// What one replica shows.
struct Shown {
    group: GroupId,
    term: u64,
    leader: Option<u64>,
    applied: (u64, u64, u64),
    digest: u64,
    revision: i64,
}

/// A replica that is observed, and what of it was seen when it was last looked at closely: term, leader, applied index.
pub(super) struct Observed {
    group: GroupId,
    board: Arc<GroupBoard>,
    seen: (u64, Option<u64>, u64),
}

impl Observed {
    /// All replicas of a node.
    pub(super) fn all(board: &Board) -> Vec<Observed> {
        let groups = board.groups().into_iter();
        groups.map(|(group, board)| Observed { group, board, seen: Default::default() }).collect()
    }

    /// What the replica shows, unless it is what it showed the last time.
    fn news(&mut self) -> Option<Shown> {
        let board = &self.board;
        let now = (board.term().0, board.leader().map(|leader| leader.0), board.applied());
        if std::mem::replace(&mut self.seen, now) == now {
            return None;
        }
        let applied = board.keyspace.applied();
        Some(Shown {
            group: self.group,
            term: now.0,
            leader: now.1,
            applied: (applied.term, applied.index, applied.checksum),
            digest: board.keyspace.digest(),
            revision: board.keyspace.revision(),
        })
    }
}

impl World {
    /// Looks at all replicas of a node after its turn.
    pub(super) fn observe(&mut self, life: Life) {
        let Some(process) = self.process(life) else { return };
        let shown: Vec<Shown> = process.observed.iter_mut().filter_map(Observed::news).collect();
        for replica in shown {
            if let Err(violation) = self.observe_replica(life, &replica) {
                self.violate(violation);
            }
        }
    }

    fn observe_replica(&mut self, life: Life, shown: &Shown) -> Result<(), Violation> {
        let group = shown.group.0;
        let observer = &mut self.observer;
        if let Some(leader) = shown.leader {
            let known = observer.elections.terms_led(group);
            observer.elections.observe(group, shown.term, leader)?;
            if observer.elections.terms_led(group) > known {
                self.trace.note(
                    self.schedule.now(),
                    format_args!("n{leader} leads {} in term {}", shown.group, shown.term),
                );
            }
        }
        observer.state_machines.observe((life.node, life.incarnation), group, shown.applied)?;
        observer.digests.observe(format_args!("n{}", life.node), group, shown.applied.1, shown.digest)?;
        let last = observer.last_revisions.entry(shown.group).or_default();
        *last = shown.revision.max(*last);
        Ok(())
    }

    /// Whether all nodes are up and all replicas of each group have applied the same, and all there is.
    pub(super) fn replicas_are_equal(&self) -> bool {
        let mut positions: Vec<Vec<(u64, u64)>> = Vec::new();
        for machine in self.machines.values() {
            let Some(process) = &machine.process else { return false };
            let applied = |keyspace: &Arc<Keyspace>| (keyspace.applied().index, keyspace.digest());
            positions.push(process.keyspaces.values().map(applied).collect());
        }
        positions.windows(2).all(|pair| pair[0] == pair[1])
    }

    /// Where everybody stands, for a report.
    pub(super) fn positions(&self) -> String {
        let mut text = format!("open operations {}", self.open.iter().filter(|open| **open).count());
        for (node, machine) in &self.machines {
            let Some(process) = &machine.process else {
                text.push_str(&format!("; n{node} down"));
                continue;
            };
            for (group, status) in process.node.board().groups() {
                text.push_str(&format!(
                    "; n{node} {group}: {} leader {:?} commit {} applied {}",
                    status.term(),
                    status.leader(),
                    status.commit(),
                    process.keyspaces[&group].applied().index,
                ));
            }
        }
        text
    }

    /// Reads the complete history of every keyspace from every node, and holds everything against it.
    pub(super) fn check_history(&self) -> Result<(), Violation> {
        let keyspaces = DEFAULT_GROUP.0..=self.settings.keyspaces;
        keyspaces.map(GroupId).try_for_each(|keyspace| self.check_keyspace(keyspace))?;
        let events = self.agreed_history(DEFAULT_GROUP)?;
        self.watchers.iter().try_for_each(|watcher| watch_order::check(&watcher.seen(), &events))?;
        for lease in self.leases.iter().flat_map(|client| client.stories()) {
            let renewed = lease.renewals.iter().map(|renewal| renewal.returned).max().unwrap_or(0);
            let disturbed = (self.settings.faults_us + self.settings.recovery_us_max).saturating_sub(renewed);
            lease_promise::check(lease, disturbed + 3_000_000)?;
        }
        Ok(())
    }

    fn check_keyspace(&self, keyspace: GroupId) -> Result<(), Violation> {
        let events = self.agreed_history(keyspace)?;
        let operations: Vec<Operation> =
            self.history.iter().filter(|operation| operation.keyspace == keyspace.0).cloned().collect();
        revision_order::check_events(&events)?;
        revision_order::check_responses(&operations)?;
        durable_ack::check(&operations, &events)?;
        linearizable::check(&operations, &events)
    }

    /// The complete history of a keyspace, which all nodes must show alike.
    fn agreed_history(&self, group: GroupId) -> Result<Vec<Event>, Violation> {
        let mut agreed: Option<(u64, Vec<Event>)> = None;
        for (node, machine) in &self.machines {
            let keyspace = machine.process.as_ref().and_then(|process| process.keyspace(group));
            let Some(keyspace) = keyspace else { continue };
            let events = complete_history(&keyspace).map_err(|what| {
                Violation::new("watch_order", format!("n{node} does not show its history: {what}"))
            })?;
            match &agreed {
                Some((first, others)) if *others != events => {
                    let found = format!("n{first} and n{node} show different histories of group {group}");
                    return Err(Violation::new("state_machine_safety", found));
                }
                Some(_) => {}
                None => agreed = Some((*node, events)),
            }
        }
        Ok(agreed.map(|(_, events)| events).unwrap_or_default())
    }
}
