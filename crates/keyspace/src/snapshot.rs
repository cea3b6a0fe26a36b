//! Snapshots: the whole flushed state of a keyspace, carried to another replica in chunks of bounded size.
//!
//! What an [`Exporter`] has carried is the state at exactly the index of a flush. While a large state is carried much is
//! written, perhaps more than a log may keep; so *rounds* follow, each with what came since the one before, until
//! one is small ([design](../../../docs/design/2026-11-28-snapshot-rounds.md)). An open view of the engine costs memory
//! for all that is written ([`Engine::snapshot`]), and a receiver may be slow: so no view outlives a chunk. What
//! changes is copied when a round begins, and the rest, which pins keep, is read with a fresh view for each chunk.
//! An [`Importer`] writes under a generation of its own beside the state that is in use; the last batch
//! moves the group's pointer to it. So a crash before it leaves the old state, and the leftovers of an import that was
//! never finished are swept when the keyspace is opened again.
//!
//! Chunks are numbered and carry a checksum; a chunk that is lost, doubled or changed is noticed, and so is a missing end.

use std::collections::VecDeque;
use std::ops::ControlFlow;
use std::sync::Arc;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use hadron_storage::engine::{Batch, Change, Engine, EngineError, Read, Space};

use crate::error::OpenError;
use crate::keyspace::{Keyspace, Loaded, highest_generation};
use crate::mvcc::Pin;
use crate::record::{self, PREFIX_LEN, StateRecord};
use crate::state::Applied;
use crate::sweep::Dropped;

/// The format of a chunk of the first round.
const FORMAT: u8 = 1;
/// The format of a chunk of a later one.
const FORMAT_ROUNDS: u8 = 2;
/// A round is small that is less than this part of what the log keeps.
const SMALL_PART: usize = 16;
/// However much is written meanwhile, there are no more rounds than this.
const ROUNDS_MAX: u32 = 100;
/// Records of an import that are removed in one batch.
const REMOVED_AT_ONCE: usize = 1_000;
/// Format, checksum, number.
const CHUNK_HEADER_LEN: usize = 9;

const ITEM_STATE: u8 = 1;
const ITEM_PUT: u8 = 2;
const ITEM_END: u8 = 3;

/// The spaces that a snapshot carries, under their numbers in it.
const SPACES: [Space; 3] = [Space::Tables, Space::Values, Space::Versions];
const TABLES: u8 = 0;
const VALUES: u8 = 1;
const VERSIONS: u8 = 2;

/// Why a snapshot cannot be made or taken in.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    /// The engine failed.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// The sender's stored state is damaged, or newer than this version.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// The engine holds no state of this group yet.
    #[error("nothing was flushed yet")]
    Nothing,
    /// The sender's own state was replaced by a snapshot, or is gone. Start again.
    #[error("the state was replaced meanwhile")]
    Replaced,
    /// A chunk is not what was sent, or not the next one. Start again.
    #[error("bad snapshot chunk: {0}")]
    BadChunk(&'static str),
    /// Written by a newer version.
    #[error("the snapshot has format {0}, which this version does not read")]
    Newer(u8),
}

impl SnapshotError {
    /// Whether something that was written is not there as it was written.
    pub fn is_damage(&self) -> bool {
        match self {
            SnapshotError::Engine(error) => matches!(error, EngineError::Damaged(_)),
            SnapshotError::Open(error) => error.is_damage(),
            _ => false,
        }
    }
}

/// Takes views of an engine's present.
type Views = Box<dyn Fn() -> Box<dyn Read> + Send>;

/// Reads a snapshot out of an engine.
pub struct Exporter {
    keyspace: Arc<Keyspace>,
    views: Views,
    /// What a log keeps for whoever takes the snapshot in.
    log_bytes: usize,
    round: Round,
    rounds: u32,
    chunks: u32,
    items: u64,
    ended: bool,
}

/// What the engine has beyond the round before.
struct Round {
    state: StateRecord,
    pins: RoundPins,
    /// The records of [`Space::Tables`] that are still to come, as they were at `state`.
    tables: VecDeque<(Bytes, Bytes)>,
    /// Which version comes next, and where those of later revisions than that of `state` begin.
    from: Bytes,
    to: Bytes,
    begun: bool,
    is_carried: bool,
    /// Of versions and values. Tables are carried whole every time.
    bytes: usize,
    /// What the round before carried.
    bytes_before: usize,
}

