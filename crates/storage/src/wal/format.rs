//! The bytes of the log. `docs/formats/wal.md` describes them for readers; this is the only code that knows them.
//!
//! All numbers are little-endian. A segment is a header page and then batches; a batch is a header and records. Both
//! checksums of a batch start from the segment's [`Salt`], so that batches of a file's former life are not valid.

use bytes::Bytes;
use crc32c::crc32c_append;
use hadron_consensus::{Entry, GroupId, HardState, Index, LogPosition, ReplicaId, Term};

use super::{Record, index::FloorEffect};

/// The newest format that this code reads, and the one it writes.
pub(super) const VERSION: u32 = 1;
/// Where batches begin: a page of its own, so that no later write can tear the segment's header.
pub(super) const FIRST_BATCH: u64 = 4096;
/// Bytes of a batch's header.
pub(super) const BATCH_HEADER: usize = 40;
/// Batches begin at multiples of this.
pub(super) const ALIGNMENT: usize = 8;
/// Zeros after the last batch, so that the end of the log is told apart from what the file held before.
pub(super) const TERMINATOR: usize = 8;
/// Bytes of one row of the table of groups.
pub(super) const TABLE_ROW: usize = 73;

const SEGMENT_MAGIC: [u8; 8] = *b"HADRWAL\n";
const SEGMENT_HEADER: usize = 64;
const BATCH_MAGIC: [u8; 4] = *b"HWB1";

const HARD_STATE: u8 = 1;
const ENTRIES: u8 = 2;
const FLOOR: u8 = 3;
const FORGET: u8 = 4;
const TABLE: u8 = 5;
pub(super) const SEAL: u8 = 6;

/// What the checksums of a segment's batches start from: different for each life of each file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Salt(u32);

impl Salt {
    pub(super) fn new(log_id: u64, segment: u64) -> Salt {
        Salt(crc32c_append(crc32c_append(0, &log_id.to_le_bytes()), &segment.to_le_bytes()))
    }

    fn checksum(self, bytes: &[u8]) -> u32 {
        crc32c_append(self.0, bytes)
    }
}

/// The first bytes of a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct SegmentHeader {
    pub(super) version: u32,
    pub(super) number: u64,
    pub(super) size: u64,
    pub(super) log_id: u64,
}

impl SegmentHeader {
    /// The whole header page and the terminator after it.
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut page = Vec::with_capacity(FIRST_BATCH as usize + TERMINATOR);
        page.extend_from_slice(&SEGMENT_MAGIC);
        page.extend_from_slice(&self.version.to_le_bytes());
        page.extend_from_slice(&[0; 4]);
        page.extend_from_slice(&self.number.to_le_bytes());
        page.extend_from_slice(&self.size.to_le_bytes());
        page.extend_from_slice(&self.log_id.to_le_bytes());
        page.resize(SEGMENT_HEADER - 4, 0);
        let checksum = crc32c_append(0, &page);
        page.extend_from_slice(&checksum.to_le_bytes());
        page.resize(FIRST_BATCH as usize + TERMINATOR, 0);
        page
    }

    /// `None` when the bytes are no intact header of any version.
    pub(super) fn decode(bytes: &[u8]) -> Option<SegmentHeader> {
        let header = bytes.get(..SEGMENT_HEADER)?;
        let (body, checksum) = header.split_at(SEGMENT_HEADER - 4);
        if body[..8] != SEGMENT_MAGIC || checksum != crc32c_append(0, body).to_le_bytes() {
            return None;
        }
        let mut cursor = Cursor::new(&body[8..]);
        let version = cursor.u32()?;
        cursor.u32()?;
        Some(SegmentHeader { version, number: cursor.u64()?, size: cursor.u64()?, log_id: cursor.u64()? })
    }
}

/// What a batch says about itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct BatchHeader {
    /// Bytes of records.
    pub(super) length: usize,
    /// One more than that of the batch before, through all segments.
    pub(super) sequence: u64,
    /// The last batch that was durable when this one was written.
    pub(super) durable: u64,
    payload_checksum: u32,
}

impl BatchHeader {
    /// `None` when there is no intact header of this life of the segment.
    pub(super) fn decode(bytes: &[u8], salt: Salt) -> Option<BatchHeader> {
        let header = bytes.get(..BATCH_HEADER)?;
        if header[..4] != BATCH_MAGIC || header[28..32] != salt.checksum(&header[..28]).to_le_bytes() {
            return None;
        }
        let mut cursor = Cursor::new(&header[4..]);
        Some(BatchHeader {
            length: cursor.u32()? as usize,
            sequence: cursor.u64()?,
            durable: cursor.u64()?,
            payload_checksum: cursor.u32()?,
        })
    }

