//! What is alive in the log: for each group its hard state, its floor, the checksums of its entries and the
//! segments that hold them. A segment that holds nobody's entries may go.

use std::collections::{BTreeMap, VecDeque};

use hadron_consensus::{Entry, GroupId, HardState, Index, LogPosition, chain_checksum};

use super::format::TableRow;
use super::{Record, WalError};

/// What a floor does to the entries after it. Decided once, when it is written, and stored with it: at a restart the
/// entry that it was compared with may be gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum FloorEffect {
    /// The log holds the floor's entry: the entries after it stay.
    Keep = 0,
    /// The log ends before the floor, or differs there: no entry stays.
    Reset = 1,
    /// The floor is not above the one the group has: nothing happens.
    Ignored = 2,
}

impl FloorEffect {
    pub(super) fn from_byte(byte: u8) -> Option<FloorEffect> {
        [FloorEffect::Keep, FloorEffect::Reset, FloorEffect::Ignored]
            .into_iter()
            .find(|effect| *effect as u8 == byte)
    }
}

/// What is alive in the log.
#[derive(Default)]
pub(super) struct LiveIndex {
    groups: BTreeMap<GroupId, GroupLog>,
    pins: Pins,
}

/// How many runs of live entries each segment holds. A segment without any is absent.
#[derive(Default)]
struct Pins(BTreeMap<u64, u64>);

#[derive(Default)]
struct GroupLog {
    hard_state: HardState,
    floor: LogPosition,
    /// The chained checksums of the entries after the floor, without gaps.
    checksums: VecDeque<u64>,
    /// Which segments hold them, oldest first. Empty exactly when `checksums` is.
    runs: VecDeque<Run>,
}

/// The entries from `first` up to the next run's are in `segment`.
struct Run {
    first: Index,
    segment: u64,
}

impl Pins {
    fn add(&mut self, segment: u64) {
        *self.0.entry(segment).or_default() += 1;
    }

    fn drop(&mut self, segment: u64) {
        if let Some(count) = self.0.get_mut(&segment) {
            *count -= 1;
            if *count == 0 {
                self.0.remove(&segment);
            }
        }
    }
}

impl GroupLog {
    fn last(&self) -> Index {
        Index(self.floor.index.0 + self.checksums.len() as u64)
    }

    /// The chained checksum at `index`, which must not be below the floor nor beyond the end.
    fn checksum_at(&self, index: Index) -> Option<u64> {
        let offset = index.0.checked_sub(self.floor.index.0)?;
        match offset.checked_sub(1) {
            None => Some(self.floor.checksum),
            Some(place) => self.checksums.get(place as usize).copied(),
        }
    }

    /// Drops the entries at and after `first`, which is above the floor.
    fn truncate(&mut self, first: Index, pins: &mut Pins) {
        self.checksums.truncate((first.0 - self.floor.index.0 - 1) as usize);
        while self.runs.back().is_some_and(|run| run.first >= first) {
            if let Some(run) = self.runs.pop_back() {
                pins.drop(run.segment);
            }
        }
        // What the oldest run still has may be below the floor.
        if self.checksums.is_empty() {
            self.clear(pins);
        }
    }

    fn append(
        &mut self,
        group: GroupId,
        entries: &[Entry],
        segment: u64,
        pins: &mut Pins,
    ) -> Result<(), WalError> {
        let above = entries.partition_point(|entry| entry.index <= self.floor.index);
        let Some(first) = entries.get(above) else { return Ok(()) };
        let Some(mut checksum) = self.checksum_at(first.index.previous()) else {
            return Err(misuse(group, first.index, "leaves a gap in its log"));
        };
        self.truncate(first.index, pins);
        if self.runs.back().is_none_or(|run| run.segment != segment) {
            self.runs.push_back(Run { first: first.index, segment });
            pins.add(segment);
        }
        for entry in &entries[above..] {
            if entry.index != self.last().next() {
                return Err(misuse(group, entry.index, "is out of order"));
            }
            checksum = chain_checksum(checksum, group, entry.term, entry.index, &entry.data);
            if checksum != entry.checksum {
                return Err(misuse(group, entry.index, "does not continue the chain of checksums"));
            }
            self.checksums.push_back(checksum);
        }
        Ok(())
    }

