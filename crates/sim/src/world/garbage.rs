//! What nobody can reach any more goes: in the end, when all is well, there are no leases, and the engines hold what the replicas know, and nothing of compacted
//! versions, of former states, of snapshots that were given up or of replicas that were destroyed.

use std::collections::BTreeMap;

use bytes::Bytes;
use hadron_consensus::{GroupId, ROOT_GROUP};
use hadron_node::GroupBoard;
use hadron_storage::engine::Space;

use super::lies::{generation_of, present_records, records};
use super::story::Story;
use super::watchers::history_from;
use super::{World, machine::Machine};
use crate::history::{Event, Violation};

impl World {
    /// Waits until there is no garbage.
    pub(super) fn tidy_up(&mut self, tell: &mut dyn FnMut(&Story)) -> Result<(), Violation> {
        let began_at = self.schedule.now();
        let mut until = began_at;
        loop {
            let Err(left) = self.check_tidy() else { return Ok(()) };
            if until >= began_at + self.settings.recovery_us_max {
                return self.minded(Err(Violation::new("stored_state", format!("all is well, and {left}"))));
            }
            until += 100_000;
            self.run_until(until, tell)?;
        }
    }

    /// Whether every engine holds what it should and no more; says what is left otherwise.
    fn check_tidy(&mut self) -> Result<(), String> {
        // Leases still end.
        if !self.replicas_are_equal() || !self.watchers_are_done() {
            return Err(format!("not all have the same: {}", self.positions()));
        }
        let members = self.members_now();
        for (node, machine) in self.machines.iter().filter(|(node, _)| members.contains(node)) {
            let Some(process) = &machine.process else { continue };
            let board = process.node().board();
            let groups = (ROOT_GROUP.0..=self.newest_group().0).map(GroupId);
            for group in groups {
                let here = board.group(group);
                // What cannot be read stays, and is nobody's.
                let stored = match self.ever_rotted(*node, group) {
                    true => Ok(present_records(&machine.engine, group, Space::Versions).len() as u64),
                    false => self.count_records(machine, group, here.is_some()),
                };
                let stored = stored.map_err(|what| format!("of {group} on n{node} {what}"))?;
                let Some(here) = here else { continue };
                let leases = here.keyspace.leases().len();
                if leases > 0 {
                    return Err(format!("{leases} leases of {group} do not end on n{node}"));
                }
                let known = here.keyspace.versions();
                if stored != known || here.keyspace.unflushed_bytes() > 0 {
                    return Err(format!(
                        "n{node} has {stored} versions of {group} stored, and knows {known}"
                    ));
                }
                let reachable = self.reachable(group, &here).unwrap_or(known);
                if reachable != known {
                    return Err(format!(
                        "n{node} has {known} versions of {group}, of which {reachable} can be reached"
                    ));
                }
            }
        }
        Ok(())
    }

    /// Counts the versions that a node has stored of a group; says what is stored of it and nobody's.
    fn count_records(&self, machine: &Machine, group: GroupId, is_here: bool) -> Result<u64, String> {
        let present = generation_of(&machine.engine, group).filter(|_| is_here);
        let (from, to) = (group.0.to_be_bytes(), (group.0 + 1).to_be_bytes());
        let mut count = 0;
        for space in [Space::Versions, Space::Values, Space::Tables] {
            for (key, _) in records(&machine.engine, space, &from, &to) {
                let is_present =
                    present.as_ref().is_some_and(|present| key[from.len()..].starts_with(present));
                if !is_present {
                    return Err(format!("a record in {space:?} is nobody's: {key:?}"));
                }
                count += u64::from(space == Space::Versions);
            }
        }
        Ok(count)
    }

    /// How many versions of a keyspace a reader or a watcher can still reach; nothing for the root group, whose history nobody writes down.
    fn reachable(&self, group: GroupId, board: &GroupBoard) -> Option<u64> {
        if group == ROOT_GROUP {
            return None;
        }
        let compacted = board.keyspace.compact_revision().max(0);
        let (_, past) = self.past(group);
        let shown = history_from(&board.keyspace, compacted.max(1)).ok()?;
        let mut keys: BTreeMap<Bytes, Vec<Event>> = BTreeMap::new();
        for event in past.iter().filter(|event| event.revision < compacted).cloned().chain(shown) {
            keys.entry(event.key.clone()).or_default().push(event);
        }
        let count = |events: &Vec<Event>| {
            let is_kept = |(at, event): &(usize, &Event)| {
                let replaced =
                    events.get(at + 1).map(|next| next.revision + i64::from(next.revision == event.revision));
                let deleted = event.after.is_none().then_some(event.revision + 1);
                [replaced, deleted].into_iter().flatten().all(|gone_at| gone_at > compacted)
            };
            events.iter().enumerate().filter(is_kept).count() as u64
        };
        Some(keys.values().map(count).sum())
    }
}
