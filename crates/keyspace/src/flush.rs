//! Flush: what was applied goes to the engine in the background, in batches that end where an entry ends.
//!
//! [`Keyspace::take_flush`] says which entries, another thread makes a batch of them and writes it, [`Keyspace::flush_done`] lets go of them.
//! In between the records are in both places, and readers take them from memory.

use std::sync::Arc;

use hadron_storage::engine::{Batch, Change, Space};
use parking_lot::RwLockReadGuard;

use crate::keyspace::{Keyspace, TableState};
use crate::mvcc::{EntryMark, Record};
use crate::record::{self, StateRecord};
use crate::state::{Flushed, State};

/// Records that become part of a batch while the state is locked.
const PIECE_RECORDS: usize = 1_000;

/// Entries on their way to the engine.
#[derive(Debug)]
pub struct Flush {
    keyspace: Arc<Keyspace>,
    generation: u32,
    entries: usize,
    records: usize,
    tables: usize,
    bytes: usize,
    /// The state after the last of them.
    end: EntryMark,
}

impl Flush {
    /// The last entry in it.
    pub fn index(&self) -> u64 {
        self.end.applied.index
    }

    /// Its size, about.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// What is to be written before [`Keyspace::flush_done`]: empty if the state was replaced since. The state is locked for a piece at a time,
    /// so that nobody waits for long who applies; not for a thread on which others wait.
    pub fn batch(&self) -> Batch {
        let (group, generation) = (self.keyspace.group, self.generation);
        let mut batch = Batch::with_capacity(2 * self.records + self.tables + 1);
        for from in (0..self.records).step_by(PIECE_RECORDS) {
            let to = self.records.min(from + PIECE_RECORDS);
            let Some(state) = self.state() else { return Batch::new() };
            for Record { key, version, value } in state.unflushed.records.range(from..to) {
                let place = record::version_key(group, generation, version.place());
                if !value.is_empty() {
                    batch.push(Change::Put(Space::Values, place.clone(), value.clone()));
                }
                batch.push(Change::Put(Space::Versions, place, record::encode_version(key, version)));
            }
        }
        let Some(state) = self.state() else { return Batch::new() };
        let changes = state.unflushed.tables.range(..self.tables);
        let newest: TableState =
            changes.map(|change| record::encode_table(group, generation, change)).collect();
        drop(state);
        batch.extend(newest.into_iter().map(|(key, value)| match value {
            Some(value) => Change::Put(Space::Tables, key, value),
            None => Change::Delete(Space::Tables, key),
        }));
        let end = state_record(generation, &self.end);
        batch.push(Change::Put(Space::State, record::state_key(group), end.encode()));
        batch
    }

    /// The state, in which the oldest of what is unflushed is what this flush holds, until it is done.
    fn state(&self) -> Option<RwLockReadGuard<'_, State>> {
        Some(self.keyspace.state.read()).filter(|state| state.generation == self.generation)
    }
}

impl Keyspace {
    /// The oldest entries that are not in the engine: up to `durable_index` (what the log holds durably; the
    /// engine must never be ahead of it) and about `max_bytes`, at least one entry. `None` if there is nothing to do,
    /// or a flush is under way.
    pub fn take_flush(self: &Arc<Keyspace>, durable_index: u64, max_bytes: usize) -> Option<Flush> {
        let mut state = self.state.write();
        if state.flush_in_flight {
            return None;
        }
        let flush = measure(self, &state, durable_index, max_bytes)?;
        state.flush_in_flight = true;
        Some(flush)
    }

    /// The batch is visible in the engine: its values leave the unflushed set, and copies of them go to the cache.
    pub fn flush_done(&self, flush: Flush) {
        let mut state = self.state.write();
        if state.generation != flush.generation {
            return;
        }
        assert!(state.flush_in_flight, "a flush ends once");
        state.flush_in_flight = false;
        let EntryMark { applied, revision, compact_revision, .. } = flush.end;
        state.flushed = Flushed { index: applied.index, revision, compact_revision };
        state.unflushed.bytes -= flush.bytes;
        state.unflushed.entries.drain(..flush.entries);
        state.unflushed.tables.drain(..flush.tables);
        let (records, tables) = state.unflushed.ended;
        state.unflushed.ended = (records - flush.records, tables - flush.tables);
        let records: Vec<Record> = state.unflushed.records.drain(..flush.records).collect();
        drop(state);
        for Record { version, value, .. } in records {
            if !value.is_empty() {
                self.options.cache.insert((self.group, flush.generation, version.main, version.sub), &value);
            }
        }
    }
}

/// How many entries fit, and what they amount to.
fn measure(keyspace: &Arc<Keyspace>, state: &State, durable_index: u64, max_bytes: usize) -> Option<Flush> {
    let mut flush: Option<Flush> = None;
    for mark in &state.unflushed.entries {
        let is_too_much = flush.as_ref().is_some_and(|flush| flush.bytes + mark.bytes > max_bytes);
        if mark.applied.index > durable_index || is_too_much {
            break;
        }
        let flush = flush.get_or_insert_with(|| Flush {
            keyspace: Arc::clone(keyspace),
            generation: state.generation,
            entries: 0,
            records: 0,
            tables: 0,
            bytes: 0,
            end: *mark,
        });
        flush.entries += 1;
        flush.records += mark.records;
        flush.tables += mark.tables;
        flush.bytes += mark.bytes;
        flush.end = *mark;
    }
    flush
}

fn state_record(generation: u32, mark: &EntryMark) -> StateRecord {
    StateRecord {
        generation,
        applied: mark.applied,
        revision: mark.revision,
        compact_revision: mark.compact_revision,
        digest: mark.digest,
    }
}