    fn floor_effect(&self, position: &LogPosition) -> FloorEffect {
        if position.index < self.floor.index || *position == self.floor {
            return FloorEffect::Ignored;
        }
        match self.checksum_at(position.index) {
            Some(checksum) if checksum == position.checksum => FloorEffect::Keep,
            _ => FloorEffect::Reset,
        }
    }

    fn set_floor(&mut self, position: &LogPosition, pins: &mut Pins) -> FloorEffect {
        let effect = self.floor_effect(position);
        match effect {
            FloorEffect::Ignored => return effect,
            FloorEffect::Reset => self.clear(pins),
            FloorEffect::Keep => {
                self.checksums.drain(..(position.index.0 - self.floor.index.0) as usize);
                while self.runs.get(1).is_some_and(|next| next.first <= position.index.next()) {
                    self.drop_oldest_run(pins);
                }
                if self.checksums.is_empty() {
                    self.clear(pins);
                }
            }
        }
        self.floor = *position;
        effect
    }

    fn drop_oldest_run(&mut self, pins: &mut Pins) {
        if let Some(run) = self.runs.pop_front() {
            pins.drop(run.segment);
        }
    }

    fn clear(&mut self, pins: &mut Pins) {
        self.checksums.clear();
        while !self.runs.is_empty() {
            self.drop_oldest_run(pins);
        }
    }
}

fn misuse(group: GroupId, index: Index, what: &str) -> WalError {
    WalError::Misuse(format!("entry {index} of group {group} {what}"))
}

impl LiveIndex {
    /// Takes in what a recovery found: a group and its entries, each with its segment.
    pub(super) fn restore<'a>(
        &mut self,
        group: GroupId,
        hard_state: HardState,
        floor: LogPosition,
        entries: impl Iterator<Item = (&'a Entry, u64)>,
    ) {
        let log = self.groups.entry(group).or_default();
        (log.hard_state, log.floor) = (hard_state, floor);
        for (entry, segment) in entries {
            if log.runs.back().is_none_or(|run| run.segment != segment) {
                log.runs.push_back(Run { first: entry.index, segment });
                self.pins.add(segment);
            }
            log.checksums.push_back(entry.checksum);
        }
    }

    /// Notes a record that is about to be written to `segment`. An error is a bug of the caller, and leaves the index
    /// unfit for use.
    pub(super) fn apply(&mut self, record: &Record, segment: u64) -> Result<FloorEffect, WalError> {
        match record {
            Record::HardState(group, state) => self.groups.entry(*group).or_default().hard_state = *state,
            Record::Entries(group, entries) => {
                let log = self.groups.entry(*group).or_default();
                log.append(*group, entries, segment, &mut self.pins)?;
            }
            Record::Floor(group, position) => {
                let log = self.groups.entry(*group).or_default();
                return Ok(log.set_floor(position, &mut self.pins));
            }
            Record::Forget(group) => {
                if let Some(mut log) = self.groups.remove(group) {
                    log.clear(&mut self.pins);
                }
            }
        }
        Ok(FloorEffect::Ignored)
    }

    /// Whether `segment` holds a live entry.
    pub(super) fn is_pinned(&self, segment: u64) -> bool {
        self.pins.0.contains_key(&segment)
    }

    /// For each group with live entries, the oldest segment that holds one.
    pub(super) fn oldest_segments(&self) -> impl Iterator<Item = (GroupId, u64)> {
        self.groups.iter().filter_map(|(group, log)| Some((*group, log.runs.front()?.segment)))
    }

    /// How many groups the log knows.
    pub(super) fn group_count(&self) -> usize {
        self.groups.len()
    }