impl std::fmt::Debug for Exporter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Exporter").field("applied", &self.applied()).finish_non_exhaustive()
    }
}

impl Exporter {
    /// Begins a snapshot of what the engine holds of `keyspace`; rounds follow until what is written during one is little beside `log_bytes`, which
    /// is what the log keeps for whoever takes the snapshot in.
    ///
    /// # Errors
    /// [`SnapshotError::Nothing`] if it was never flushed.
    pub fn new(keyspace: Arc<Keyspace>, log_bytes: usize) -> Result<Exporter, SnapshotError> {
        let engine = Arc::clone(&keyspace.engine);
        Exporter::over(keyspace, log_bytes, Box::new(move || engine.snapshot()))
    }

    /// [`Exporter::new`] with somebody else's views of the engine.
    pub fn over(keyspace: Arc<Keyspace>, log_bytes: usize, views: Views) -> Result<Exporter, SnapshotError> {
        let round = Round::begin(&keyspace, &views, None)?;
        Ok(Exporter { keyspace, views, log_bytes, round, rounds: 1, chunks: 0, items: 0, ended: false })
    }

    /// The last entry in the snapshot, as far as it has come: that of the present round.
    pub fn applied(&self) -> Applied {
        self.round.state.applied
    }

    /// The present round, from 1.
    pub fn rounds(&self) -> u32 {
        self.rounds
    }

    /// The next chunk, of about `max_bytes` (more only if a single record is larger); `None` after the last.
    ///
    /// # Errors
    /// The engine failed, or [`SnapshotError::Replaced`]: the snapshot will not come to its end.
    pub fn next_chunk(&mut self, max_bytes: usize) -> Result<Option<Bytes>, SnapshotError> {
        if self.ended {
            return Ok(None);
        }
        if self.round.is_carried {
            self.round = Round::begin(&self.keyspace, &self.views, Some(&self.round))?;
            self.rounds += 1;
        }
        let mut chunk = BytesMut::zeroed(CHUNK_HEADER_LEN);
        self.items += self.round.fill(self.keyspace.group, &self.views, &mut chunk, max_bytes)?;
        if !self.may_be_last() {
            self.round.pins.history = None;
        } else if self.round.is_carried && !self.needs_another_round() {
            chunk.put_u8(ITEM_END);
            chunk.put_u64(self.items);
            self.ended = true;
        }
        chunk[0] = if self.rounds == 1 { FORMAT } else { FORMAT_ROUNDS };
        chunk[5..9].copy_from_slice(&self.chunks.to_be_bytes());
        let checksum = crc32c::crc32c(&chunk[5..]);
        chunk[1..5].copy_from_slice(&checksum.to_be_bytes());
        self.chunks += 1;
        Ok(Some(chunk.freeze()))
    }

    /// Whether the present round may turn out to need no other, as far as it has come.
    fn may_be_last(&self) -> bool {
        let is_first = self.round.bytes_before == usize::MAX;
        let is_much = if is_first { !self.is_small() } else { self.round.bytes > self.log_bytes };
        !is_much || self.rounds == ROUNDS_MAX
    }

    /// Until one is small; one that does not become smaller is enough if the log keeps as much.
    fn needs_another_round(&self) -> bool {
        let Round { bytes, bytes_before, .. } = self.round;
        let shrinks = bytes < bytes_before || bytes > self.log_bytes;
        !self.is_small() && shrinks && self.rounds < ROUNDS_MAX
    }

    fn is_small(&self) -> bool {
        self.round.bytes < self.log_bytes / SMALL_PART
    }
}

