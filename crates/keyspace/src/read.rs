//! Reading: a range beside apply works in pieces at one pinned revision, and reads the disk without any lock.

use std::cell::Cell;
use std::collections::BTreeMap;

use bytes::Bytes;
use hadron_proto::etcdserverpb as pb;
use hadron_proto::mvccpb::KeyValue;
use hadron_storage::engine::{Engine, Space};

use crate::digest;
use crate::error::Error;
use crate::keyspace::Keyspace;
use crate::mvcc::{KeyRange, Pin, ValueCache, Version};
use crate::range::{self, Row, Rows, Source};
use crate::record;
use crate::state::State;
use crate::txn;

/// Keys looked at under the lock at a time.
const PIECE_KEYS: usize = 1000;
/// What a pair takes beside its key and value in an answer, at most.
const PAIR_OVERHEAD_BYTES: usize = 64;

/// What reading a value from the engine costs, in keys that are looked at; and how many bytes of it cost one more. So many bytes of a user or role
/// that is changed cost one, too.
pub(crate) const KEYS_PER_VALUE: usize = 10;
pub(crate) const BYTES_PER_KEY: usize = 1 << 10;

/// What is done under the lock, against what may be done there in one go: in keys that are looked at or changed.
#[derive(Debug)]
pub(crate) struct Effort {
    done: Cell<usize>,
    max: usize,
}

impl Effort {
    /// Nothing yet.
    pub(crate) fn new(max: usize) -> Effort {
        Effort { done: Cell::new(0), max }
    }

    pub(crate) fn add(&self, keys: usize) {
        self.done.set(self.done.get().saturating_add(keys));
    }

    pub(crate) fn done(&self) -> usize {
        self.done.get()
    }

    pub(crate) fn left(&self) -> usize {
        self.max.saturating_sub(self.done.get())
    }
}

fn effort_of_value(row: &Row) -> usize {
    match row.value {
        Some(_) => 0,
        None => KEYS_PER_VALUE + row.version.value_len as usize / BYTES_PER_KEY,
    }
}

/// Where values are that left the unflushed set.
pub(crate) struct Values<'a> {
    pub(crate) engine: &'a dyn Engine,
    pub(crate) cache: &'a ValueCache,
    pub(crate) group: u64,
    pub(crate) generation: u32,
}

impl Values<'_> {
    /// The value of a version that is not in the unflushed set; checked against its hash.
    pub(crate) fn get(&self, version: &Version) -> Result<Bytes, Error> {
        self.read(version, true)
    }

    /// The same for one of many that are read once: what is read often stays in the cache.
    pub(crate) fn get_once(&self, version: &Version) -> Result<Bytes, Error> {
        self.read(version, false)
    }

    fn read(&self, version: &Version, keeps: bool) -> Result<Bytes, Error> {
        if version.value_len == 0 {
            return Ok(Bytes::new());
        }
        let id = (self.group, self.generation, version.main, version.sub);
        if let Some(value) = self.cache.get(&id) {
            return Ok(value);
        }
        let key = record::version_key(self.group, self.generation, version.place());
        let value = self.engine.get(Space::Values, &key)?;
        let value = value.filter(|value| digest::of_value(value) == version.value_hash);
        let Some(value) = value else {
            let (main, sub) = version.place();
            let what =
                format!("the value of revision {main}.{sub} of group {} is missing or damaged", self.group);
            return Err(Error::Storage(what));
        };
        if keeps {
            self.cache.insert(id, &value);
        }
        Ok(value)
    }
}

/// The state under its lock, as apply sees it in the middle of a txn.
pub(crate) struct Locked<'a> {
    pub(crate) state: &'a State,
    pub(crate) values: Values<'a>,
    /// The newest revision that is seen: that of the running txn once it wrote something.
    pub(crate) revision: i64,
    /// How much was done.
    pub(crate) effort: &'a Effort,
}

