//! Restore: a keyspace made from a backup, in etcd's terms, before any node runs on it.
//!
//! Whatever order the tables come in, the history comes in its own. Memory holds what it holds of a keyspace that runs: the
//! metadata of all versions, and no values. Everything that comes in is hashed, in the order in which it comes; so whoever restores
//! the same backup in the same way gets the same [`Restored::checksum`], and nobody else does.
//!
//! A key that lives on a lease which is not in the backup is on none: were it left as it is, and a lease of that id granted, the replicas that are
//! opened after that would bind the key to it and the others would not. History keeps the ids of leases that have ended.

use std::sync::Arc;

use bytes::Bytes;
use hadron_proto::authpb;
use hadron_storage::engine::{Batch, Change, Engine, EngineError, Space};
use prost::Message;
use xxhash_rust::xxh3::Xxh3;

use crate::auth::{AuthStatus, Switch};
use crate::backup::BackupLease;
use crate::error::OpenError;
use crate::keyspace::first_generation;
use crate::mvcc::Version;
use crate::record::{self, StateRecord};
use crate::state::{Applied, State};
use crate::stored::{REVISION_MAX, read_stored};

/// Bytes of records that are written to the engine at a time, about.
const BATCH_BYTES: usize = 4 << 20;
/// What a record has beside its key and value, about.
const RECORD_BYTES: usize = 96;
/// As which entry of the log a restored state counts.
const RESTORED: (u64, u64) = (1, 1);

/// Why a backup cannot be restored.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// The engine failed.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// What is in the engine cannot be read.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// The engine holds a state of the group already.
    #[error("the engine is in use")]
    InUse,
    /// The backup is not what etcd or Hadron writes.
    #[error("the backup is damaged: {0}")]
    Damaged(String),
}

/// What was restored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Restored {
    /// The newest revision.
    pub revision: i64,
    /// Reads below it are refused; -1 if nothing was compacted.
    pub compact_revision: i64,
    /// Keys that live.
    pub keys: usize,
    /// Leases.
    pub leases: usize,
    /// Keys that were on leases which are not in the backup, and are on none now.
    pub unbound: usize,
    /// The term of the entry that the state counts as.
    pub term: u64,
    /// Its index.
    pub index: u64,
    /// Its checksum: a hash of all that was restored. Not 0.
    pub checksum: u64,
}

/// A keyspace that is being restored.
pub struct Restore {
    engine: Arc<dyn Engine>,
    group: u64,
    state: State,
    batch: Batch,
    batch_bytes: usize,
    hash: Xxh3,
    last: (i64, u32),
}

impl Restore {
    /// Begins; the engine must hold nothing of the group.
    ///
    /// # Errors
    /// It does, or fails.
    pub fn new(engine: Arc<dyn Engine>, group: u64) -> Result<Restore, RestoreError> {
        if engine.get(Space::State, &record::state_key(group))?.is_some() {
            return Err(RestoreError::InUse);
        }
        let generation = first_generation(engine.snapshot().as_ref(), group)?;
        let state = State::new(generation);
        let (batch, hash) = (Batch::new(), Xxh3::new());
        Ok(Restore { engine, group, state, batch, batch_bytes: 0, hash, last: (0, 0) })
    }

    /// The next version of the history, under the key and with the value that etcd stores.
    ///
    /// # Errors
    /// It is damaged or out of order, or the engine failed.
    pub fn version(&mut self, key: &[u8], value: &[u8]) -> Result<(), RestoreError> {
        self.count("version", &[key, value]);
        let damaged =
            |what: &str| RestoreError::Damaged(format!("history: {what}, after revision {}", self.last.0));
        let read = read_stored(key, Bytes::copy_from_slice(value)).map_err(damaged)?;
        let place = read.as_ref().map_or_else(|main| (*main, 0), |record| record.version.place());
        if place <= self.last {
            return Err(damaged("revisions are not in order"));
        }
        self.last = place;
        self.state.revision = self.state.revision.max(place.0);
        let Ok(record) = read else { return Ok(()) };
        let at = record::version_key(self.group, self.state.generation, place);
        self.batch_bytes += record.key.len() + record.value.len() + RECORD_BYTES;
        self.batch.push(Change::Put(
            Space::Versions,
            at.clone(),
            record::encode_version(&record.key, &record.version),
        ));
        if !record.value.is_empty() {
            self.batch.push(Change::Put(Space::Values, at, record.value));
        }
        self.state.index.push(&record.key, record.version);
        if self.batch_bytes >= BATCH_BYTES { self.write() } else { Ok(()) }
    }

    /// A lease: it has its remaining time from the first moment of the restored keyspace on.
    pub fn lease(&mut self, lease: BackupLease) {
        let BackupLease { id, ttl, remaining } = lease;
        self.count("lease", &[&id.to_le_bytes(), &ttl.to_le_bytes(), &remaining.to_le_bytes()]);
        self.state.set_lease(id, ttl, crate::lease::expiry_ms(0, remaining.max(1)));
    }