    /// The table for the head of a new segment.
    pub(super) fn table(&self) -> impl ExactSizeIterator<Item = TableRow> {
        self.groups.iter().map(|(group, log)| TableRow {
            group: *group,
            hard_state: log.hard_state,
            floor: log.floor,
            last: log.last(),
            last_checksum: log.checksums.back().copied().unwrap_or(log.floor.checksum),
        })
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use bytes::Bytes;
    use hadron_consensus::Term;

    use super::*;

    const GROUP: GroupId = GroupId(1);

    fn entries(previous: LogPosition, term: u64, count: u64) -> Vec<Entry> {
        let mut checksum = previous.checksum;
        (1..=count)
            .map(|number| {
                let (term, index, data) = (Term(term), Index(previous.index.0 + number), Bytes::from("data"));
                checksum = chain_checksum(checksum, GROUP, term, index, &data);
                Entry { term, index, checksum, data }
            })
            .collect()
    }

    fn pinned(index: &LiveIndex) -> Vec<u64> {
        index.pins.0.keys().copied().collect()
    }

    #[test]
    fn runs_follow_truncation_and_floors() {
        let mut index = LiveIndex::default();
        let first = entries(LogPosition::default(), 1, 10);
        index.apply(&Record::Entries(GROUP, first[..4].to_vec()), 1).unwrap();
        index.apply(&Record::Entries(GROUP, first[4..7].to_vec()), 2).unwrap();
        index.apply(&Record::Entries(GROUP, first[7..].to_vec()), 3).unwrap();
        assert_eq!(pinned(&index), [1, 2, 3]);
        let floor = |place: usize| Record::Floor(GROUP, first[place].position());
        assert_eq!(index.apply(&floor(2), 3).unwrap(), FloorEffect::Keep);
        assert_eq!(pinned(&index), [1, 2, 3]);
        assert_eq!(index.apply(&floor(3), 3).unwrap(), FloorEffect::Keep);
        assert_eq!(pinned(&index), [2, 3]);
        assert_eq!(index.apply(&floor(1), 3).unwrap(), FloorEffect::Ignored);
        let other = entries(first[5].position(), 2, 1);
        index.apply(&Record::Entries(GROUP, other.clone()), 4).unwrap();
        assert_eq!(pinned(&index), [2, 4]);
        assert_eq!(index.oldest_segments().collect::<Vec<_>>(), [(GROUP, 2)]);
        assert_eq!(
            index.apply(&floor(6), 4).unwrap(),
            FloorEffect::Reset,
            "the log holds another entry there"
        );
        assert!(pinned(&index).is_empty());
        index.apply(&Record::Entries(GROUP, first[7..].to_vec()), 4).unwrap();
        index.apply(&Record::Forget(GROUP), 4).unwrap();
        assert!(pinned(&index).is_empty());
        assert_eq!(index.group_count(), 0);
    }

    #[test]
    fn a_segment_is_given_up_when_its_entries_are_written_again_or_below_the_floor() {
        let mut index = LiveIndex::default();
        let all = entries(LogPosition::default(), 1, 4);
        index.apply(&Record::Entries(GROUP, all.clone()), 1).unwrap();
        index.apply(&Record::Floor(GROUP, all[1].position()), 1).unwrap();
        index.apply(&Record::Entries(GROUP, all[2..].to_vec()), 2).unwrap();
        assert_eq!(pinned(&index), [2]);
    }

    #[test]
    fn entries_that_do_not_fit_are_refused() {
        let all = entries(LogPosition::default(), 1, 5);
        let refused = |records: &[Vec<Entry>]| {
            let mut index = LiveIndex::default();
            let last = records.iter().map(|entries| {
                index.apply(&Record::Entries(GROUP, entries.clone()), 1).err().map(|error| error.to_string())
            });
            last.last().unwrap().unwrap()
        };
        assert!(refused(&[all[1..].to_vec()]).contains("gap"));
        assert!(refused(&[vec![all[0].clone(), all[2].clone()]]).contains("out of order"));
        let mut wrong = all.clone();
        wrong[3].checksum ^= 1;
        assert!(refused(&[all[..2].to_vec(), wrong[2..].to_vec()]).contains("chain"));
    }

    #[test]
    fn entries_below_the_floor_are_passed_over() {
        let all = entries(LogPosition::default(), 1, 5);
        let mut index = LiveIndex::default();
        index.apply(&Record::Floor(GROUP, all[2].position()), 1).unwrap();
        index.apply(&Record::Entries(GROUP, all[..2].to_vec()), 1).unwrap();
        assert!(!index.is_pinned(1));
        index.apply(&Record::Entries(GROUP, all.clone()), 1).unwrap();
        let row = index.table().next().unwrap();
        assert_eq!((row.floor, row.last, row.last_checksum), (all[2].position(), Index(5), all[4].checksum));
    }
}
