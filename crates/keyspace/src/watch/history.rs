//! Reading history for a watcher that lags: bounded pieces, from the engine up to the last flush and from the unflushed
//! set after it.

use std::ops::ControlFlow;

use bytes::Bytes;
use hadron_storage::engine::Space;

use super::hub::Interest;
use crate::error::Error;
use crate::keyspace::Keyspace;
use crate::mvcc::Record;
use crate::record::{self, StateRecord};

/// Records looked at in a piece; the last revision is finished beyond it. Whoever reads one has nobody else served meanwhile.
const PIECE_RECORDS: usize = 1000;
/// Events in a piece, the value of each of which is read; the last revision is finished beyond it.
const PIECE_EVENTS: usize = 250;
/// Bytes of the events in a piece; the last revision is finished beyond it.
pub(super) const PIECE_BYTES: usize = 1 << 20;

/// What a piece of history held.
#[derive(Debug)]
pub(crate) enum Piece {
    /// Events of whole revisions, maybe none; everything before `next` is now known.
    Events { events: Vec<Record>, next: i64 },
    /// The history is gone up to this revision.
    Compacted(i64),
    /// The engine holds another state than this one, which was replaced or has left: nothing can be said.
    Gone,
}

/// Collects matching records, and stops at the end of a revision once there is enough.
struct Collector<'a> {
    interest: &'a Interest,
    events: Vec<Record>,
    bytes: usize,
    looked: usize,
    /// The revision being read.
    revision: i64,
    /// True if the reading stopped before the end.
    stopped: bool,
}

impl Collector<'_> {
    /// True to go on. When it says stop, the offered record was not taken.
    fn offer(&mut self, revision: i64, key: &[u8], record: impl FnOnce() -> Record) -> bool {
        let is_enough =
            self.looked >= PIECE_RECORDS || self.events.len() >= PIECE_EVENTS || self.bytes >= PIECE_BYTES;
        if is_enough && revision > self.revision {
            self.stopped = true;
            return false;
        }
        self.looked += 1;
        self.revision = revision;
        if self.interest.range.contains(key) {
            let record = record();
            if self.interest.wants(&record) {
                self.bytes += record.key.len() + record.version.value_len as usize;
                self.events.push(record);
            }
        }
        true
    }
}

/// Reads events from `next` on, up to the revision `last` at most.
pub(crate) fn read(keyspace: &Keyspace, interest: &Interest, next: i64, last: i64) -> Result<Piece, Error> {
    let state = keyspace.state.read();
    if next < state.compact_revision {
        return Ok(Piece::Compacted(state.compact_revision));
    }
    let last = last.min(state.revision);
    let mut collector =
        Collector { interest, events: Vec::new(), bytes: 0, looked: 0, revision: 0, stopped: false };
    if next > state.flushed.revision {
        for record in state.unflushed.since(next).take_while(|record| record.version.main <= last) {
            if !collector.offer(record.version.main, &record.key, || record.clone()) {
                break;
            }
        }
        return Ok(finish(collector, last));
    }
    // Pinned under the lock, at a revision that is not compacted: nothing from here on can be swept.
    let (generation, flushed) = (state.generation, state.flushed.revision.min(last));
    let is_flushed = state.flushed.index > 0;
    let _pin = keyspace.pins.pin(generation, next);
    drop(state);
    if is_flushed && !scan(keyspace, generation, next, flushed, &mut collector)? {
        return Ok(Piece::Gone);
    }
    for event in &mut collector.events {
        event.value = keyspace.values(generation).get(&event.version)?;
    }
    Ok(finish(collector, flushed))
}

fn finish(collector: Collector<'_>, last: i64) -> Piece {
    let next = if collector.stopped { collector.revision + 1 } else { last + 1 };
    Piece::Events { events: collector.events, next }
}

/// Offers the engine's records of the revisions `from..=to`, without values; false if they are not there any more.
fn scan(
    keyspace: &Keyspace,
    generation: u32,
    from: i64,
    to: i64,
    collector: &mut Collector<'_>,
) -> Result<bool, Error> {
    let view = keyspace.engine.snapshot();
    let stored = StateRecord::of_generation(view.as_ref(), keyspace.group, generation);
    if stored.map_err(|error| Error::Storage(error.to_string()))?.is_none() {
        return Ok(false);
    }
    let from = record::version_key(keyspace.group, generation, (from, 0));
    let to = record::version_key(keyspace.group, generation, (to + 1, 0));
    let mut is_damaged = false;
    view.scan(Space::Versions, &from, &to, &mut |key, value| {
        let decoded = record::decode_version(key, value);
        let Ok((version, key)) = decoded else {
            is_damaged = true;
            return ControlFlow::Break(());
        };
        let record = || Record { key: Bytes::copy_from_slice(key), version, value: Bytes::new() };
        if collector.offer(version.main, key, record) {
            ControlFlow::Continue(())
        } else {
            ControlFlow::Break(())
        }
    })?;
    if is_damaged { Err(Error::Storage("a version has no known shape".into())) } else { Ok(true) }
}