impl Locked<'_> {
    /// As [`Source::next_rows`], but no more rows than those whose values can be read with the effort that is left, or one.
    pub(crate) fn next_rows_to_read(
        &self,
        range: &KeyRange,
        after: Option<&Bytes>,
        rows: &mut Rows,
    ) -> Option<Bytes> {
        let next = self.next_rows_of(self.effort.left() / KEYS_PER_VALUE, range, after, rows);
        cut_to(&mut rows.rows, self.effort.left(), effort_of_value).or(next)
    }

    /// The next rows of up to `keys_max` keys, of one at least.
    fn next_rows_of(
        &self,
        keys_max: usize,
        range: &KeyRange,
        after: Option<&Bytes>,
        rows: &mut Rows,
    ) -> Option<Bytes> {
        let keys_max = keys_max.clamp(1, PIECE_KEYS);
        let (looked, next) = collect(self.state, range, after, self.revision, keys_max, keys_max, rows);
        self.effort.add(looked);
        next
    }
}

impl Source for Locked<'_> {
    fn revision(&self) -> i64 {
        self.revision
    }

    fn compact_revision(&self) -> i64 {
        self.state.compact_revision
    }

    fn rows(&self, range: &KeyRange, revision: i64, rows_max: usize) -> Result<Rows, Error> {
        let mut rows = Rows::default();
        let (looked, _) = collect(self.state, range, None, revision, usize::MAX, rows_max, &mut rows);
        self.effort.add(looked);
        Ok(rows)
    }

    fn next_rows(
        &self,
        range: &KeyRange,
        after: Option<&Bytes>,
        rows: &mut Rows,
    ) -> Result<Option<Bytes>, Error> {
        Ok(self.next_rows_of(self.effort.left(), range, after, rows))
    }

    fn fetch(&self, rows: &mut [Row]) -> Result<(), Error> {
        self.effort.add(rows.iter().map(effort_of_value).sum());
        fetch(&self.values, rows)
    }

    fn fetch_once(&self, row: &mut Row) -> Result<(), Error> {
        self.effort.add(effort_of_value(row));
        fetch_once(&self.values, row)
    }
}

/// A part of the answer to a range request.
#[derive(Clone, Debug, PartialEq)]
pub struct RangePart {
    /// Keys of the range, in order. There may be none although more follow.
    pub kvs: Vec<KeyValue>,
    /// Where to go on; `None` at the end of the range.
    pub next: Option<Bytes>,
    /// The newest revision at the time.
    pub revision: i64,
}

/// A reader's view at one revision, beside apply.
pub(crate) struct View<'a> {
    keyspace: &'a Keyspace,
    generation: u32,
    revision: i64,
    compact_revision: i64,
    /// Holds sweeps off everything that this view may read.
    _pin: Pin,
}

impl Source for View<'_> {
    fn revision(&self) -> i64 {
        self.revision
    }

    fn compact_revision(&self) -> i64 {
        self.compact_revision
    }

    fn rows(&self, range: &KeyRange, revision: i64, rows_max: usize) -> Result<Rows, Error> {
        let mut rows = Rows::default();
        if let KeyRange::One(_) = range {
            self.piece(range, None, revision, (PIECE_KEYS, rows_max), &mut rows)?;
            return Ok(rows);
        }
        let mut after = None;
        loop {
            after = self.piece(range, after.as_ref(), revision, (PIECE_KEYS, rows_max), &mut rows)?;
            if after.is_none() {
                return Ok(rows);
            }
        }
    }

    fn next_rows(
        &self,
        range: &KeyRange,
        after: Option<&Bytes>,
        rows: &mut Rows,
    ) -> Result<Option<Bytes>, Error> {
        self.piece(range, after, self.revision, (PIECE_KEYS, PIECE_KEYS), rows)
    }

    fn fetch(&self, rows: &mut [Row]) -> Result<(), Error> {
        fetch(&self.keyspace.values(self.generation), rows)
    }

    fn fetch_once(&self, row: &mut Row) -> Result<(), Error> {
        fetch_once(&self.keyspace.values(self.generation), row)
    }
}

impl View<'_> {
    fn piece(
        &self,
        range: &KeyRange,
        after: Option<&Bytes>,
        revision: i64,
        (keys_max, rows_max): (usize, usize),
        rows: &mut Rows,
    ) -> Result<Option<Bytes>, Error> {
        let state = self.keyspace.state.read();
        if state.generation != self.generation {
            return Err(replaced());
        }
        Ok(collect(&state, range, after, revision, keys_max, rows_max, rows).1)
    }
}

/// A snapshot replaced the state under a reader; it starts again.
pub(crate) fn replaced() -> Error {
    Error::Storage("the state was replaced by a snapshot, or is gone".into())
}

