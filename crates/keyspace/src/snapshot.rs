//! Snapshots: the whole flushed state of a keyspace, carried to another replica in chunks of bounded size.
//!
//! An [`Exporter`] reads a fixed view of the engine, so what it carries is the state at exactly the index of that view's
//! last flush. An [`Importer`] writes under a generation of its own beside the state that is in use; the last batch
//! moves the group's pointer to it. So a crash before it leaves the old state, and the leftovers of an import that was
//! never finished are swept when the keyspace is opened again.
//!
//! Chunks are numbered and carry a checksum; a chunk that is lost, doubled or changed is noticed, and so is a missing end.

use std::ops::ControlFlow;
use std::sync::Arc;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use hadron_storage::engine::{Batch, Change, Engine, EngineError, Read, Space};

use crate::error::OpenError;
use crate::keyspace::highest_generation;
use crate::record::{self, PREFIX_LEN, StateRecord};
use crate::state::Applied;
use crate::sweep::Dropped;

const FORMAT: u8 = 1;
/// Records of an import that is given up that are removed in one batch.
const ABANDON_AT_ONCE: usize = 1_000;
/// Format, checksum, number.
const CHUNK_HEADER_LEN: usize = 9;

const ITEM_STATE: u8 = 1;
const ITEM_PUT: u8 = 2;
const ITEM_END: u8 = 3;

/// The spaces that a snapshot carries.
const SPACES: [Space; 3] = [Space::Tables, Space::Values, Space::Versions];

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
    /// A chunk is not what was sent, or not the next one. Start again.
    #[error("bad snapshot chunk: {0}")]
    BadChunk(&'static str),
    /// Written by a newer version.
    #[error("the snapshot has format {0}, which this version does not read")]
    Newer(u8),
}

/// Reads a snapshot out of an engine.
pub struct Exporter {
    view: Box<dyn Read>,
    group: u64,
    state: StateRecord,
    /// Which of [`SPACES`] comes next, and from which key.
    space: usize,
    from: Bytes,
    chunks: u32,
    items: u64,
    ended: bool,
}

impl Exporter {
    /// Begins a snapshot of what `view` holds of `group`.
    ///
    /// # Errors
    /// [`SnapshotError::Nothing`] if the group was never flushed.
    pub fn new(view: Box<dyn Read>, group: u64) -> Result<Exporter, SnapshotError> {
        let bytes = view.get(Space::State, &record::state_key(group))?.ok_or(SnapshotError::Nothing)?;
        let state = StateRecord::decode(group, &bytes)?;
        let from = record::prefix(group, state.generation).freeze();
        Ok(Exporter { view, group, state, space: 0, from, chunks: 0, items: 0, ended: false })
    }

    /// The last entry in the snapshot.
    pub fn applied(&self) -> Applied {
        self.state.applied
    }

    /// The next chunk, of about `max_bytes` (more only if a single record is larger); `None` after the last.
    pub fn next_chunk(&mut self, max_bytes: usize) -> Result<Option<Bytes>, SnapshotError> {
        if self.ended {
            return Ok(None);
        }
        let mut chunk = BytesMut::zeroed(CHUNK_HEADER_LEN);
        if self.chunks == 0 {
            chunk.put_u8(ITEM_STATE);
            chunk.put_slice(&self.state.encode());
        }
        // However small the chunks are wished, each holds a record.
        let max_bytes = max_bytes.max(chunk.len() + 1);
        while chunk.len() < max_bytes && self.space < SPACES.len() {
            self.add_items(&mut chunk, max_bytes)?;
        }
        if self.space == SPACES.len() {
            chunk.put_u8(ITEM_END);
            chunk.put_u64(self.items);
            self.ended = true;
        }
        chunk[0] = FORMAT;
        chunk[5..9].copy_from_slice(&self.chunks.to_be_bytes());
        let checksum = crc32c::crc32c(&chunk[5..]);
        chunk[1..5].copy_from_slice(&checksum.to_be_bytes());
        self.chunks += 1;
        Ok(Some(chunk.freeze()))
    }

    /// Adds records of one space until the chunk is full or the space ends.
    fn add_items(&mut self, chunk: &mut BytesMut, max_bytes: usize) -> Result<(), SnapshotError> {
        let number = self.space;
        let (start, to) =
            record::generation_bounds(self.group, self.state.generation, self.state.generation + 1);
        let mut next = None;
        let items = &mut self.items;
        self.view.scan(SPACES[number], &self.from, &to, &mut |key, value| {
            if chunk.len() >= max_bytes {
                next = Some(Bytes::copy_from_slice(key));
                return ControlFlow::Break(());
            }
            chunk.put_u8(ITEM_PUT);
            chunk.put_u8(number as u8);
            chunk.put_u32((key.len() - PREFIX_LEN) as u32);
            chunk.put_slice(&key[PREFIX_LEN..]);
            chunk.put_u32(value.len() as u32);
            chunk.put_slice(value);
            *items += 1;
            ControlFlow::Continue(())
        })?;
        match next {
            Some(next) => self.from = next,
            None => {
                self.space += 1;
                self.from = start;
            }
        }
        Ok(())
    }
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
        let current = match engine.get(Space::State, &record::state_key(group))? {
            Some(bytes) => StateRecord::decode(group, &bytes)?.generation,
            None => 0,
        };
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

    /// What the snapshot contains, once its first chunk is in.
    pub fn applied(&self) -> Option<Applied> {
        self.state.map(|state| state.applied)
    }

    /// True once the last chunk is in.
    pub fn is_complete(&self) -> bool {
        self.ended
    }

    /// Makes the snapshot the state of the group, durably; then [`crate::Keyspace::reload`].
    ///
    /// # Errors
    /// [`SnapshotError::BadChunk`] if the snapshot is not complete; the state in use is untouched.
    pub fn finish(self) -> Result<Applied, SnapshotError> {
        let Some(state) = self.state.filter(|_| self.ended) else {
            return Err(SnapshotError::BadChunk("the end is missing"));
        };
        let switched = StateRecord { generation: self.generation, ..state };
        self.engine.write(vec![Change::Put(
            Space::State,
            record::state_key(self.group),
            switched.encode(),
        )])?;
        self.engine.persist()?;
        Ok(state.applied)
    }

    /// Gives the import up and removes what it wrote. An import that is dropped without this leaves that to the next
    /// opening of the keyspace.
    pub fn abandon(self) -> Result<(), SnapshotError> {
        let own = (self.generation, self.generation + 1);
        for mut stretch in Dropped::stretches(self.engine.as_ref(), self.group, own)? {
            loop {
                let batch = stretch.step(self.engine.as_ref(), ABANDON_AT_ONCE)?;
                if batch.is_empty() {
                    break;
                }
                self.engine.write(batch)?;
            }
        }
        Ok(())
    }

    fn check_chunk(&mut self, mut chunk: Bytes) -> Result<Bytes, SnapshotError> {
        if chunk.len() < CHUNK_HEADER_LEN {
            return Err(SnapshotError::BadChunk("too short"));
        }
        let format = chunk.get_u8();
        if format != FORMAT {
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