impl Round {
    /// The round after `last`, whose pins it takes over. Its own come before its view: no tombstone that is younger than what a round
    /// carries is swept before the next one has carried it, or else a key that the first round carried would live for ever.
    fn begin(keyspace: &Keyspace, views: &Views, last: Option<&Round>) -> Result<Round, SnapshotError> {
        let group = keyspace.group;
        let pins = keyspace.pin_round(last.map(|last| &last.pins));
        let view = views();
        let missing = if last.is_some() { SnapshotError::Replaced } else { SnapshotError::Nothing };
        let state = StateRecord::stored(view.as_ref(), group)?.ok_or(missing)?;
        let generation = state.generation;
        let is_other = last.is_some_and(|last| last.state.generation != generation);
        if is_other || generation != pins.generation {
            return Err(SnapshotError::Replaced);
        }
        let (carried, bytes_before) = last.map_or((0, usize::MAX), |last| (last.state.revision, last.bytes));
        Ok(Round {
            state,
            pins,
            tables: copy_tables(view.as_ref(), group, generation)?,
            from: record::version_key(group, generation, (carried + 1, 0)),
            to: record::version_key(group, generation, (state.revision + 1, 0)),
            begun: false,
            is_carried: false,
            bytes: 0,
            bytes_before,
        })
    }

    /// Adds records until the chunk is full or the round ends; returns how many.
    fn fill(
        &mut self,
        group: u64,
        views: &Views,
        chunk: &mut BytesMut,
        max_bytes: usize,
    ) -> Result<u64, SnapshotError> {
        if !self.begun {
            chunk.put_u8(ITEM_STATE);
            chunk.put_slice(&self.state.encode());
            self.begun = true;
        }
        // However small the chunks are wished, each holds a record.
        let max_bytes = max_bytes.max(chunk.len() + 1);
        let mut items = 0;
        while chunk.len() < max_bytes
            && let Some((key, value)) = self.tables.pop_front()
        {
            put_item(chunk, TABLES, &key, &value);
            items += 1;
        }
        if chunk.len() < max_bytes {
            items += self.add_versions(group, views().as_ref(), chunk, max_bytes)?;
        }
        Ok(items)
    }

    /// Adds versions and then their values until the chunk is full or the round ends. Both of one view: what is swept in the middle of a round
    /// is carried with its value or not at all.
    fn add_versions(
        &mut self,
        group: u64,
        view: &dyn Read,
        chunk: &mut BytesMut,
        max_bytes: usize,
    ) -> Result<u64, SnapshotError> {
        if StateRecord::of_generation(view, group, self.state.generation)?.is_none() {
            return Err(SnapshotError::Replaced);
        }
        let (mut next, mut items, len_before) = (None, 0, chunk.len());
        let (mut with_value, mut values_len) = (Vec::new(), 0);
        view.scan(Space::Versions, &self.from, &self.to, &mut |key, value| {
            if chunk.len() + values_len >= max_bytes {
                next = Some(Bytes::copy_from_slice(key));
                return ControlFlow::Break(());
            }
            put_item(chunk, VERSIONS, key, value);
            items += 1;
            let value_len = record::decode_version(key, value).map_or(0, |(version, _)| version.value_len);
            if value_len > 0 {
                with_value.push(Bytes::copy_from_slice(key));
                values_len += item_len(key.len(), value_len as usize);
            }
            ControlFlow::Continue(())
        })?;
        let mut with_value = with_value.iter().peekable();
        if let Some(first) = with_value.peek() {
            view.scan(Space::Values, first, next.as_ref().unwrap_or(&self.to), &mut |key, value| {
                while with_value.next_if(|expected| expected.as_ref() < key).is_some() {}
                if with_value.next_if(|expected| expected.as_ref() == key).is_some() {
                    put_item(chunk, VALUES, key, value);
                    items += 1;
                }
                if with_value.peek().is_some() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
            })?;
        }
        self.bytes += chunk.len() - len_before;
        match next {
            Some(next) => self.from = next,
            None => self.is_carried = true,
        }
        Ok(items)
    }
}

/// What must not be swept while a round of a snapshot is carried.
pub(crate) struct RoundPins {
    generation: u32,
    /// No tombstone that this round may carry. Whose key was carried before would live for ever.
    _tombstones: Arc<Pin>,
    /// No tombstone that the next round may carry.
    next_tombstones: Arc<Pin>,
    /// Nothing that a reader of the round's state sees. Held as long as the round may be the last one: what is swept in the middle of any
    /// other is superseded by what the next one carries.
    history: Option<Pin>,
}

