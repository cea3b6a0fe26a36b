//! Compaction: now and then the past of a keyspace is forgotten. The world writes it down first, so that at the end the
//! whole history is known.

use hadron_consensus::{DEFAULT_GROUP, GroupId};
use rand::Rng;

use super::story::StoryEvent;
use super::watchers::history_from;
use super::{Happening, World};
use crate::history::{Action, Event, Operation, Violation};

/// The client number of whoever compacts, in the history.
pub(super) const COMPACTOR: u64 = 2_000_000;

impl World {
    /// Asks some node to compact some keyspace at a revision of its past.
    pub(super) fn compact(&mut self) {
        if self.quiet {
            return;
        }
        let pause = self.rng.random_range(0..=2 * self.settings.compaction_us);
        self.schedule.after(pause, Happening::Compact);
        if self.settings.rest_ends(self.schedule.now()).is_some() {
            return;
        }
        let keyspace = GroupId(self.rng.random_range(DEFAULT_GROUP.0..=self.settings.keyspaces));
        let node = self.any_node();
        let Some(life) = self.life(node) else { return };
        let Some(group) = self.present_group(keyspace, life) else { return };
        let recorded = match self.record_past(group) {
            Ok(recorded) => recorded,
            Err(violation) => return self.violate(violation),
        };
        if recorded <= 1 {
            return;
        }
        let back = self.rng.random_range(0..recorded.min(50));
        self.begin_operation(COMPACTOR, group, life, Action::Compact(recorded - back));
    }

    /// Writes down all that some node has applied; returns up to which revision all is written down.
    pub(super) fn record_past(&mut self, group: GroupId) -> Result<i64, Violation> {
        let sound = self.machines.iter().filter(|(node, _)| !self.is_rotten(**node, group));
        let keyspaces: Vec<_> =
            sound.filter_map(|(_, machine)| machine.process.as_ref()?.keyspace(group)).collect();
        let (recorded, past) = self.past.entry(group).or_insert((1, Vec::new()));
        let Some(keyspace) = keyspaces.into_iter().max_by_key(|keyspace| keyspace.revision()) else {
            return Ok(*recorded);
        };
        let revision = keyspace.revision();
        if revision > *recorded {
            let events = history_from(&keyspace, *recorded + 1).map_err(|what| {
                Violation::new("watch_order", format!("the past of group {group}: {what}"))
            })?;
            // A replica whose state is being replaced may tell nothing more.
            if events.last().is_some_and(|last| last.revision == revision) {
                past.extend(events);
                *recorded = revision;
            }
        }
        Ok(*recorded)
    }

    /// What was written down of a keyspace: up to this revision these events.
    pub(super) fn past(&self, group: GroupId) -> (i64, &[Event]) {
        self.past.get(&group).map_or((1, &[]), |(revision, events)| (*revision, events))
    }

    /// A compaction was answered.
    pub(super) fn on_compacted(&mut self, operation: usize) {
        let Operation { action, keyspace, .. } = &self.history[operation];
        if let (Action::Compact(revision), Some(_)) = (action, self.history[operation].response()) {
            self.tell(StoryEvent::Compacted { group: *keyspace, revision: *revision });
        }
    }

    /// How many compactions were acknowledged.
    pub(super) fn compactions(&self) -> u64 {
        let acknowledged = |operation: &&Operation| {
            matches!(operation.action, Action::Compact(_)) && operation.response().is_some()
        };
        self.history.iter().filter(acknowledged).count() as u64
    }

    /// The highest revision at which anybody asked to compact the keyspace.
    pub(super) fn compacted_at_most(&self, group: GroupId) -> i64 {
        let of_group = self.history.iter().filter(|operation| operation.keyspace == group.0);
        let revisions = of_group.filter_map(|operation| match operation.action {
            Action::Compact(revision) => Some(revision),
            _ => None,
        });
        revisions.max().unwrap_or(0)
    }
}