    /// A user.
    pub fn user(&mut self, user: authpb::User) {
        self.count("user", &[&user.encode_to_vec()]);
        self.state.set_user(user);
    }

    /// A role.
    pub fn role(&mut self, role: authpb::Role) {
        self.count("role", &[&role.encode_to_vec()]);
        self.state.set_role(role);
    }

    /// Whether authentication is on, and the auth revision. Tokens of before are worth nothing: the secret is not in a backup, and
    /// another one is chosen when the first user asks for a token.
    pub fn auth(&mut self, auth: AuthStatus) {
        self.count("auth", &[&[u8::from(auth.enabled)], &auth.revision.to_le_bytes()]);
        let AuthStatus { enabled, revision } = auth;
        self.state.set_auth_switch(Switch { enabled, revision, secret: Bytes::new() });
    }

    /// Ends; the state is durable. `compacted` is what the backup says of compaction, 0 for nothing. With `bump` the newest revision is so
    /// much higher, and everything up to it compacted: clients that saw later revisions than the backup has read again.
    ///
    /// # Errors
    /// A revision that is too high, or the engine failed.
    pub fn finish(mut self, compacted: i64, bump: u64) -> Result<Restored, RestoreError> {
        self.count("end", &[&compacted.to_le_bytes(), &bump.to_le_bytes()]);
        let revision = self.state.revision.max(compacted);
        let bumped = i64::try_from(bump).ok().and_then(|bump| revision.checked_add(bump));
        let revision = bumped.filter(|revision| *revision <= REVISION_MAX);
        self.state.revision =
            revision.ok_or_else(|| RestoreError::Damaged("the revision is too high".into()))?;
        self.state.compact_revision = match (bump, compacted) {
            (1.., _) => self.state.revision,
            (0, 1..) => compacted,
            (0, _) => -1,
        };
        self.write_tables()?;
        let unbound = self.unbind()?;
        let (term, index) = RESTORED;
        let checksum = self.hash.digest().max(1);
        let state = StateRecord {
            generation: self.state.generation,
            applied: Applied { term, index, checksum, stamp_ms: 0 },
            revision: self.state.revision,
            compact_revision: self.state.compact_revision,
            digest: self.state.recompute_digest(),
        };
        self.batch.push(Change::Put(Space::State, record::state_key(self.group), state.encode()));
        self.write()?;
        self.engine.persist()?;
        let State { revision, compact_revision, .. } = self.state;
        let (keys, leases) = (self.state.index.live(), self.state.leases.iter().count());
        Ok(Restored { revision, compact_revision, keys, leases, unbound, term, index, checksum })
    }

    /// Takes the keys that live off the leases that there are not. How many.
    fn unbind(&mut self) -> Result<usize, RestoreError> {
        // What a batch has twice has no order.
        self.write()?;
        let State { index, leases, .. } = &self.state;
        let is_lost = |version: &Version| version.lease != 0 && leases.get(version.lease).is_none();
        let lost = index.living().filter(|(_, version)| is_lost(version));
        let lost: Vec<Bytes> = lost.map(|(key, _)| key.clone()).collect();
        for key in &lost {
            let Some(version) = self.state.index.latest_mut(key) else { continue };
            version.lease = 0;
            let at = record::version_key(self.group, self.state.generation, version.place());
            self.batch_bytes += key.len() + RECORD_BYTES;
            self.batch.push(Change::Put(Space::Versions, at, record::encode_version(key, version)));
            if self.batch_bytes >= BATCH_BYTES {
                self.write()?;
            }
        }
        if !lost.is_empty() {
            // Versions that left the keys as they were must not join.
            self.count("unbound", &[]);
        }
        Ok(lost.len())
    }

    fn write_tables(&mut self) -> Result<(), RestoreError> {
        self.state.gather_changed();
        for change in std::mem::take(&mut self.state.unflushed.tables) {
            let (key, value) = record::encode_table(self.group, self.state.generation, &change);
            let Some(value) = value else { continue };
            self.batch_bytes += key.len() + value.len() + RECORD_BYTES;
            self.batch.push(Change::Put(Space::Tables, key, value));
            if self.batch_bytes >= BATCH_BYTES {
                self.write()?;
            }
        }
        Ok(())
    }

    fn write(&mut self) -> Result<(), RestoreError> {
        self.batch_bytes = 0;
        Ok(self.engine.write(std::mem::take(&mut self.batch))?)
    }

    fn count(&mut self, kind: &str, parts: &[&[u8]]) {
        self.hash.update(kind.as_bytes());
        for part in parts {
            self.hash.update(&(part.len() as u64).to_le_bytes());
            self.hash.update(part);
        }
    }
}
