//! Reading a log back. Nothing is written before all of it is understood.
//!
//! The log is a chain of batches with consecutive sequence numbers, through all segments. It ends at the first place
//! where the next batch is not to be found. Whether that is the end of what was written, a torn tail or damage is
//! decided by what else there is: each batch says up to which one the log was durable when it was written, so a batch
//! *after* the end that calls the missing one durable proves that something was lost that must not be. Batches after
//! the end that do not were written in the same moment as the missing one, before any sync, and nobody relied on them.

use std::collections::{BTreeMap, VecDeque};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use hadron_consensus::{Entry, GroupId, HardState, Index, LogPosition, chain_checksum};

use super::format::{
    ALIGNMENT, BATCH_HEADER, BatchHeader, FIRST_BATCH, RecordError, Salt, SegmentHeader, Stored, TERMINATOR,
    TableRow, VERSION, decode_records,
};
use super::index::{FloorEffect, LiveIndex};
use super::pool::{Listing, Retired, Segment, segment_name};
use super::{Recovered, RecoveredGroup, WalError};
use crate::TornTail;
use crate::disk::{Disk, DiskFile, read_all};

/// Compared with at once; a multiple of the alignment.
const ZEROS: [u8; 512] = [0; 512];

/// What a log was found to hold.
pub(super) struct Outcome {
    pub(super) recovered: Recovered,
    pub(super) index: LiveIndex,
    /// The segments that hold the log, oldest first: number and size.
    pub(super) segments: Vec<(u64, u64)>,
    /// The last segment and the place for its next batch, if it may be continued.
    pub(super) current: Option<(Segment, u64)>,
    pub(super) next_sequence: u64,
    /// An unused segment after the log.
    pub(super) spare: Option<Segment>,
    /// Segments that are not part of the log.
    pub(super) unused: Vec<Retired>,
    /// The files of the log, to be synced: what a killed process had written may not be durable yet.
    pub(super) files: Vec<(PathBuf, Arc<dyn DiskFile>)>,
    /// The last batches, as far as none calls them durable; they are in the last of `files`.
    pub(super) unproven: Option<Unproven>,
}

/// Batches that can be read and of which nothing proves that they are on the disk.
pub(super) struct Unproven {
    pub(super) offset: u64,
    pub(super) bytes: Vec<u8>,
}

/// Reads the log in `directory`.
pub(super) fn recover(
    disk: &dyn Disk,
    directory: &Path,
    log_id: u64,
    listing: &Listing,
) -> Result<Outcome, WalError> {
    let mut recovery = Recovery::new(log_id);
    for number in &listing.segments {
        let loaded = Loaded::read(disk, &directory.join(segment_name(*number)), *number, log_id)?;
        recovery.segment(loaded)?;
    }
    recovery.finish()
}

/// A segment in memory.
struct Loaded {
    segment: Segment,
    bytes: Vec<u8>,
}

/// Batch headers found where the log does not lead.
#[derive(Clone, Copy, Default)]
struct Strays {
    /// The highest batch that any of them calls durable.
    durable: u64,
    /// Where the last one ends; 0 for none.
    end: u64,
}

impl Loaded {
    fn read(disk: &dyn Disk, path: &Path, number: u64, log_id: u64) -> Result<Loaded, WalError> {
        let failed = |source| WalError::io("reading", path, source);
        let file = disk.open(path).map_err(failed)?;
        let bytes = read_all(&*file).map_err(failed)?;
        let header = SegmentHeader::decode(&bytes);
        if let Some(header) = &header {
            check_header(header, path, number, log_id)?;
        }
        let segment = Segment {
            version: header.as_ref().map_or(VERSION, |header| header.version),
            number,
            size: bytes.len() as u64,
            path: path.to_path_buf(),
            salt: Salt::new(log_id, number),
            file,
        };
        let loaded = Loaded { segment, bytes };
        loaded.check_whole(header.as_ref())?;
        Ok(loaded)
    }