/// Collects rows of up to `keys_max` keys; returns how many were looked at, and where to go on.
fn collect(
    state: &State,
    range: &KeyRange,
    after: Option<&Bytes>,
    revision: i64,
    keys_max: usize,
    rows_max: usize,
    rows: &mut Rows,
) -> (usize, Option<Bytes>) {
    let add = |key: &Bytes, version: &Version| {
        rows.count += 1;
        if rows.rows.len() < rows_max {
            let value = state.unflushed.find(version.place()).map(|record| record.value.clone());
            rows.rows.push(Row { key: key.clone(), version: *version, value });
        }
    };
    if let KeyRange::One(key) = range {
        let mut add = add;
        if let Some((key, version)) = state.index.at(key, revision) {
            add(key, version);
        }
        return (1, None);
    }
    state.index.visit(range, after, revision, keys_max, add)
}

/// What a pair takes in an answer, at most.
pub(crate) fn pair_bytes(key: &[u8], value_len: usize, keys_only: bool) -> usize {
    let value_bytes = if keys_only { 0 } else { value_len };
    key.len() + value_bytes + PAIR_OVERHEAD_BYTES
}

/// Leaves the first rows whose pairs fit into `bytes_max`, and at least one. Returns the key of the last one if there were more.
fn cut(rows: &mut Vec<Row>, keys_only: bool, bytes_max: usize) -> Option<Bytes> {
    cut_to(rows, bytes_max, |row| pair_bytes(&row.key, row.version.value_len as usize, keys_only))
}

/// Leaves the first rows that cost no more than `max` together, and at least one. Returns the key of the last one if there were more.
fn cut_to(rows: &mut Vec<Row>, max: usize, cost: impl Fn(&Row) -> usize) -> Option<Bytes> {
    let mut costs = 0;
    let fitting = rows.iter().take_while(|row| {
        costs += cost(row);
        costs <= max
    });
    let left = fitting.count().max(1);
    if left >= rows.len() {
        return None;
    }
    rows.truncate(left);
    rows.last().map(|row| row.key.clone())
}

fn fetch(values: &Values<'_>, rows: &mut [Row]) -> Result<(), Error> {
    for row in rows.iter_mut().filter(|row| row.value.is_none()) {
        row.value = Some(values.get(&row.version)?);
    }
    Ok(())
}

fn fetch_once(values: &Values<'_>, row: &mut Row) -> Result<(), Error> {
    if row.value.is_none() {
        row.value = Some(values.get_once(&row.version)?);
    }
    Ok(())
}

impl Keyspace {
    /// Answers a range request, which must have passed [`crate::check::range`]. From any thread.
    ///
    /// The answer is the state at one revision, however long it takes. [`Error::Storage`] says that the engine failed.
    pub fn range(&self, request: &pb::RangeRequest) -> Result<pb::RangeResponse, Error> {
        self.read(request.revision, |view| range::execute(view, request))
    }

    /// Answers a part of a range request, for results that are too large to be held whole: the keys beyond `after`, which is
    /// what the part before said, of up to `keys_max` (at least 1; more than 1,000 count as 1,000). What is found has no more than
    /// `bytes_max` bytes, or is one pair. Limit, order and filters of the request are the caller's business, and all parts must name
    /// the same revision. Nothing is kept for the parts to come: a compaction in between fails them with [`Error::Compacted`].
    pub fn range_part(
        &self,
        request: &pb::RangeRequest,
        after: Option<&Bytes>,
        (keys_max, bytes_max): (usize, usize),
    ) -> Result<RangePart, Error> {
        let range = KeyRange::new(&request.key, &request.range_end);
        self.read(request.revision, |view| {
            let revision = range::resolve_revision(view, request.revision)?;
            let keys_max = keys_max.clamp(1, PIECE_KEYS);
            let mut found = Rows::default();
            let mut next = view.piece(&range, after, revision, (keys_max, usize::MAX), &mut found)?;
            if let Some(last) = cut(&mut found.rows, request.keys_only, bytes_max) {
                next = Some(last);
            }
            let values = self.values(view.generation);
            for row in found.rows.iter_mut().filter(|_| !request.keys_only) {
                fetch_once(&values, row)?;
            }
            let kvs = found.rows.into_iter().map(|row| range::key_value(row, request.keys_only)).collect();
            Ok(RangePart { kvs, next, revision: view.revision })
        })
    }

