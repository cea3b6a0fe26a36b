//! The retained part of a group's log, in memory.
//!
//! Invariants: entries are consecutive and begin right after the floor; terms never decrease; each entry's checksum is
//! the chain over everything before it.

use std::collections::VecDeque;

use bytes::Bytes;

use crate::entry::{Entry, LogPosition, chain_checksum};
use crate::ids::{GroupId, Index, Term};

/// The entries after the floor.
#[derive(Debug)]
pub(crate) struct Log {
    group: GroupId,
    /// The last entry that is no longer here: the state machine has it durably.
    floor: LogPosition,
    entries: VecDeque<Entry>,
    /// Bytes of data in the entries.
    bytes: usize,
}

impl Log {
    /// A log as it was recovered.
    ///
    /// # Panics
    /// If the entries are not consecutive from the floor, or do not continue its checksum: a log is checked before
    /// it comes here, and a replica must not vote or acknowledge on the strength of one that is broken.
    pub(crate) fn new(group: GroupId, floor: LogPosition, entries: Vec<Entry>) -> Log {
        let mut previous = floor;
        for entry in &entries {
            assert!(
                entry.index == previous.index.next(),
                "the recovered log has a gap before {}",
                entry.index
            );
            assert!(entry.term >= previous.term, "the recovered log's terms decrease at {}", entry.index);
            let checksum = chain_checksum(previous.checksum, group, entry.term, entry.index, &entry.data);
            assert!(entry.checksum == checksum, "the recovered log's checksum is broken at {}", entry.index);
            previous = entry.position();
        }
        let bytes = entries.iter().map(|entry| entry.data.len()).sum();
        Log { group, floor, entries: entries.into(), bytes }
    }

    /// The position before the first entry.
    pub(crate) fn floor(&self) -> LogPosition {
        self.floor
    }

    /// The position of the last entry.
    pub(crate) fn last(&self) -> LogPosition {
        self.entries.back().map_or(self.floor, Entry::position)
    }

    /// The retained entries, oldest first.
    pub(crate) fn entries(&self) -> impl DoubleEndedIterator<Item = &Entry> + ExactSizeIterator {
        self.entries.iter()
    }

    /// Bytes of data in the retained entries.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// The entries from `from` (which must be after the floor) on.
    pub(crate) fn entries_from(&self, from: Index) -> impl Iterator<Item = &Entry> {
        self.entries.range(self.offset(from).min(self.entries.len())..)
    }

    /// The entry at `index`, if it is retained.
    pub(crate) fn entry(&self, index: Index) -> Option<&Entry> {
        (index > self.floor.index).then(|| self.entries.get(self.offset(index))).flatten()
    }

    /// The position at `index`, if the log reaches it and the floor is not beyond it.
    pub(crate) fn position_at(&self, index: Index) -> Option<LogPosition> {
        if index == self.floor.index { Some(self.floor) } else { self.entry(index).map(Entry::position) }
    }

    /// The term at `index`, if known.
    pub(crate) fn term_at(&self, index: Index) -> Option<Term> {
        self.position_at(index).map(|position| position.term)
    }

    /// The highest index not above `index` whose entry has a term not above `term`: where two logs that differ may
    /// first agree. Below the floor nothing is known, and the answer is the index just below it.
    pub(crate) fn last_at_or_below(&self, index: Index, term: Term) -> Index {
        if index < self.floor.index {
            return index;
        }
        let retained = self.entries.partition_point(|entry| entry.index <= index && entry.term <= term);
        if retained == 0 && self.floor.term > term {
            return self.floor.index.previous();
        }
        Index(self.floor.index.0 + retained as u64)
    }

    /// Appends new data as leader; returns its index.
    pub(crate) fn propose(&mut self, term: Term, data: Bytes) -> Index {
        let last = self.last();
        let index = last.index.next();
        let checksum = chain_checksum(last.checksum, self.group, term, index, &data);
        self.bytes += data.len();
        self.entries.push_back(Entry { term, index, checksum, data });
        index
    }

    /// The checksum that `entry` must have where it stands; `None` if what comes before it is not retained.
    pub(crate) fn checksum_of(&self, entry: &Entry) -> Option<u64> {
        let before = self.position_at(entry.index.previous())?;
        Some(chain_checksum(before.checksum, self.group, entry.term, entry.index, &entry.data))
    }

    /// Whether the entry at `index` continues the one before it with the checksum that it has. True where nothing is
    /// retained.
    pub(crate) fn is_intact_at(&self, index: Index) -> bool {
        let Some(entry) = self.entry(index) else { return true };
        self.checksum_of(entry).is_none_or(|checksum| checksum == entry.checksum)
    }

    /// Appends an entry of the leader's.
    pub(crate) fn push(&mut self, entry: Entry) {
        let last = self.last();
        assert!(entry.index == last.index.next(), "a gap before {} in the log", entry.index);
        assert!(entry.term >= last.term, "the term decreases at {} in the log", entry.index);
        self.bytes += entry.data.len();
        self.entries.push_back(entry);
    }

    /// Drops `from` and everything after it.
    pub(crate) fn truncate(&mut self, from: Index) {
        assert!(from > self.floor.index, "the log cannot be cut at {from}, below its floor");
        let dropped = self.entries.drain(self.offset(from).min(self.entries.len())..);
        self.bytes -= dropped.map(|entry| entry.data.len()).sum::<usize>();
    }

    /// Drops everything up to and including `to`.
    pub(crate) fn compact(&mut self, to: Index) {
        if let Some(floor) = self.position_at(to) {
            let dropped = self.entries.drain(..(to.0 - self.floor.index.0) as usize);
            self.bytes -= dropped.map(|entry| entry.data.len()).sum::<usize>();
            self.floor = floor;
        }
    }

    /// Forgets all entries: the log goes on after `floor`.
    pub(crate) fn restart_at(&mut self, floor: LogPosition) {
        self.entries.clear();
        self.bytes = 0;
        self.floor = floor;
    }

    /// Where in `entries` the entry with `index` is or would be.
    fn offset(&self, index: Index) -> usize {
        assert!(index > self.floor.index, "{index} is below the log's floor");
        (index.0 - self.floor.index.0 - 1) as usize
    }
}