    /// A file gets its name only after it has its whole length and its header, durably, and loses the name before the header is written
    /// anew: no crash makes it shorter or harms the header. With a damaged one nobody knows what else was in it, even if all the rest
    /// is blank.
    fn check_whole(&self, header: Option<&SegmentHeader>) -> Result<(), WalError> {
        let expected = header.map_or(FIRST_BATCH, |header| header.size);
        let found = self.bytes.len() as u64;
        if found < expected {
            let what = format!("the file was cut off: it has {found} bytes and should have {expected}");
            return Err(self.damaged(found, what));
        }
        if header.is_none() {
            return Err(self.damaged(0, "the segment's header is damaged"));
        }
        Ok(())
    }

    fn damaged(&self, offset: u64, what: impl Into<String>) -> WalError {
        WalError::Damaged { file: self.segment.path.clone(), offset, what: what.into() }
    }

    /// Whoever wrote a batch whose checksum fits wrote what is in it.
    fn unreadable(&self, offset: u64, error: RecordError) -> WalError {
        match error {
            RecordError::UnknownKind(kind) => {
                WalError::NewerRecord { file: self.segment.path.clone(), offset, kind }
            }
            RecordError::Malformed => self.damaged(offset, "malformed record"),
        }
    }

    fn at(&self, offset: u64) -> &[u8] {
        self.bytes.get(offset as usize..).unwrap_or_default()
    }

    /// The header and the records of the intact batch at `offset`.
    fn batch(&self, offset: u64) -> Option<(BatchHeader, &[u8])> {
        let bytes = self.at(offset);
        let header = BatchHeader::decode(bytes, self.segment.salt)?;
        Some((header, header.payload(bytes, self.segment.salt)?))
    }

    /// Whether nothing was ever written at `offset` in this life of the segment.
    fn is_blank(&self, offset: u64) -> bool {
        self.at(offset).iter().take(TERMINATOR).all(|byte| *byte == 0)
    }

    /// All batch headers of this life of the segment at or after `from`, whatever is between them.
    fn strays(&self, from: u64) -> Strays {
        let mut strays = Strays::default();
        let mut offset = from as usize;
        while offset + BATCH_HEADER <= self.bytes.len() {
            // Most of an unused segment is zeros.
            if self.bytes[offset..].starts_with(&ZEROS) {
                offset += ZEROS.len();
                continue;
            }
            if let Some(header) = BatchHeader::decode(&self.bytes[offset..], self.segment.salt) {
                strays.durable = strays.durable.max(header.durable);
                strays.end = (offset + header.extent()).min(self.bytes.len()) as u64;
            }
            offset += ALIGNMENT;
        }
        strays
    }
}

fn check_header(header: &SegmentHeader, path: &Path, number: u64, log_id: u64) -> Result<(), WalError> {
    let file = path.to_path_buf();
    if header.version > VERSION {
        return Err(WalError::NewerFormat { file, found: header.version, supported: VERSION });
    }
    if header.log_id != log_id {
        return Err(WalError::Foreign { file, found: header.log_id, expected: log_id });
    }
    if header.number != number {
        let what = format!("the file's name says segment {number}, its header {}", header.number);
        return Err(WalError::Damaged { file, offset: 0, what });
    }
    Ok(())
}

/// Where the log was left: the place for the batch that was not found.
struct End {
    file: PathBuf,
    offset: u64,
    strays: Strays,
    blank: bool,
    file_bytes: u64,
}

impl End {
    fn torn_tail(&self) -> Option<TornTail> {
        if self.blank && self.strays.end == 0 {
            return None;
        }
        let end = if self.strays.end > self.offset { self.strays.end } else { self.file_bytes };
        Some(TornTail { file: self.file.clone(), offset: self.offset, bytes: end - self.offset })
    }
}