    /// The batch's records, if they are intact; `bytes` begin with the header.
    pub(super) fn payload<'a>(&self, bytes: &'a [u8], salt: Salt) -> Option<&'a [u8]> {
        let payload = bytes.get(BATCH_HEADER..BATCH_HEADER.checked_add(self.length)?)?;
        (salt.checksum(payload) == self.payload_checksum).then_some(payload)
    }

    /// Bytes that the batch takes up in its segment.
    pub(super) fn extent(&self) -> usize {
        batch_extent(self.length)
    }
}

/// Bytes that a batch with `length` bytes of records takes up in its segment.
pub(super) fn batch_extent(length: usize) -> usize {
    (BATCH_HEADER + length).next_multiple_of(ALIGNMENT)
}

/// Bytes that `record` takes up in a batch.
pub(super) fn record_length(record: &Record) -> usize {
    match record {
        Record::HardState(..) => 34,
        Record::Entries(_, entries) => 21 + entries.iter().map(|entry| 20 + entry.data.len()).sum::<usize>(),
        Record::Floor(..) => 34,
        Record::Forget(_) => 9,
    }
}

/// Bytes that the table of `groups` groups takes up in a batch.
pub(super) fn table_length(groups: usize) -> usize {
    5 + groups * TABLE_ROW
}

/// One batch being put together in a buffer that is used again for the next.
#[derive(Default)]
pub(super) struct BatchEncoder {
    buffer: Vec<u8>,
}

impl BatchEncoder {
    pub(super) fn begin(&mut self) {
        self.buffer.clear();
        self.buffer.resize(BATCH_HEADER, 0);
    }

    /// Fills in the header. The result is the whole batch, padded, with the terminator behind it.
    pub(super) fn finish(&mut self, sequence: u64, durable: u64, salt: Salt) -> &[u8] {
        let length = self.buffer.len() - BATCH_HEADER;
        let (header, payload) = self.buffer.split_at_mut(BATCH_HEADER);
        header[..4].copy_from_slice(&BATCH_MAGIC);
        header[4..8].copy_from_slice(&(length as u32).to_le_bytes());
        header[8..16].copy_from_slice(&sequence.to_le_bytes());
        header[16..24].copy_from_slice(&durable.to_le_bytes());
        header[24..28].copy_from_slice(&salt.checksum(payload).to_le_bytes());
        let checksum = salt.checksum(&header[..28]);
        header[28..32].copy_from_slice(&checksum.to_le_bytes());
        self.buffer.resize(batch_extent(length) + TERMINATOR, 0);
        &self.buffer
    }

    /// Gives back memory after an unusually large batch.
    pub(super) fn shrink(&mut self) {
        const KEEP: usize = 8 << 20;
        if self.buffer.capacity() > KEEP {
            self.buffer = Vec::new();
        }
    }

    fn u64(&mut self, value: u64) {
        self.buffer.extend_from_slice(&value.to_le_bytes());
    }

    fn u32(&mut self, value: u32) {
        self.buffer.extend_from_slice(&value.to_le_bytes());
    }

    fn position(&mut self, position: &LogPosition) {
        self.u64(position.term.0);
        self.u64(position.index.0);
        self.u64(position.checksum);
    }

    fn hard_state_fields(&mut self, state: &HardState) {
        self.u64(state.term.0);
        self.buffer.push(state.voted_for.is_some().into());
        self.u64(state.voted_for.unwrap_or_default().0);
        self.u64(state.commit.0);
    }

    pub(super) fn hard_state(&mut self, group: GroupId, state: &HardState) {
        self.buffer.push(HARD_STATE);
        self.u64(group.0);
        self.hard_state_fields(state);
    }

    pub(super) fn entries(&mut self, group: GroupId, entries: &[Entry]) {
        self.buffer.push(ENTRIES);
        self.u64(group.0);
        self.u64(entries.first().map_or(0, |entry| entry.index.0));
        self.u32(entries.len() as u32);
        for entry in entries {
            self.u64(entry.term.0);
            self.u64(entry.checksum);
            self.u32(entry.data.len() as u32);
            self.buffer.extend_from_slice(&entry.data);
        }
    }

    pub(super) fn floor(&mut self, group: GroupId, position: &LogPosition, effect: FloorEffect) {
        self.buffer.push(FLOOR);
        self.u64(group.0);
        self.position(position);
        self.buffer.push(effect as u8);
    }

