//! etcd's `HashKV`: CRC-32C over the bytes that etcd would have in its backend, so that the number equals etcd's for
//! the same history, compacted or not.
//!
//! Each version counts with its key in the backend (revision, `_`, sub-revision, `t` for a tombstone) and its marshalled
//! `KeyValue`. Below the last compaction only what it kept counts, whether a sweep has been there or not.

use std::ops::ControlFlow;

use bytes::Bytes;
use hadron_proto::etcdserverpb as pb;
use hadron_proto::mvccpb::KeyValue;
use hadron_storage::engine::{Read, Space};
use prost::Message;

use crate::error::Error;
use crate::keyspace::Keyspace;
use crate::mvcc::{KeyRange, Pin, Record, Version};
use crate::range::header;
use crate::record;
use crate::state::State;

/// The name of etcd's bucket, with which its hash begins.
const BUCKET: &[u8] = b"key";
/// Versions read at a time.
const PIECE: usize = 1000;

/// What a hash is about, fixed when it begins.
struct Scope {
    revision: i64,
    compact_revision: i64,
    current_revision: i64,
    generation: u32,
    /// No key lives at `revision`: etcd then keeps all that the compaction left.
    keeps_nothing: bool,
    /// What was not in the engine when the scope was fixed.
    unflushed: Vec<Record>,
    _pin: Pin,
}

impl Keyspace {
    /// The hash of all versions up to `revision` (0: the newest). Reads the whole history from disk.
    pub fn hash_kv(&self, revision: i64) -> Result<pb::HashKvResponse, Error> {
        let scope = self.hash_scope(revision)?;
        let view = self.engine.snapshot();
        let mut crc = crc32c::crc32c(BUCKET);
        let mut from = record::version_key(self.group, scope.generation, (0, 0));
        let first_unflushed = scope.unflushed.first().map(|record| record.version.place());
        loop {
            let (piece, next) = self.hash_piece(&scope, view.as_ref(), &from, first_unflushed)?;
            crc = self.add_counted(&scope, piece, crc)?;
            match next {
                Some(next) => from = next,
                None => break,
            }
        }
        crc = self.add_counted(&scope, scope.unflushed.clone(), crc)?;
        Ok(pb::HashKvResponse {
            header: header(scope.current_revision),
            hash: crc,
            compact_revision: scope.compact_revision,
            hash_revision: scope.revision,
        })
    }

    fn hash_scope(&self, revision: i64) -> Result<Scope, Error> {
        let state = self.state.read();
        if revision > 0 && revision < state.compact_revision {
            return Err(Error::Compacted);
        }
        if revision > state.revision {
            return Err(Error::FutureRev);
        }
        let revision = if revision <= 0 { state.revision } else { revision };
        let everything = KeyRange::Span { from: Bytes::new(), to: None };
        let mut lives = false;
        let mut after = None;
        while !lives {
            after = state.index.visit(&everything, after.as_ref(), revision, PIECE, |_, _| lives = true);
            if after.is_none() {
                break;
            }
        }
        let unflushed = state.unflushed.records.iter().take_while(|record| record.version.main <= revision);
        Ok(Scope {
            revision,
            compact_revision: state.compact_revision,
            current_revision: state.revision,
            generation: state.generation,
            keeps_nothing: !lives,
            unflushed: unflushed.cloned().collect(),
            _pin: self.pins.pin(state.generation, state.compact_revision.max(0)),
        })
    }

    /// Some records of the engine, without values, and where to go on.
    fn hash_piece(
        &self,
        scope: &Scope,
        view: &dyn Read,
        from: &Bytes,
        first_unflushed: Option<(i64, u32)>,
    ) -> Result<(Vec<Record>, Option<Bytes>), Error> {
        let end = first_unflushed.unwrap_or((scope.revision + 1, 0)).min((scope.revision + 1, 0));
        let to = record::version_key(self.group, scope.generation, end);
        let mut records = Vec::new();
        let mut is_damaged = false;
        view.scan(Space::Versions, from, &to, &mut |key, value| {
            match record::place_of(key).and_then(|place| record::decode_version(place, value)) {
                Some((version, key)) => {
                    records.push(Record { key: Bytes::copy_from_slice(key), version, value: Bytes::new() });
                }
                None => is_damaged = true,
            }
            if records.len() < PIECE { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        })?;
        if is_damaged {
            return Err(Error::Storage("a version has no known shape".into()));
        }
        let next = (records.len() == PIECE).then(|| records.last()).flatten().map(|last| {
            let (main, sub) = last.version.place();
            record::version_key(self.group, scope.generation, (main, sub + 1))
        });
        Ok((records, next))
    }

    fn add_counted(&self, scope: &Scope, records: Vec<Record>, mut crc: u32) -> Result<u32, Error> {
        for piece in records.chunks(PIECE) {
            let state = self.state.read();
            if state.generation != scope.generation {
                return Err(Error::Storage("the state was replaced by a snapshot".into()));
            }
            let counted: Vec<&Record> = piece.iter().filter(|record| counts(&state, scope, record)).collect();
            drop(state);
            // Only now: the value of a version that does not count may be swept already.
            for record in counted {
                let is_in_memory = record.value.len() == record.version.value_len as usize;
                let value = match is_in_memory {
                    true => record.value.clone(),
                    false => self.values(scope.generation).get(&record.version)?,
                };
                crc = add(crc, record, value);
            }
        }
        Ok(crc)
    }
}

/// Below the compaction only what it kept counts, and of that only what a compaction at the hashed revision would keep
/// too (unless that is nothing at all); and no tombstone of the compaction's own revision.
fn counts(state: &State, scope: &Scope, record: &Record) -> bool {
    let version = &record.version;
    if version.main > scope.compact_revision {
        return true;
    }
    let is_newest_at = |revision| {
        state.index.at_or_tombstone(&record.key, revision).map(Version::place) == Some(version.place())
    };
    let survived = is_newest_at(scope.compact_revision) && !version.is_tombstone();
    survived && (scope.keeps_nothing || is_newest_at(scope.revision))
}

fn add(crc: u32, record: &Record, value: Bytes) -> u32 {
    let version = &record.version;
    let mut key = Vec::with_capacity(18);
    key.extend_from_slice(&version.main.to_be_bytes());
    key.push(b'_');
    key.extend_from_slice(&i64::from(version.sub).to_be_bytes());
    let mut stored = KeyValue { key: record.key.clone(), ..Default::default() };
    if version.is_tombstone() {
        key.push(b't');
    } else {
        stored.create_revision = version.create;
        stored.mod_revision = version.main;
        stored.version = version.version;
        stored.lease = version.lease;
        stored.value = value;
    }
    let crc = crc32c::crc32c_append(crc, &key);
    crc32c::crc32c_append(crc, &stored.encode_to_vec())
}