/// A log being read, segment by segment.
struct Recovery {
    log_id: u64,
    replay: Replay,
    /// The sequence number of the batch to be found next; `None` before the first.
    next_sequence: Option<u64>,
    /// The segments that hold batches.
    used: Vec<Segment>,
    /// Of the last of them. A segment begins only when all before it is durable.
    unproven: Option<Unproven>,
    end: Option<End>,
    /// Segments without an intact first batch since the last one that has it.
    unused: Vec<(Segment, End)>,
    /// Segments of that kind that have a later one after them.
    skipped: Vec<Retired>,
}

impl Recovery {
    fn new(log_id: u64) -> Recovery {
        Recovery {
            log_id,
            replay: Replay::default(),
            next_sequence: None,
            used: Vec::new(),
            unproven: None,
            end: None,
            unused: Vec::new(),
            skipped: Vec::new(),
        }
    }

    fn segment(&mut self, loaded: Loaded) -> Result<(), WalError> {
        debug_assert_eq!(loaded.segment.salt, Salt::new(self.log_id, loaded.segment.number));
        match loaded.batch(FIRST_BATCH).map(|(header, _)| header.sequence) {
            None => self.add_unused(loaded),
            Some(first) => {
                self.check_continues(&loaded, first)?;
                self.replay_segment(loaded, first)?;
            }
        }
        Ok(())
    }

    fn add_unused(&mut self, loaded: Loaded) {
        let end = end_of(&loaded, FIRST_BATCH);
        self.unused.push((loaded.segment, end));
    }

    /// Refuses a segment that begins elsewhere than where the log was left.
    fn check_continues(&mut self, loaded: &Loaded, first: u64) -> Result<(), WalError> {
        match (self.next_sequence, &self.end) {
            (Some(expected), Some(end)) if first > expected => {
                return Err(WalError::Damaged {
                    file: end.file.clone(),
                    offset: end.offset,
                    what: format!(
                        "batch {expected} is missing; segment {} goes on with {first}",
                        loaded.segment.number
                    ),
                });
            }
            (Some(expected), _) if first < expected => {
                return Err(loaded.damaged(FIRST_BATCH, format!("batch {expected} expected, {first} found")));
            }
            (None, _) => {
                if let Some((_, end)) = self.unused.iter().find(|(_, end)| end.torn_tail().is_some()) {
                    let what = "the first batch of the log is damaged".into();
                    return Err(WalError::Damaged { file: end.file.clone(), offset: end.offset, what });
                }
            }
            _ => {}
        }
        let unused = self.unused.drain(..);
        self.skipped
            .extend(unused.map(|(segment, _)| Retired { number: segment.number, size: segment.size }));
        Ok(())
    }

    fn replay_segment(&mut self, loaded: Loaded, first: u64) -> Result<(), WalError> {
        let mut offset = FIRST_BATCH;
        let mut sequence = first;
        // Sequence numbers and places of batches that no later one calls durable.
        let mut unproven = VecDeque::new();
        while let Some((header, payload)) = loaded.batch(offset) {
            if header.sequence != sequence {
                break;
            }
            let records = decode_records(payload).map_err(|error| loaded.unreadable(offset, error))?;
            let place = Place { segment: loaded.segment.number, offset };
            for (position, record) in records.into_iter().enumerate() {
                let starts_segment = offset == FIRST_BATCH && position == 0;
                if starts_segment != matches!(record, Stored::Table(_)) {
                    return Err(loaded.damaged(offset, "a table of groups belongs at the head of a segment"));
                }
                self.replay.record(record, place).map_err(|what| loaded.damaged(offset, what))?;
            }
            unproven.push_back((sequence, offset));
            while unproven.front().is_some_and(|(sequence, _)| *sequence <= header.durable) {
                unproven.pop_front();
            }
            sequence += 1;
            offset += header.extent() as u64;
        }
        self.unproven = unproven.front().map(|(_, begin)| Unproven {
            offset: *begin,
            bytes: loaded.bytes[*begin as usize..offset as usize].to_vec(),
        });
        self.next_sequence = Some(sequence);
        self.end = Some(end_of(&loaded, offset));
        self.used.push(loaded.segment);
        Ok(())
    }