    pub(super) fn forget(&mut self, group: GroupId) {
        self.buffer.push(FORGET);
        self.u64(group.0);
    }

    pub(super) fn table(&mut self, rows: impl ExactSizeIterator<Item = TableRow>) {
        self.buffer.push(TABLE);
        self.u32(rows.len() as u32);
        for row in rows {
            self.u64(row.group.0);
            self.hard_state_fields(&row.hard_state);
            self.position(&row.floor);
            self.u64(row.last.0);
            self.u64(row.last_checksum);
        }
    }

    pub(super) fn seal(&mut self) {
        self.buffer.push(SEAL);
    }

    /// A record of a version to come.
    #[cfg(test)]
    pub(super) fn unknown(&mut self, kind: u8) {
        self.buffer.push(kind);
    }
}

/// What the table at the head of each segment holds of one group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct TableRow {
    pub(super) group: GroupId,
    pub(super) hard_state: HardState,
    pub(super) floor: LogPosition,
    /// The end of the group's log, equal to the floor when there are no entries.
    pub(super) last: Index,
    /// The chained checksum there.
    pub(super) last_checksum: u64,
}

/// A record as it is read back.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Stored {
    HardState(GroupId, HardState),
    Entries(GroupId, Vec<Entry>),
    Floor(GroupId, LogPosition, FloorEffect),
    Forget(GroupId),
    Table(Vec<TableRow>),
    Seal,
}

/// Why records cannot be read although their checksum fits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum RecordError {
    /// One is of a kind that only a newer version can have written.
    UnknownKind(u8),
    /// They make no sense.
    Malformed,
}

/// All records of a batch.
pub(super) fn decode_records(payload: &[u8]) -> Result<Vec<Stored>, RecordError> {
    let mut cursor = Cursor::new(payload);
    let mut records = Vec::new();
    while let Some(kind) = cursor.0.first() {
        if !(HARD_STATE..=SEAL).contains(kind) {
            return Err(RecordError::UnknownKind(*kind));
        }
        records.push(cursor.record().ok_or(RecordError::Malformed)?);
    }
    Ok(records)
}

/// Reads from the front of a slice; `None` past its end.
struct Cursor<'a>(&'a [u8]);

impl<'a> Cursor<'a> {
    fn new(bytes: &'a [u8]) -> Cursor<'a> {
        Cursor(bytes)
    }

    fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let (head, tail) = self.0.split_at_checked(count)?;
        self.0 = tail;
        Some(head)
    }

    fn u8(&mut self) -> Option<u8> {
        self.take(1).map(|bytes| bytes[0])
    }

