//! The whole history as etcd has it in its backend, in order: what hashes are made of, and backups.

use std::ops::ControlFlow;

use bytes::Bytes;
use hadron_storage::engine::Space;
use parking_lot::RwLockReadGuard;

use crate::error::Error;
use crate::keyspace::Keyspace;
use crate::mvcc::{Pin, Record, Version};
use crate::read::replaced;
use crate::record::{self, StateRecord};
use crate::state::State;
use crate::stored::{stored_key, stored_value};

/// Versions read at a time.
const PIECE: usize = 1000;

/// The versions up to a revision, fixed while the state was locked. Holds sweeps off what it may read, so that it needs no view of the
/// engine for longer than it reads a piece ([`hadron_storage::engine::Engine::snapshot`]).
pub(crate) struct Kept {
    revision: i64,
    generation: u32,
    /// Something was in the engine then.
    is_flushed: bool,
    /// What was not in the engine then.
    unflushed: Vec<Record>,
    _pin: Pin,
}

impl Kept {
    /// What there is now, up to `revision`, which is not compacted.
    pub(crate) fn new(keyspace: &Keyspace, state: &State, revision: i64) -> Kept {
        let unflushed = state.unflushed.records.iter().take_while(|record| record.version.main <= revision);
        Kept {
            revision,
            generation: state.generation,
            is_flushed: state.flushed.index > 0,
            unflushed: unflushed.cloned().collect(),
            _pin: keyspace.pins.pin(state.generation, state.compact_revision.max(0)),
        }
    }

    /// The state that it is of, to be looked at for a moment.
    pub(crate) fn lock<'a>(&self, keyspace: &'a Keyspace) -> Result<RwLockReadGuard<'a, State>, Error> {
        let state = keyspace.state.read();
        if state.generation == self.generation { Ok(state) } else { Err(replaced()) }
    }

    /// Shows the stored key and value of every version that counts, in order.
    pub(crate) fn visit<E: From<Error>>(
        &self,
        keyspace: &Keyspace,
        counts: impl Fn(&State, &Record) -> bool,
        mut show: impl FnMut(&[u8], &[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        let first = record::version_key(keyspace.group, self.generation, (0, 0));
        let mut from = self.is_flushed.then_some(first);
        while let Some(begin) = from {
            let (piece, next) = self.piece(keyspace, &begin)?;
            self.show(keyspace, &piece, &counts, &mut show)?;
            from = next;
        }
        self.unflushed.chunks(PIECE).try_for_each(|piece| self.show(keyspace, piece, &counts, &mut show))
    }

    /// Some records of the engine, without values, and where to go on.
    fn piece(&self, keyspace: &Keyspace, from: &Bytes) -> Result<(Vec<Record>, Option<Bytes>), Error> {
        let view = keyspace.engine.snapshot();
        let stored = StateRecord::of_generation(view.as_ref(), keyspace.group, self.generation);
        if stored.map_err(|error| Error::Storage(error.to_string()))?.is_none() {
            return Err(replaced());
        }
        let end = (self.revision + 1, 0);
        let end = self.unflushed.first().map_or(end, |first| first.version.place().min(end));
        let to = record::version_key(keyspace.group, self.generation, end);
        let mut records = Vec::new();
        let mut is_damaged = false;
        view.scan(Space::Versions, from, &to, &mut |key, value| {
            match record::decode_version(key, value) {
                Ok((version, key)) => {
                    records.push(Record { key: Bytes::copy_from_slice(key), version, value: Bytes::new() });
                }
                Err(_) => is_damaged = true,
            }
            if records.len() < PIECE { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        })?;
        if is_damaged {
            return Err(Error::Storage("a version has no known shape".into()));
        }
        let next = (records.len() == PIECE).then(|| records.last()).flatten().map(|last| {
            let (main, sub) = last.version.place();
            record::version_key(keyspace.group, self.generation, (main, sub + 1))
        });
        Ok((records, next))
    }

    fn show<E: From<Error>>(
        &self,
        keyspace: &Keyspace,
        piece: &[Record],
        counts: &impl Fn(&State, &Record) -> bool,
        show: &mut impl FnMut(&[u8], &[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        let state = self.lock(keyspace)?;
        let counted: Vec<&Record> = piece.iter().filter(|record| counts(&state, record)).collect();
        drop(state);
        // Only now: the value of a version that does not count may be swept already.
        for record in counted {
            let is_in_memory = record.value.len() == record.version.value_len as usize;
            let value = match is_in_memory {
                true => record.value.clone(),
                false => keyspace.values(self.generation).get_once(&record.version)?,
            };
            show(&stored_key(&record.version), &stored_value(record, value))?;
        }
        Ok(())
    }
}

/// Whether a version is what a compaction at `revision` keeps of its key: the newest one there.
pub(crate) fn is_newest_at(state: &State, record: &Record, revision: i64) -> bool {
    state.index.at_or_tombstone(&record.key, revision).map(Version::place) == Some(record.version.place())
}