    fn finish(mut self) -> Result<Outcome, WalError> {
        let next_sequence = self.next_sequence.unwrap_or(1);
        let ends = self.end.iter().chain(self.unused.iter().map(|(_, end)| end));
        let mut torn_tail = None;
        for end in ends {
            if end.strays.durable >= next_sequence {
                let what = format!("batch {next_sequence} is damaged and later ones rely on it");
                return Err(WalError::Damaged { file: end.file.clone(), offset: end.offset, what });
            }
            torn_tail = torn_tail.or_else(|| end.torn_tail());
        }
        let (groups, index) = self.replay.finish(&self.used)?;
        let (spare, unused) = self.sort_unused();
        let files = self.used.iter().map(|used| (used.path.clone(), Arc::clone(&used.file))).collect();
        let segments = self.used.iter().map(|used| (used.number, used.size)).collect();
        // After a torn tail the log goes on in a new segment, so that nothing of the tail is ever taken for valid; and after a segment of an
        // older version, which that must be able to read to its end, or to refuse by its header.
        let current = match (&torn_tail, &self.end) {
            (None, Some(end)) => self.used.pop().map(|segment| (segment, end.offset)),
            _ => None,
        };
        let current = current.filter(|(segment, _)| segment.version == VERSION);
        let recovered = Recovered { groups, torn_tail };
        let unproven = self.unproven;
        Ok(Outcome { recovered, index, segments, current, next_sequence, spare, unused, files, unproven })
    }

    /// A clean unused segment is the next one; the others are put away.
    fn sort_unused(&mut self) -> (Option<Segment>, Vec<Retired>) {
        let mut spare = None;
        let mut unused = std::mem::take(&mut self.skipped);
        for (segment, end) in self.unused.drain(..) {
            if spare.is_none() && end.torn_tail().is_none() && segment.version == VERSION {
                spare = Some(segment);
            } else {
                unused.push(Retired { number: segment.number, size: segment.size });
            }
        }
        unused.sort_by_key(|retired| retired.number);
        (spare, unused)
    }
}

fn end_of(loaded: &Loaded, offset: u64) -> End {
    End {
        file: loaded.segment.path.clone(),
        offset,
        strays: loaded.strays(offset),
        blank: loaded.is_blank(offset),
        file_bytes: loaded.bytes.len() as u64,
    }
}

/// Where an entry was read.
#[derive(Clone, Copy)]
struct Place {
    segment: u64,
    offset: u64,
}

/// The groups as the records make them.
#[derive(Default)]
struct Replay {
    groups: BTreeMap<GroupId, ReplayedGroup>,
    /// False until the first table, which there is nothing to compare with.
    begun: bool,
}

#[derive(Default)]
struct ReplayedGroup {
    hard_state: HardState,
    floor: LogPosition,
    /// The end of the log. Entries before the first of `entries` were in segments that are gone.
    last: Index,
    entries: Vec<(Entry, Place)>,
}

impl Replay {
    fn record(&mut self, record: Stored, place: Place) -> Result<(), String> {
        match record {
            Stored::HardState(group, state) => self.group(group).hard_state = state,
            Stored::Entries(group, entries) => {
                return self
                    .group(group)
                    .append(entries, place)
                    .map_err(|what| format!("group {group}: {what}"));
            }
            Stored::Floor(group, position, effect) => self.group(group).set_floor(position, effect),
            Stored::Forget(group) => {
                self.groups.remove(&group);
            }
            Stored::Table(rows) => return self.table(rows),
            Stored::Seal => {}
        }
        Ok(())
    }

    fn group(&mut self, group: GroupId) -> &mut ReplayedGroup {
        self.groups.entry(group).or_default()
    }

