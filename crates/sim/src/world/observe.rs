//! What is checked: at every turn what replicas show, at the end the history.

use hadron_consensus::{DEFAULT_GROUP, GroupId};
use hadron_keyspace::Keyspace;

use super::watchers::complete_history;
use super::{Life, World};
use crate::checkers::digest_agreement::DigestAgreement;
use crate::checkers::election_safety::ElectionSafety;
use crate::checkers::state_machine_safety::StateMachineSafety;
use crate::checkers::{durable_ack, lease_promise, linearizable, revision_order, watch_order};
use crate::history::Violation;

/// The checkers of replicas.
#[derive(Default)]
pub(super) struct Observer {
    elections: ElectionSafety,
    state_machines: StateMachineSafety,
    digests: DigestAgreement<u64>,
    last_revision: i64,
}

impl Observer {
    pub(super) fn terms_led(&self) -> usize {
        self.elections.terms_led(DEFAULT_GROUP.0)
    }

    /// The newest revision that any replica showed.
    pub(super) fn last_revision(&self) -> i64 {
        self.last_revision
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

impl World {
    /// Looks at all replicas of a node after its turn.
    pub(super) fn observe(&mut self, life: Life) {
        let Some(process) = self.process(life) else { return };
        let board = process.node.board();
        let shown: Vec<Shown> = process
            .keyspaces
            .iter()
            .filter_map(|(group, keyspace)| {
                let status = board.group(*group)?;
                let applied = keyspace.applied();
                Some(Shown {
                    group: *group,
                    term: status.term().0,
                    leader: status.leader().map(|leader| leader.0),
                    applied: (applied.term, applied.index, applied.checksum),
                    digest: keyspace.digest(),
                    revision: keyspace.revision(),
                })
            })
            .collect();
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
        if shown.group == DEFAULT_GROUP {
            observer.last_revision = observer.last_revision.max(shown.revision);
        }
        Ok(())
    }

    /// Whether all nodes are up and all replicas of each group have applied the same, and all there is.
    pub(super) fn replicas_are_equal(&self) -> bool {
        let mut positions: Vec<Vec<(u64, u64)>> = Vec::new();
        for machine in self.machines.values() {
            let Some(process) = &machine.process else { return false };
            let applied = |keyspace: &std::sync::Arc<Keyspace>| (keyspace.applied().index, keyspace.digest());
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

    /// Reads the complete history of the default keyspace from every node, and holds everything against it.
    pub(super) fn check_history(&self) -> Result<(), Violation> {
        let mut histories = Vec::new();
        for (node, machine) in &self.machines {
            let keyspace = machine.process.as_ref().and_then(|process| process.default_keyspace());
            let Some(keyspace) = keyspace else { continue };
            let events = complete_history(&keyspace).map_err(|what| {
                Violation::new("watch_order", format!("n{node} does not show its history: {what}"))
            })?;
            histories.push((node, events));
        }
        let Some((first, events)) = histories.first() else { return Ok(()) };
        for (node, other) in &histories {
            if other != events {
                let found = format!("n{first} and n{node} show different histories");
                return Err(Violation::new("state_machine_safety", found));
            }
        }
        revision_order::check_events(events)?;
        revision_order::check_responses(&self.history)?;
        durable_ack::check(&self.history, events)?;
        linearizable::check(&self.history, events)?;
        self.watchers.iter().try_for_each(|watcher| watch_order::check(&watcher.seen(), events))?;
        for lease in self.leases.iter().flat_map(|client| client.stories()) {
            let renewed = lease.renewals.iter().map(|renewal| renewal.returned).max().unwrap_or(0);
            let disturbed = (self.settings.faults_us + self.settings.recovery_us_max).saturating_sub(renewed);
            lease_promise::check(lease, disturbed + 3_000_000)?;
        }
        Ok(())
    }
}
