//! What each node has in its log, as far as it can be seen from what it wrote to it.

use std::collections::BTreeMap;

use hadron_consensus::{Entry, GroupId};
use hadron_storage::wal::{Record, RecoveredGroup};

use super::{Life, World};
use crate::checkers::leader_completeness::{Held, LeaderCompleteness};
use crate::checkers::log_matching::LogMatching;
use crate::history::Violation;

/// The logs of all replicas and their checkers.
#[derive(Default)]
pub(super) struct Logs {
    matching: LogMatching,
    completeness: LeaderCompleteness,
    /// By node and group.
    logs: BTreeMap<(u64, GroupId), Log>,
    /// Entries that were held against those of others.
    pub(super) entries_seen: u64,
}

/// One replica's log.
#[derive(Clone, Default, PartialEq, Eq)]
pub(super) struct Log {
    /// It begins after this index.
    floor: u64,
    floor_checksum: u64,
    /// Term and chained checksum of its entries.
    entries: BTreeMap<u64, (u64, u64)>,
}

impl Log {
    /// What is left of it when its node starts.
    pub(super) fn of(found: &RecoveredGroup) -> Log {
        let mut log =
            Log { floor: found.floor.index.0, floor_checksum: found.floor.checksum, ..Log::default() };
        log.append(&found.entries);
        log
    }

    pub(super) fn held(&self, index: u64) -> Held {
        match self.entries.get(&index) {
            _ if index <= self.floor => Held::Below,
            Some(entry) => Held::Entry(*entry),
            None => Held::Nothing,
        }
    }

    /// Index and checksum of its last entry, or of where it begins.
    pub(super) fn last(&self) -> (u64, u64) {
        let last = self.entries.last_key_value();
        last.map_or((self.floor, self.floor_checksum), |(index, (_, checksum))| (*index, *checksum))
    }

    /// These come in the place of what it has from the first of them on.
    pub(super) fn append(&mut self, entries: &[Entry]) {
        if let Some(first) = entries.first() {
            self.entries.split_off(&first.index.0);
        }
        let kept = entries.iter().filter(|entry| entry.index.0 > self.floor);
        self.entries.extend(kept.map(|entry| (entry.index.0, (entry.term.0, entry.checksum))));
    }

    pub(super) fn cut(&mut self, floor: u64, checksum: u64) {
        if floor <= self.floor {
            return;
        }
        let rest = self.entries.split_off(&(floor + 1));
        let continues = self.entries.get(&floor).is_some_and(|(_, ours)| *ours == checksum);
        self.entries = if continues { rest } else { BTreeMap::new() };
        (self.floor, self.floor_checksum) = (floor, checksum);
    }
}

impl Logs {
    /// A replica in `term` has applied this entry: index, term and checksum.
    pub(super) fn applied(&mut self, group: u64, term: u64, entry: (u64, u64, u64)) {
        self.completeness.observe_applied(group, term, entry);
    }

    /// A node begins to lead in `term`.
    pub(super) fn leads(&self, node: u64, group: GroupId, term: u64) -> Result<(), Violation> {
        let holds = |index| self.held(node, group, index);
        self.completeness.observe_leader(format_args!("n{node}"), group.0, term, holds)
    }

    /// What a node has given its log at an index.
    pub(super) fn held(&self, node: u64, group: GroupId, index: u64) -> Held {
        self.logs.get(&(node, group)).map_or(Held::Nothing, |log| log.held(index))
    }

    /// A node starts with what is left of its log.
    pub(super) fn recovered(&mut self, node: u64, groups: &BTreeMap<GroupId, RecoveredGroup>) {
        self.logs.retain(|(other, _), _| *other != node);
        self.logs.extend(groups.iter().map(|(group, found)| ((node, *group), Log::of(found))));
    }

    fn record(&mut self, node: u64, record: &Record) -> Result<(), Violation> {
        let mut found = Ok(());
        match record {
            Record::Entries(group, entries) => {
                self.logs.entry((node, *group)).or_default().append(entries);
                self.entries_seen += entries.len() as u64;
                for entry in entries {
                    let observed = (entry.index.0, entry.term.0, entry.checksum);
                    found = found.and(self.matching.observe(format_args!("n{node}"), group.0, observed));
                }
            }
            Record::Floor(group, position) => {
                let log = self.logs.entry((node, *group)).or_default();
                log.cut(position.index.0, position.checksum);
            }
            Record::Forget(group) => drop(self.logs.remove(&(node, *group))),
            Record::HardState(..) => {}
        }
        found
    }
}

impl World {
    /// A node writes to its log.
    pub(super) fn observe_records(&mut self, life: Life, records: &[Record]) {
        for record in records {
            let found = self.logs.record(life.node, record);
            self.mind(found);
        }
    }
}
