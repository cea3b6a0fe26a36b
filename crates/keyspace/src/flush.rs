//! Flush: what was applied goes to the engine in the background, in batches that end where an entry ends.
//!
//! [`Keyspace::take_flush`] makes a batch, another thread writes it, [`Keyspace::flush_done`] lets go of what it held.
//! In between the records are in both places, and readers take them from memory.

use hadron_storage::engine::{Batch, Change, Space};

use crate::keyspace::{Keyspace, TableState};
use crate::mvcc::{EntryMark, Record};
use crate::record::{self, StateRecord};
use crate::state::{Flushed, State};

/// A batch on its way to the engine.
#[derive(Debug)]
pub struct Flush {
    /// For [`hadron_storage::engine::Engine::write`]; take it out and write it before [`Keyspace::flush_done`].
    pub batch: Batch,
    index: u64,
    generation: u32,
    entries: usize,
    records: usize,
    tables: usize,
    bytes: usize,
    flushed: Flushed,
}

impl Flush {
    /// The last entry in it.
    pub fn index(&self) -> u64 {
        self.index
    }

    /// Its size, about.
    pub fn bytes(&self) -> usize {
        self.bytes
    }
}

impl Keyspace {
    /// A batch of the oldest entries that are not in the engine: up to `durable_index` (what the log holds durably; the
    /// engine must never be ahead of it) and about `max_bytes`, at least one entry. `None` if there is nothing to do,
    /// or a flush is under way.
    pub fn take_flush(&self, durable_index: u64, max_bytes: usize) -> Option<Flush> {
        let mut state = self.state.write();
        if state.flush_in_flight {
            return None;
        }
        let mut flush = measure(&state, durable_index, max_bytes)?;
        state.flush_in_flight = true;
        drop(state);
        // Only this thread adds or removes entries, so the shared lock is enough for the copying.
        self.fill(&mut flush, &self.state.read());
        Some(flush)
    }

    fn fill(&self, flush: &mut Flush, state: &State) {
        let Some(mark) = state.unflushed.entries.get(flush.entries - 1) else { return };
        let (group, generation) = (self.group, state.generation);
        flush.batch.reserve(2 * flush.records + flush.tables + 1);
        for Record { key, version, value } in state.unflushed.records.range(..flush.records) {
            let place = record::version_key(group, generation, version.place());
            if !value.is_empty() {
                flush.batch.push(Change::Put(Space::Values, place.clone(), value.clone()));
            }
            flush.batch.push(Change::Put(Space::Versions, place, record::encode_version(key, version)));
        }
        let changes = state.unflushed.tables.range(..flush.tables);
        let newest: TableState =
            changes.map(|change| record::encode_table(group, generation, change)).collect();
        flush.batch.extend(newest.into_iter().map(|(key, value)| match value {
            Some(value) => Change::Put(Space::Tables, key, value),
            None => Change::Delete(Space::Tables, key),
        }));
        let state = state_record(generation, mark);
        flush.batch.push(Change::Put(Space::State, record::state_key(group), state.encode()));
    }

    /// The batch is visible in the engine: its values leave the unflushed set, and copies of them go to the cache.
    pub fn flush_done(&self, flush: Flush) {
        let mut state = self.state.write();
        if state.generation != flush.generation {
            return;
        }
        assert!(state.flush_in_flight, "a flush ends once");
        state.flush_in_flight = false;
        state.flushed = flush.flushed;
        state.unflushed.bytes -= flush.bytes;
        state.unflushed.entries.drain(..flush.entries);
        state.unflushed.tables.drain(..flush.tables);
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
fn measure(state: &State, durable_index: u64, max_bytes: usize) -> Option<Flush> {
    let mut flush: Option<Flush> = None;
    for mark in &state.unflushed.entries {
        let (entries, records, tables, bytes) = flush
            .as_ref()
            .map_or((0, 0, 0, 0), |flush| (flush.entries, flush.records, flush.tables, flush.bytes));
        let is_too_much = entries > 0 && bytes + mark.bytes > max_bytes;
        if mark.applied.index > durable_index || is_too_much {
            break;
        }
        flush = Some(Flush {
            batch: Batch::new(),
            index: mark.applied.index,
            generation: state.generation,
            entries: entries + 1,
            records: records + mark.records,
            tables: tables + mark.tables,
            bytes: bytes + mark.bytes,
            flushed: Flushed {
                index: mark.applied.index,
                revision: mark.revision,
                compact_revision: mark.compact_revision,
            },
        });
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
