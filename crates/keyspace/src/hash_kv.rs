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
    kept: Kept,
}

impl Keyspace {
    /// The hash of all versions up to `revision` (0: the newest). Reads the whole history from disk.
    pub fn hash_kv(&self, revision: i64) -> Result<pb::HashKvResponse, Error> {
        self.note_read(self.hash_up_to(revision))
    }

    fn hash_up_to(&self, revision: i64) -> Result<pb::HashKvResponse, Error> {
        let scope = self.hash_scope(revision)?;
        let keeps_nothing = !self.lives(&scope)?;
        let mut crc = crc32c::crc32c(BUCKET);
        let counts = |state: &State, record: &Record| counts(state, &scope, keeps_nothing, record);
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
        Ok(Scope {
            revision,
            compact_revision: state.compact_revision,
            current_revision: state.revision,
            kept: Kept::new(self, &state, revision),
        })
    }

    /// Whether any key lives at the revision of the scope.
    fn lives(&self, scope: &Scope) -> Result<bool, Error> {
        let mut after = None;
        loop {
            let (lives, next) = self.piece_lives(scope, after.as_ref())?;
            if lives || next.is_none() {
                return Ok(lives);
            }
            after = next;
        }
    }

    /// The same of the next few keys after `after`, and where to go on. Each piece takes the lock anew: apply does not wait for the others.
    fn piece_lives(&self, scope: &Scope, after: Option<&Bytes>) -> Result<(bool, Option<Bytes>), Error> {
        let everything = KeyRange::Span { from: Bytes::new(), to: None };
        let mut lives = false;
        let state = scope.kept.lock(self)?;
        let (_, next) = state.index.visit(&everything, after, scope.revision, PIECE, |_, _| lives = true);
        Ok((lives, next))
    }
}

/// Below the compaction only what it kept counts, and of that only what a compaction at the hashed revision would keep
/// too (unless no key lives there: etcd then keeps all that the compaction left); and no tombstone of the compaction's own revision.
fn counts(state: &State, scope: &Scope, keeps_nothing: bool, record: &Record) -> bool {
    let version = &record.version;
    if version.main > scope.compact_revision {
        return true;
    }
    let survived = is_newest_at(state, record, scope.compact_revision) && !version.is_tombstone();
    survived && (keeps_nothing || is_newest_at(state, record, scope.revision))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::sync::Arc;

    use hadron_storage::engine::ModelEngine;

    use super::*;
    use crate::command::Command;
    use crate::keyspace::Options;
    use crate::read::replaced;
    use crate::state::Applied;

    fn apply(keyspace: &Keyspace, index: u64, commands: Vec<Command>) {
        keyspace.apply(Applied { term: 1, index, checksum: 0, stamp_ms: 0 }, commands);
    }

    fn put(key: String) -> Command {
        Command::Put(pb::PutRequest { key: key.into(), ..Default::default() })
    }

    /// All keys were looked at under one lock, and apply waited for seconds where there are very many and none lives.
    #[test]
    fn apply_goes_on_while_it_is_found_out_whether_any_key_lives() {
        let keyspace = Keyspace::open(Arc::new(ModelEngine::new()), 1, Options::default()).unwrap();
        apply(&keyspace, 1, (0..PIECE + 1).map(|number| put(format!("a{number:04}"))).collect());
        let delete = pb::DeleteRangeRequest { key: "a".into(), range_end: "b".into(), prev_kv: false };
        apply(&keyspace, 2, vec![Command::DeleteRange(delete)]);
        let hash = keyspace.hash_kv(0).unwrap();
        let scope = keyspace.hash_scope(0).unwrap();
        let (lives, next) = keyspace.piece_lives(&scope, None).unwrap();
        assert_eq!((lives, next.as_deref()), (false, Some(&b"a0999"[..])));
        // What comes in between is later than the hash, and where it is over, nothing is told of another state.
        apply(&keyspace, 3, vec![put("z".into())]);
        assert_eq!(keyspace.piece_lives(&scope, next.as_ref()), Ok((false, None)));
        assert_eq!(keyspace.hash_kv(scope.revision).unwrap().hash, hash.hash);
        keyspace.state.write().generation += 1;
        assert_eq!(keyspace.lives(&scope), Err(replaced()));
    }
}