    fn u32(&mut self) -> Option<u32> {
        self.take(4)?.try_into().ok().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Option<u64> {
        self.take(8)?.try_into().ok().map(u64::from_le_bytes)
    }

    fn group(&mut self) -> Option<GroupId> {
        self.u64().map(GroupId)
    }

    /// An index that another can follow.
    fn index(&mut self) -> Option<Index> {
        self.u64().and_then(index)
    }

    fn position(&mut self) -> Option<LogPosition> {
        Some(LogPosition { term: Term(self.u64()?), index: self.index()?, checksum: self.u64()? })
    }

    fn hard_state(&mut self) -> Option<HardState> {
        let term = Term(self.u64()?);
        let voted = self.u8()?;
        let candidate = ReplicaId(self.u64()?);
        let voted_for = match voted {
            0 => None,
            1 => Some(candidate),
            _ => return None,
        };
        Some(HardState { term, voted_for, commit: self.index()? })
    }

    fn entries(&mut self) -> Option<Vec<Entry>> {
        let first = self.u64()?;
        let count = self.u32()?;
        let mut entries = Vec::new();
        for number in 0..u64::from(count) {
            let term = Term(self.u64()?);
            let checksum = self.u64()?;
            let length = self.u32()? as usize;
            // Copied, so that a live entry does not keep its whole segment in memory.
            let data = Bytes::copy_from_slice(self.take(length)?);
            entries.push(Entry { term, index: index(first.checked_add(number)?)?, checksum, data });
        }
        Some(entries)
    }

    fn table(&mut self) -> Option<Vec<TableRow>> {
        let count = self.u32()?;
        (0..count)
            .map(|_| {
                Some(TableRow {
                    group: self.group()?,
                    hard_state: self.hard_state()?,
                    floor: self.position()?,
                    last: self.index()?,
                    last_checksum: self.u64()?,
                })
            })
            .collect()
    }

    fn record(&mut self) -> Option<Stored> {
        Some(match self.u8()? {
            HARD_STATE => Stored::HardState(self.group()?, self.hard_state()?),
            ENTRIES => Stored::Entries(self.group()?, self.entries()?),
            FLOOR => {
                let (group, position) = (self.group()?, self.position()?);
                Stored::Floor(group, position, FloorEffect::from_byte(self.u8()?)?)
            }
            FORGET => Stored::Forget(self.group()?),
            TABLE => Stored::Table(self.table()?),
            SEAL => Stored::Seal,
            _ => return None,
        })
    }
}

fn index(number: u64) -> Option<Index> {
    (number < u64::MAX).then_some(Index(number))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
pub(super) mod tests {
    use rand::rngs::SmallRng;
    use rand::{Rng, SeedableRng};

    use super::*;

    /// Makes something else of the records of a batch, of the same length: mostly so that they are still read beyond that.
    fn garble(payload: &mut [u8], rng: &mut SmallRng) {
        const NUMBERS: [u64; 5] = [0, 1, 1 << 32, u64::MAX - 1, u64::MAX];
        for _ in 0..rng.random_range(1..4) {
            let at = rng.random_range(0..payload.len());
            match rng.random_range(0..4) {
                0 => payload[at] ^= 1 << rng.random_range(0..8),
                1 => payload[at] = rng.random_range(HARD_STATE..=SEAL),
                2 => {
                    let number = NUMBERS[rng.random_range(0..NUMBERS.len())].to_le_bytes();
                    payload[at..].iter_mut().zip(number).for_each(|(byte, new)| *byte = new);
                }
                _ => payload[at..].iter_mut().take(30).for_each(|byte| *byte = rng.random()),
            }
        }
    }

    /// Garbles a whole batch behind its header, and makes the checksums fit.
    pub(in super::super) fn garble_batch(batch: &mut [u8], salt: Salt, rng: &mut SmallRng) {
        let (header, payload) = batch.split_at_mut(BATCH_HEADER);
        garble(payload, rng);
        header[24..28].copy_from_slice(&salt.checksum(payload).to_le_bytes());
        let checksum = salt.checksum(&header[..28]);
        header[28..32].copy_from_slice(&checksum.to_le_bytes());
    }

    fn entry(index: u64, data: &'static [u8]) -> Entry {
        Entry { term: Term(3), index: Index(index), checksum: index * 7, data: Bytes::from_static(data) }
    }

    #[test]
    fn segment_headers_round_trip_and_notice_every_flip() {
        let header = SegmentHeader { version: 1, number: 7, size: 1 << 20, log_id: 99 };
        let page = header.encode();
        assert_eq!(page.len() as u64, FIRST_BATCH + TERMINATOR as u64);
        assert_eq!(SegmentHeader::decode(&page), Some(header));
        for bit in 0..SEGMENT_HEADER * 8 {
            let mut flipped = page.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(SegmentHeader::decode(&flipped), None, "bit {bit}");
        }
    }

    fn row(hard_state: HardState, floor: LogPosition) -> TableRow {
        TableRow { group: GroupId(1), hard_state, floor, last: Index(6), last_checksum: 42 }
    }

    #[test]
    fn batches_round_trip_at_the_announced_length() {
        let position = LogPosition { term: Term(2), index: Index(4), checksum: 5 };
        let state = HardState { term: Term(3), voted_for: Some(ReplicaId(0)), commit: Index(9) };
        let entries = vec![entry(5, b"five"), entry(6, b"")];
        let row = row(state, position);
        let mut encoder = BatchEncoder::default();
        encoder.begin();
        encoder.table([row].into_iter());
        encoder.hard_state(GroupId(1), &state);
        encoder.entries(GroupId(1), &entries);
        encoder.floor(GroupId(1), &position, FloorEffect::Reset);
        encoder.forget(GroupId(2));
        encoder.seal();
        let salt = Salt::new(1, 2);
        let bytes = encoder.finish(10, 9, salt).to_vec();
        let header = BatchHeader::decode(&bytes, salt).unwrap();
        assert_eq!((header.sequence, header.durable), (10, 9));
        assert_eq!(bytes.len(), header.extent() + TERMINATOR);
        let lengths = [
            record_length(&Record::HardState(GroupId(1), state)),
            record_length(&Record::Entries(GroupId(1), entries.clone())),
            record_length(&Record::Floor(GroupId(1), position)),
            record_length(&Record::Forget(GroupId(1))),
        ];
        assert_eq!(header.length, table_length(1) + lengths.iter().sum::<usize>() + 1);
        let records = decode_records(header.payload(&bytes, salt).unwrap()).unwrap();
        let expected = vec![
            Stored::Table(vec![row]),
            Stored::HardState(GroupId(1), state),
            Stored::Entries(GroupId(1), entries),
            Stored::Floor(GroupId(1), position, FloorEffect::Reset),
            Stored::Forget(GroupId(2)),
            Stored::Seal,
        ];
        assert_eq!(records, expected);
        assert_eq!(BatchHeader::decode(&bytes, Salt::new(1, 3)), None);
        assert_eq!(BatchHeader::decode(&bytes, Salt::new(2, 2)), None);
    }

    /// Records as they are read back, written again.
    fn encode(records: &[Stored]) -> Vec<u8> {
        let mut encoder = BatchEncoder::default();
        encoder.begin();
        for record in records {
            match record {
                Stored::HardState(group, state) => encoder.hard_state(*group, state),
                Stored::Entries(group, entries) => encoder.entries(*group, entries),
                Stored::Floor(group, position, effect) => encoder.floor(*group, position, *effect),
                Stored::Forget(group) => encoder.forget(*group),
                Stored::Table(rows) => encoder.table(rows.iter().copied()),
                Stored::Seal => encoder.seal(),
            }
        }
        encoder.buffer[BATCH_HEADER..].to_vec()
    }

    /// Bits that flip never get here, as the checksum does not fit then: so this is all that the decoder sees of them.
    #[test]
    fn noise_is_refused_or_understood_and_never_a_panic() {
        let position = LogPosition { term: Term(2), index: Index(4), checksum: 5 };
        let state = HardState { term: Term(3), voted_for: Some(ReplicaId(8)), commit: Index(9) };
        let row = row(state, position);
        let sound = encode(&[
            Stored::Table(vec![row, row]),
            Stored::HardState(GroupId(1), state),
            Stored::Entries(GroupId(1), vec![entry(5, b"five"), entry(6, b"")]),
            Stored::Floor(GroupId(1), position, FloorEffect::Keep),
            Stored::Forget(GroupId(2)),
            Stored::Seal,
        ]);
        let mut rng = SmallRng::seed_from_u64(1);
        let (mut understood, mut unknown, mut malformed) = (0, 0, 0);
        for _ in 0..200_000 {
            let begin = if rng.random_bool(0.5) { 0 } else { rng.random_range(0..sound.len()) };
            let mut payload = sound[begin..].to_vec();
            payload[0] = if rng.random_bool(0.5) { rng.random_range(HARD_STATE..=SEAL) } else { payload[0] };
            garble(&mut payload, &mut rng);
            match decode_records(&payload) {
                Ok(records) => {
                    understood += 1;
                    assert_eq!(decode_records(&encode(&records)), Ok(records));
                }
                Err(RecordError::UnknownKind(_)) => unknown += 1,
                Err(RecordError::Malformed) => malformed += 1,
            }
        }
        let counts = [understood, unknown, malformed];
        assert!(counts.iter().all(|count| *count > 5_000), "{counts:?}");
    }

    #[test]
    fn an_index_that_none_can_follow_is_refused() {
        let state = |commit| HardState { commit: Index(commit), ..HardState::default() };
        for (number, fits) in [(u64::MAX - 1, true), (u64::MAX, false)] {
            let position = LogPosition { index: Index(number), ..LogPosition::default() };
            let (group, floor) = (GroupId(1), position);
            let row = |hard_state, floor, last| TableRow { group, hard_state, floor, last, last_checksum: 0 };
            for record in [
                Stored::HardState(group, state(number)),
                Stored::Floor(group, position, FloorEffect::Reset),
                Stored::Entries(group, vec![Entry { index: Index(number), ..entry(1, b"a") }]),
                Stored::Table(vec![row(state(0), floor, Index(1))]),
                Stored::Table(vec![row(state(0), LogPosition::default(), Index(number))]),
            ] {
                assert_eq!(decode_records(&encode(&[record])).is_ok(), fits);
            }
        }
    }

    #[test]
    fn no_prefix_of_a_batch_panics_the_decoder() {
        let mut encoder = BatchEncoder::default();
        encoder.begin();
        encoder.entries(GroupId(1), &[entry(1, b"abc")]);
        let payload = encoder.buffer[BATCH_HEADER..].to_vec();
        for length in 1..payload.len() {
            assert_eq!(decode_records(&payload[..length]), Err(RecordError::Malformed));
        }
        assert_eq!(decode_records(&[99]), Err(RecordError::UnknownKind(99)));
        assert_eq!(decode_records(&[]), Ok(Vec::new()));
    }
}