impl Keyspace {
    /// Pins what the round after the one with these pins carries. Whatever is swept of it all the same was unreachable before.
    fn pin_round(&self, last: Option<&RoundPins>) -> RoundPins {
        let state = self.state.read();
        let generation = state.generation;
        let tombstones_from = |revision| Arc::new(self.tombstone_pins.pin(generation, revision));
        RoundPins {
            generation,
            _tombstones: last.map_or_else(|| tombstones_from(0), |last| Arc::clone(&last.next_tombstones)),
            next_tombstones: tombstones_from(state.flushed.revision),
            history: Some(self.pins.pin(generation, state.flushed.compact_revision.max(0))),
        }
    }
}

/// All records of tables: they are small, and change.
fn copy_tables(
    view: &dyn Read,
    group: u64,
    generation: u32,
) -> Result<VecDeque<(Bytes, Bytes)>, EngineError> {
    let (from, to) = record::generation_bounds(group, generation, generation + 1);
    let mut tables = VecDeque::new();
    view.scan(Space::Tables, &from, &to, &mut |key, value| {
        tables.push_back((Bytes::copy_from_slice(key), Bytes::copy_from_slice(value)));
        ControlFlow::Continue(())
    })?;
    Ok(tables)
}

fn put_item(chunk: &mut BytesMut, space: u8, key: &[u8], value: &[u8]) {
    let suffix = &key[PREFIX_LEN..];
    chunk.put_u8(ITEM_PUT);
    chunk.put_u8(space);
    chunk.put_u32(suffix.len() as u32);
    chunk.put_slice(suffix);
    chunk.put_u32(value.len() as u32);
    chunk.put_slice(value);
}

/// The bytes of an item.
fn item_len(key_len: usize, value_len: usize) -> usize {
    2 + 4 + key_len - PREFIX_LEN + 4 + value_len
}

/// Writes a snapshot into an engine, beside the state that is in use.
pub struct Importer {
    engine: Arc<dyn Engine>,
    group: u64,
    generation: u32,
    state: Option<StateRecord>,
    chunks: u32,
    items: u64,
    ended: bool,
}

impl Importer {
    /// Begins an import under a generation that nothing was ever written to. One at a time for each group.
    pub fn new(engine: Arc<dyn Engine>, group: u64) -> Result<Importer, SnapshotError> {
        let current = StateRecord::stored(engine.as_ref(), group)?.map_or(0, |state| state.generation);
        let highest = highest_generation(engine.as_ref(), group)?.unwrap_or(0);
        // The number after the highest may be in use by a keyspace that was opened and not flushed yet.
        let generation = current.max(highest) + 2;
        let number = Bytes::copy_from_slice(&generation.to_be_bytes());
        engine.write(vec![Change::Put(Space::State, record::generations_key(group), number)])?;
        Ok(Importer { engine, group, generation, state: None, chunks: 0, items: 0, ended: false })
    }

    /// Takes the next chunk in.
    pub fn chunk(&mut self, chunk: Bytes) -> Result<(), SnapshotError> {
        let mut items = self.check_chunk(chunk)?;
        let mut batch = Batch::new();
        while !items.is_empty() {
            self.item(&mut items, &mut batch)?;
        }
        self.engine.write(batch)?;
        Ok(())
    }

    /// Where the records go, for [`Keyspace::may_switch_to`].
    pub fn generation(&self) -> u32 {
        self.generation
    }

    /// What the snapshot contains, once its first chunk is in.
    pub fn applied(&self) -> Option<Applied> {
        self.state.map(|state| state.applied)
    }

    /// How many records came, those of tables with each round again.
    pub fn records(&self) -> u64 {
        self.items
    }

    /// True once the last chunk is in.
    pub fn is_complete(&self) -> bool {
        self.ended
    }

    /// Reads back what was written, for [`Keyspace::switch`]. For a large state that takes seconds.
    ///
    /// # Errors
    /// The snapshot is not complete, or what it contains has not the digest that came with it.
    pub fn load(&self) -> Result<Loaded, SnapshotError> {
        Ok(Loaded::new(self.engine.snapshot().as_ref(), self.group, &self.complete_state()?)?)
    }