    /// The first table is the base of everything; a later one must say what the records before it say.
    fn table(&mut self, rows: Vec<TableRow>) -> Result<(), String> {
        if self.begun {
            let equal = rows.len() == self.groups.len()
                && rows.iter().zip(&self.groups).all(|(row, (group, replayed))| {
                    row.group == *group
                        && row.hard_state == replayed.hard_state
                        && row.floor == replayed.floor
                        && row.last == replayed.last
                        && replayed
                            .entries
                            .last()
                            .is_none_or(|(entry, _)| entry.checksum == row.last_checksum)
                });
            return if equal {
                Ok(())
            } else {
                Err("the table of groups differs from the log before it".into())
            };
        }
        self.begun = true;
        for row in rows {
            let group = self.group(row.group);
            (group.hard_state, group.floor, group.last) = (row.hard_state, row.floor, row.last);
        }
        Ok(())
    }

    /// Checks each group's chain and hands out the results.
    fn finish(
        &mut self,
        used: &[Segment],
    ) -> Result<(BTreeMap<GroupId, RecoveredGroup>, LiveIndex), WalError> {
        let mut index = LiveIndex::default();
        let mut groups = BTreeMap::new();
        for (group, replayed) in std::mem::take(&mut self.groups) {
            replayed.check(group).map_err(|(place, what)| {
                let segment = place.map_or(used.first(), |place| {
                    used.iter().find(|segment| segment.number == place.segment)
                });
                WalError::Damaged {
                    file: segment.map(|segment| segment.path.clone()).unwrap_or_default(),
                    offset: place.map_or(FIRST_BATCH, |place| place.offset),
                    what,
                }
            })?;
            let places = replayed.entries.iter().map(|(entry, place)| (entry, place.segment));
            index.restore(group, replayed.hard_state, replayed.floor, places);
            let entries = replayed.entries.into_iter().map(|(entry, _)| entry).collect();
            let recovered =
                RecoveredGroup { hard_state: replayed.hard_state, floor: replayed.floor, entries };
            groups.insert(group, recovered);
        }
        Ok((groups, index))
    }
}

impl ReplayedGroup {
    fn append(&mut self, entries: Vec<Entry>, place: Place) -> Result<(), String> {
        let above = entries.partition_point(|entry| entry.index <= self.floor.index);
        let Some(first) = entries.get(above).map(|entry| entry.index) else { return Ok(()) };
        if first > self.last.next() {
            return Err(format!("entry {first} leaves a gap after {}", self.last));
        }
        let keep = self.entries.partition_point(|(entry, _)| entry.index < first);
        self.entries.truncate(keep);
        self.entries.extend(entries.into_iter().skip(above).map(|entry| (entry, place)));
        self.last = self.entries.last().map_or(self.last, |(entry, _)| entry.index);
        Ok(())
    }

    fn set_floor(&mut self, position: LogPosition, effect: FloorEffect) {
        match effect {
            FloorEffect::Ignored => return,
            FloorEffect::Keep => {
                let dead = self.entries.partition_point(|(entry, _)| entry.index <= position.index);
                self.entries.drain(..dead);
            }
            FloorEffect::Reset => {
                self.entries.clear();
                self.last = position.index;
            }
        }
        self.floor = position;
    }

    /// The log must begin right after the floor and chain from it to its end.
    fn check(&self, group: GroupId) -> Result<(), (Option<Place>, String)> {
        let mut previous = self.floor;
        for (entry, place) in &self.entries {
            if entry.index != previous.index.next() {
                let what = format!(
                    "group {group}: entries {} to {} are missing",
                    previous.index.next(),
                    entry.index
                );
                return Err((Some(*place), what));
            }
            let expected = chain_checksum(previous.checksum, group, entry.term, entry.index, &entry.data);
            if entry.checksum != expected {
                let what = format!("group {group}: entry {} breaks the chain of checksums", entry.index);
                return Err((Some(*place), what));
            }
            previous = entry.position();
        }
        if previous.index != self.last {
            let what =
                format!("group {group}: entries {} to {} are missing", previous.index.next(), self.last);
            return Err((None, what));
        }
        Ok(())
    }
}
