//! In the end, when all is well, each node has a write of each keyspace that it carries acknowledged: who serves reads alone is not
//! well.

use std::collections::BTreeMap;

use bytes::Bytes;
use hadron_consensus::{DEFAULT_GROUP, GroupId};

use super::story::Story;
use super::{Life, World};
use crate::history::{Action, Violation};

/// The client numbers of those who write then, in the history, begin with this one: one for each node and keyspace.
pub(super) const WRITERS: u64 = 3_000_000;
/// There are fewer groups than this.
const GROUPS_MAX: u64 = 10_000;

/// The number of who writes to this keyspace through this node.
pub(super) fn writer(node: u64, group: GroupId) -> u64 {
    WRITERS + node * GROUPS_MAX + group.0
}

impl World {
    /// Writes once to each keyspace through each node that carries it, and waits until all is acknowledged.
    pub(super) fn write_everywhere(&mut self, tell: &mut dyn FnMut(&Story)) -> Result<(), Violation> {
        let began_at = self.schedule.now();
        let mut asked: BTreeMap<(u64, GroupId), usize> = BTreeMap::new();
        let mut until = began_at;
        while until < began_at + self.settings.recovery_us_max {
            let mut missing = false;
            for (life, group) in self.carried() {
                let operation = asked.get(&(life.node, group)).copied();
                if operation.is_some_and(|operation| self.history[operation].response().is_some()) {
                    continue;
                }
                missing = true;
                if operation.is_none_or(|operation| !self.open[operation]) {
                    let client = writer(life.node, group);
                    let value = format!("w{}", self.history.len());
                    let action = Action::put(Bytes::from_static(b"w"), value);
                    asked.insert((life.node, group), self.begin_operation(client, group, life, action));
                }
            }
            if !missing {
                return Ok(());
            }
            until += 20_000;
            self.run_until(until, tell)?;
        }
        let unserved =
            asked.into_iter().filter(|(_, operation)| self.history[*operation].response().is_none());
        let unserved: Vec<_> = unserved.map(|((node, group), _)| format!("n{node} {group}")).collect();
        let found = format!(
            "all is well, and these acknowledge no write: {}; {}",
            unserved.join(", "),
            self.positions()
        );
        self.minded(Err(Violation::new("liveness", found)))
    }

    /// The members that run, each with the keyspaces that it has a replica of.
    pub(super) fn carried(&self) -> Vec<(Life, GroupId)> {
        let members = self.members_now();
        let lives = members.into_iter().filter_map(|node| self.life(node));
        let carried = lives.flat_map(|life| {
            let process = self.machines.get(&life.node).and_then(|machine| machine.process.as_ref());
            let groups = process.map_or_else(Vec::new, |process| process.node().board().groups());
            groups.into_iter().map(move |(group, _)| (life, group))
        });
        carried.filter(|(_, group)| *group >= DEFAULT_GROUP).collect()
    }
}
