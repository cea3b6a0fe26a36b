//! etcd's `HashKV`: CRC-32C over the bytes that etcd would have in its backend, so that the number equals etcd's for
//! the same history, compacted or not.
//!
//! Below the last compaction only what it kept counts, whether a sweep has been there or not.

use bytes::Bytes;
use hadron_proto::etcdserverpb as pb;

use crate::error::Error;
use crate::kept::{Kept, is_newest_at};
use crate::keyspace::Keyspace;
use crate::mvcc::{KeyRange, Record};
use crate::range::header;
use crate::state::State;

/// The name of etcd's bucket, with which its hash begins.
const BUCKET: &[u8] = b"key";
/// Keys looked at at a time.
const PIECE: usize = 1000;

/// What a hash is about, fixed when it begins.
struct Scope {
    revision: i64,
    compact_revision: i64,
    current_revision: i64,
    /// No key lives at `revision`: etcd then keeps all that the compaction left.
    keeps_nothing: bool,
    kept: Kept,
}

impl Keyspace {
    /// The hash of all versions up to `revision` (0: the newest). Reads the whole history from disk.
    pub fn hash_kv(&self, revision: i64) -> Result<pb::HashKvResponse, Error> {
        let scope = self.hash_scope(revision)?;
        let mut crc = crc32c::crc32c(BUCKET);
        let counts = |state: &State, record: &Record| counts(state, &scope, record);
        scope.kept.visit(self, counts, |key, value| {
            crc = crc32c::crc32c_append(crc32c::crc32c_append(crc, key), value);
            Ok::<(), Error>(())
        })?;
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
            (_, after) = state.index.visit(&everything, after.as_ref(), revision, PIECE, |_, _| lives = true);
            if after.is_none() {
                break;
            }
        }
        Ok(Scope {
            revision,
            compact_revision: state.compact_revision,
            current_revision: state.revision,
            keeps_nothing: !lives,
            kept: Kept::new(self, &state, revision),
        })
    }
}

/// Below the compaction only what it kept counts, and of that only what a compaction at the hashed revision would keep
/// too (unless that is nothing at all); and no tombstone of the compaction's own revision.
fn counts(state: &State, scope: &Scope, record: &Record) -> bool {
    let version = &record.version;
    if version.main > scope.compact_revision {
        return true;
    }
    let survived = is_newest_at(state, record, scope.compact_revision) && !version.is_tombstone();
    survived && (scope.keeps_nothing || is_newest_at(state, record, scope.revision))
}
