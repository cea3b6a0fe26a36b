//! Persist: records go to the log, completions come back.
//!
//! All groups share one log. The node numbers its batches; the driver appends and syncs them in order and reports the
//! newest number that is durable. One fsync so answers for every group that had something in it.

use std::collections::{BTreeMap, VecDeque};

use hadron_consensus::{Event as CoreEvent, GroupId, Persist, Time};
use hadron_storage::wal::Record;

use crate::event::Effects;
use crate::node::Node;

/// The log's batches that are on their way to the disk.
#[derive(Debug, Default)]
pub(crate) struct LogQueue {
    /// Number of the newest batch.
    sequence: u64,
    outstanding: VecDeque<Outstanding>,
    /// When a batch was durable last.
    completed_at: Option<Time>,
}

#[derive(Debug)]
struct Outstanding {
    sequence: u64,
    since: Time,
    /// The highest persist number of each group that the batch contains.
    groups: BTreeMap<GroupId, u64>,
}

impl LogQueue {
    /// Adds a group's persist to the batch of this turn.
    fn add(&mut self, now: Time, group: GroupId, persist_sequence: u64, batch_is_new: bool) -> u64 {
        let sequence = self.add_unwatched(now, batch_is_new);
        if let Some(newest) = self.outstanding.back_mut() {
            newest.groups.insert(group, persist_sequence);
        }
        sequence
    }

    /// Adds a record that no group waits for to the batch of this turn; returns the batch's number.
    pub(crate) fn add_unwatched(&mut self, now: Time, batch_is_new: bool) -> u64 {
        if batch_is_new || self.outstanding.is_empty() {
            self.sequence += 1;
            let sequence = self.sequence;
            self.outstanding.push_back(Outstanding { sequence, since: now, groups: BTreeMap::new() });
        }
        self.sequence
    }

    /// Takes what is durable: the highest persist number of each group, in the order of batches.
    fn complete(&mut self, now: Time, sequence: u64) -> BTreeMap<GroupId, u64> {
        self.completed_at = Some(now);
        let mut groups = BTreeMap::new();
        while self.outstanding.front().is_some_and(|batch| batch.sequence <= sequence) {
            groups.extend(self.outstanding.pop_front().into_iter().flat_map(|batch| batch.groups));
        }
        groups
    }

    /// Since when the disk has been at what it is asked for without having done anything. Under load batches always wait for one another, and a
    /// disk that is slow is not one that hangs.
    pub(crate) fn waits_since(&self) -> Option<Time> {
        let oldest = self.outstanding.front()?.since;
        Some(self.completed_at.map_or(oldest, |at| at.max(oldest)))
    }
}

impl Node {
    /// Queues what a group wants durable.
    pub(crate) fn persist(
        &mut self,
        group: GroupId,
        persists: impl Iterator<Item = Persist>,
        effects: &mut Effects,
    ) {
        for persist in persists {
            effects.log_sequence = self.log.add(self.now, group, persist.sequence, effects.log.is_empty());
            if let Some(hard_state) = persist.hard_state {
                effects.log.push(Record::HardState(group, hard_state));
            }
            if !persist.entries.is_empty() {
                effects.log.push(Record::Entries(group, persist.entries));
            }
        }
    }

    /// The disk caught up to `sequence`.
    pub(crate) fn on_log_durable(&mut self, sequence: u64, effects: &mut Effects) {
        for (group, persisted) in self.log.complete(self.now, sequence) {
            self.step_group(group, CoreEvent::Persisted { sequence: persisted }, effects);
        }
        self.on_log_forgotten(sequence, effects);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_completion_answers_for_all_earlier_batches() {
        let mut queue = LogQueue::default();
        assert_eq!(queue.add(Time(1), GroupId(1), 1, true), 1);
        assert_eq!(queue.add(Time(1), GroupId(2), 1, false), 1);
        assert_eq!(queue.add(Time(5), GroupId(1), 2, true), 2);
        assert_eq!(queue.waits_since(), Some(Time(1)));
        let durable = queue.complete(Time(9), 2);
        assert_eq!(durable, BTreeMap::from([(GroupId(1), 2), (GroupId(2), 1)]));
        assert_eq!(queue.waits_since(), None);
    }

    /// Each fsync takes 700 ms, and batches come all the time: the oldest one is never younger than that.
    #[test]
    fn a_disk_that_goes_on_is_not_waited_for_longer_than_since_it_last_did() {
        let mut queue = LogQueue::default();
        for fsync in 1..=20_u64 {
            for batch in 0..14 {
                queue.add(Time(fsync * 700_000 + batch * 50_000), GroupId(1), fsync, true);
            }
            let ends_at = Time((fsync + 1) * 700_000);
            // What came while the fsync before was under way.
            queue.complete(ends_at, (fsync - 1) * 14);
            assert_eq!(queue.waits_since(), Some(ends_at));
        }
    }
}