    /// Answers a txn that consists of comparisons and ranges only, all at the revision of now. From any thread.
    ///
    /// # Panics
    /// If the txn writes.
    pub fn read_txn(&self, request: &pb::TxnRequest) -> Result<pb::TxnResponse, Error> {
        let oldest = txn::oldest_revision(request);
        self.read(oldest, |view| txn::read_only(view, request))
    }

    /// Runs `read` on a view that may read back to `oldest` (0: the present), again if a snapshot replaced the state.
    fn read<T>(&self, oldest: i64, read: impl Fn(&View<'_>) -> Result<T, Error>) -> Result<T, Error> {
        loop {
            let view = self.view(oldest);
            let result = read(&view);
            if matches!(result, Err(Error::Storage(_))) && self.state.read().generation != view.generation {
                continue;
            }
            return self.note_read(result);
        }
    }

    fn view(&self, oldest: i64) -> View<'_> {
        let state = self.state.read();
        let pinned = if oldest > 0 {
            oldest.clamp(state.compact_revision.max(0), state.revision)
        } else {
            state.revision
        };
        View {
            keyspace: self,
            generation: state.generation,
            revision: state.revision,
            compact_revision: state.compact_revision,
            _pin: self.pins.pin(state.generation, pinned),
        }
    }

    /// The version of each key as it was just before `revision`, with its value; keys that did not live are left out,
    /// and all of them are if that revision is compacted.
    pub(crate) fn values_before(&self, revision: i64, keys: &[Bytes]) -> Result<BTreeMap<Bytes, Row>, Error> {
        self.read(revision - 1, |view| {
            let mut rows = Vec::new();
            for keys in keys.chunks(PIECE_KEYS) {
                let state = self.state.read();
                if state.generation != view.generation {
                    return Err(replaced());
                }
                if revision - 1 < state.compact_revision {
                    return Ok(BTreeMap::new());
                }
                for key in keys {
                    let mut found = Rows::default();
                    collect(&state, &KeyRange::One(key.clone()), None, revision - 1, 1, 1, &mut found);
                    rows.append(&mut found.rows);
                }
            }
            view.fetch(&mut rows)?;
            Ok(rows.into_iter().map(|row| (row.key.clone(), row)).collect())
        })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::sync::Arc;
    use std::thread;

    use hadron_storage::engine::ModelEngine;

    use super::*;
    use crate::{Applied, Command, Exporter, Importer, Options};

    /// A snapshot that was switched to between two looks at the state was taken for a compaction: events came without what was before.
    #[test]
    fn what_keys_were_before_is_known_while_a_snapshot_is_switched_to() {
        const GROUP: u64 = 7;
        const SWITCHES: usize = 30;
        let engine = Arc::new(ModelEngine::new());
        let keyspace = Keyspace::open(engine.clone(), GROUP, Options::default()).unwrap();
        let keys: Vec<Bytes> = (0..3 * PIECE_KEYS).map(|n| format!("{n:05}").into()).collect();
        let put = |key: &Bytes| pb::PutRequest { key: key.clone(), ..Default::default() };
        let puts = keys.iter().map(|key| Command::Put(put(key))).collect();
        keyspace.apply(Applied { term: 1, index: 1, checksum: 1, stamp_ms: 0 }, puts);
        while let Some(flush) = keyspace.take_flush(1, usize::MAX) {
            engine.write(flush.batch()).unwrap();
            keyspace.flush_done(flush);
        }
        let newest = keyspace.revision();
        thread::scope(|scope| {
            let switching = scope.spawn(|| {
                for _ in 0..SWITCHES {
                    let mut exporter = Exporter::new(keyspace.clone(), usize::MAX).unwrap();
                    let mut importer = Importer::new(engine.clone(), GROUP).unwrap();
                    while let Some(chunk) = exporter.next_chunk(1 << 20).unwrap() {
                        importer.chunk(chunk).unwrap();
                    }
                    let loaded = importer.load().unwrap();
                    importer.finish().unwrap();
                    drop(keyspace.switch(loaded));
                }
            });
            while !switching.is_finished() {
                assert_eq!(keyspace.values_before(newest + 1, &keys).unwrap().len(), keys.len());
            }
            switching.join().unwrap();
        });
    }
}