    /// What the snapshot contains, under its generation here.
    fn complete_state(&self) -> Result<StateRecord, SnapshotError> {
        let state = self.state.filter(|_| self.ended).ok_or(SnapshotError::BadChunk("the end is missing"))?;
        Ok(StateRecord { generation: self.generation, ..state })
    }

    /// Makes the snapshot the state of the group, durably; then [`Keyspace::switch`].
    ///
    /// # Errors
    /// [`SnapshotError::BadChunk`] if the snapshot is not complete; the state in use is untouched.
    pub fn finish(self) -> Result<Applied, SnapshotError> {
        let state = self.complete_state()?;
        self.engine.write(vec![Change::Put(Space::State, record::state_key(self.group), state.encode())])?;
        self.engine.persist()?;
        Ok(state.applied)
    }

    /// Gives the import up and removes what it wrote. An import that is dropped without this leaves that to the next
    /// opening of the keyspace.
    pub fn abandon(self) -> Result<(), SnapshotError> {
        let own = (self.generation, self.generation + 1);
        for stretch in Dropped::stretches(self.engine.as_ref(), self.group, own)? {
            stretch.delete(self.engine.as_ref(), REMOVED_AT_ONCE)?;
        }
        Ok(())
    }

    /// Every round carries the tables whole: what the former one had of them may be gone.
    fn begin_round(&self, batch: &Batch) -> Result<(), SnapshotError> {
        if !batch.is_empty() {
            return Err(SnapshotError::BadChunk("a round begins in the middle"));
        }
        let (from, to) = record::generation_bounds(self.group, self.generation, self.generation + 1);
        Ok(Dropped::new(Space::Tables, from, to).delete(self.engine.as_ref(), REMOVED_AT_ONCE)?)
    }

    fn check_chunk(&mut self, mut chunk: Bytes) -> Result<Bytes, SnapshotError> {
        if chunk.len() < CHUNK_HEADER_LEN {
            return Err(SnapshotError::BadChunk("too short"));
        }
        let format = chunk.get_u8();
        // Of one kind or the other, and nothing that a flipped bit makes of either.
        if !(FORMAT..=FORMAT_ROUNDS).contains(&format) {
            return Err(SnapshotError::Newer(format));
        }
        if chunk.get_u32() != crc32c::crc32c(&chunk) {
            return Err(SnapshotError::BadChunk("wrong checksum"));
        }
        if chunk.get_u32() != self.chunks || self.ended {
            return Err(SnapshotError::BadChunk("out of order"));
        }
        self.chunks += 1;
        Ok(chunk)
    }

    fn item(&mut self, items: &mut Bytes, batch: &mut Batch) -> Result<(), SnapshotError> {
        match take(items, 1)?[0] {
            ITEM_STATE => {
                if self.state.is_some() {
                    self.begin_round(batch)?;
                }
                self.state = Some(StateRecord::decode(self.group, &take(items, record::STATE_LEN)?)?)
            }
            ITEM_PUT => {
                let number = usize::from(take(items, 1)?[0]);
                let space = *SPACES.get(number).ok_or(SnapshotError::BadChunk("unknown space"))?;
                let (suffix, value) = (take_sized(items)?, take_sized(items)?);
                let mut key = record::prefix(self.group, self.generation);
                key.put_slice(&suffix);
                batch.push(Change::Put(space, key.freeze(), value));
                self.items += 1;
            }
            ITEM_END => {
                if take(items, 8)?.get_u64() != self.items || !items.is_empty() {
                    return Err(SnapshotError::BadChunk("records are missing"));
                }
                self.ended = true;
            }
            _ => return Err(SnapshotError::BadChunk("unknown item")),
        }
        Ok(())
    }
}

fn take(items: &mut Bytes, len: usize) -> Result<Bytes, SnapshotError> {
    if items.len() < len { Err(SnapshotError::BadChunk("cut short")) } else { Ok(items.split_to(len)) }
}

fn take_sized(items: &mut Bytes) -> Result<Bytes, SnapshotError> {
    let len = take(items, 4)?.get_u32() as usize;
    take(items, len)
}
