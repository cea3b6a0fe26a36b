//! The state behind the lock, and the few changes to it that everything else is made of.
//!
//! Every change goes through here, so that index, leases, digest and the unflushed set can never disagree.

use std::collections::{BTreeSet, VecDeque};

use bytes::Bytes;
use hadron_proto::authpb;

use crate::alarm::Alarms;
use crate::auth::{Auth, Switch};
use crate::digest;
use crate::entry::OpenEntry;
use crate::lease::{Lease, Leases};
use crate::mvcc::{EntryMark, Index, Record, TableChange, Unflushed, Version};

/// Marks remembered for [`crate::Keyspace::digest_at`].
const MARKS_MAX: usize = 64;
/// What an entry without records occupies until it is flushed, about.
const ENTRY_BYTES: usize = 96;
/// What a record occupies beside its key and value until it is flushed, about.
const RECORD_BYTES: usize = 96;

/// The position of an entry and its stamp.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Applied {
    /// The Raft term of the entry.
    pub term: u64,
    /// Its index; 0 if none was applied.
    pub index: u64,
    /// The chained checksum of the group's log up to it.
    pub checksum: u64,
    /// The group's logical clock, in milliseconds.
    pub stamp_ms: u64,
}

/// Where the engine's copy of the state stands.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Flushed {
    pub(crate) index: u64,
    pub(crate) revision: i64,
    pub(crate) compact_revision: i64,
}

/// Users and roles that an entry changed. What goes to the engine is how they are at its end, once, however often it changed them: a copy
/// of one is as large as all that was ever granted to it, and a command that changes it may be tiny.
#[derive(Debug, Default)]
pub(crate) struct ChangedNames {
    users: BTreeSet<String>,
    roles: BTreeSet<String>,
}

/// The replicated state of one keyspace.
#[derive(Debug)]
pub(crate) struct State {
    /// Under which its records are stored.
    pub(crate) generation: u32,
    /// The entry that is being applied, or the last one.
    pub(crate) applied: Applied,
    /// The entry that is being applied; `None` between two.
    pub(crate) open: Option<OpenEntry>,
    /// How the last entry ended.
    pub(crate) ended: Ended,
    /// The newest revision; 1 when nothing was ever written, as in etcd.
    pub(crate) revision: i64,
    /// Reads below it are refused; -1 when nothing was ever compacted, as in etcd.
    pub(crate) compact_revision: i64,
    pub(crate) index: Index,
    pub(crate) leases: Leases,
    pub(crate) alarms: Alarms,
    /// Who belongs to the group, in bytes that mean nothing here; empty as long as no entry has said it.
    pub(crate) configuration: Bytes,
    /// Users, roles and permissions.
    pub(crate) auth: Auth,
    pub(crate) digest: u64,
    /// Index and digest at the last marks, oldest first.
    pub(crate) marks: VecDeque<(u64, u64)>,
    /// Whom the present entry changed.
    pub(crate) changed: ChangedNames,
    pub(crate) unflushed: Unflushed,
    pub(crate) flushed: Flushed,
    /// A batch is on its way to the engine.
    pub(crate) flush_in_flight: bool,
}

/// How an entry ended. What is shown of the middle of one would differ from replica to replica.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Ended {
    pub(crate) applied: Applied,
    pub(crate) digest: u64,
}

/// The writes of one txn: they share a revision and are numbered within it.
#[derive(Debug)]
pub(crate) struct Write {
    /// The revision that they make.
    pub(crate) revision: i64,
    /// How many there are.
    pub(crate) changes: u32,
}

impl State {
    /// The state before the first entry.
    pub(crate) fn new(generation: u32) -> State {
        State {
            generation,
            applied: Applied::default(),
            open: None,
            ended: Ended::default(),
            revision: 1,
            compact_revision: -1,
            index: Index::default(),
            leases: Leases::default(),
            alarms: Alarms::default(),
            configuration: Bytes::new(),
            auth: Auth::default(),
            digest: 0,
            marks: VecDeque::new(),
            changed: ChangedNames::default(),
            unflushed: Unflushed::default(),
            flushed: Flushed { index: 0, revision: 1, compact_revision: -1 },
            flush_in_flight: false,
        }
    }

    /// Starts a txn. Without changes, [`State::end_write`] leaves no trace of it.
    pub(crate) fn begin_write(&self) -> Write {
        Write { revision: self.revision + 1, changes: 0 }
    }

    /// Ends a txn and returns the revision that answers carry.
    pub(crate) fn end_write(&mut self, write: Write) -> i64 {
        if write.changes > 0 {
            self.revision = write.revision;
        }
        self.revision
    }

    /// Sets a key.
    pub(crate) fn put(&mut self, write: &mut Write, key: &[u8], value: Bytes, lease: i64) {
        let before = self.index.latest(key).copied();
        let version = Version {
            main: write.revision,
            create: before.map_or(write.revision, |before| before.create),
            version: before.map_or(0, |before| before.version) + 1,
            lease,
            value_hash: digest::of_value(&value),
            sub: write.changes,
            value_len: value.len() as u32,
        };
        let key = self.push(write, key, version, value, before);
        let old_lease = before.map_or(0, |before| before.lease);
        if old_lease != lease {
            if old_lease != 0 {
                self.leases.detach(old_lease, &key);
            }
            if lease != 0 {
                self.leases.attach(lease, &key);
            }
        }
    }

    /// Deletes a key; nothing if it does not live.
    pub(crate) fn delete(&mut self, write: &mut Write, key: &[u8]) {
        let Some(before) = self.index.latest(key).copied() else { return };
        let tombstone = Version::tombstone(write.revision, write.changes);
        let key = self.push(write, key, tombstone, Bytes::new(), Some(before));
        if before.lease != 0 {
            self.leases.detach(before.lease, &key);
        }
    }

    fn push(
        &mut self,
        write: &mut Write,
        key: &[u8],
        version: Version,
        value: Bytes,
        before: Option<Version>,
    ) -> Bytes {
        if let Some(before) = before {
            self.digest = self.digest.wrapping_sub(digest::of_version(key, &before));
        }
        if !version.is_tombstone() {
            self.digest = self.digest.wrapping_add(digest::of_version(key, &version));
        }
        write.changes += 1;
        let (key, _) = self.index.push(key, version);
        self.unflushed.open_bytes += key.len() + value.len() + RECORD_BYTES;
        self.unflushed.records.push_back(Record { key: key.clone(), version, value });
        key
    }

    /// Grants a lease, or gives an existing one another time.
    pub(crate) fn set_lease(&mut self, id: i64, ttl: i64, expiry_ms: u64) {
        if let Some(old) = self.leases.get(id) {
            self.digest = self.digest.wrapping_sub(digest::of_lease(old));
        }
        let lease = self.leases.set(id, ttl, expiry_ms);
        self.digest = self.digest.wrapping_add(digest::of_lease(lease));
        self.unflushed.tables.push_back(TableChange::lease(lease));
    }

    /// Takes a lease out; the caller deletes its keys.
    pub(crate) fn remove_lease(&mut self, id: i64) -> Option<Lease> {
        let lease = self.leases.remove(id)?;
        self.digest = self.digest.wrapping_sub(digest::of_lease(&lease));
        self.unflushed.tables.push_back(TableChange::NoLease { id });
        Some(lease)
    }

    /// The keys of a lease at the newest revision, in order. What an unfinished command did to them shows when it is whole.
    pub(crate) fn keys_of(&self, lease: &Lease) -> Vec<Bytes> {
        let mut hidden = self.unflushed.since(self.revision + 1).peekable();
        if hidden.peek().is_none() {
            return lease.keys.iter().cloned().collect();
        }
        let mut keys = lease.keys.clone();
        for record in hidden {
            match self.index.at(&record.key, self.revision) {
                Some((key, before)) if before.lease == lease.id => keys.insert(key.clone()),
                _ => keys.remove(&record.key),
            };
        }
        keys.into_iter().collect()
    }

    /// Raises an alarm; false if it was raised already.
    pub(crate) fn raise_alarm(&mut self, member: u64, alarm: i32) -> bool {
        let is_new = self.alarms.raise(member, alarm);
        if is_new {
            self.digest = self.digest.wrapping_add(digest::of_alarm(member, alarm));
            self.unflushed.tables.push_back(TableChange::Alarm { member, alarm });
        }
        is_new
    }

    /// Clears an alarm; false if it was not raised.
    pub(crate) fn clear_alarm(&mut self, member: u64, alarm: i32) -> bool {
        let was_raised = self.alarms.clear(member, alarm);
        if was_raised {
            self.digest = self.digest.wrapping_sub(digest::of_alarm(member, alarm));
            self.unflushed.tables.push_back(TableChange::NoAlarm { member, alarm });
        }
        was_raised
    }

    /// The group has this configuration from now on.
    pub(crate) fn set_configuration(&mut self, configuration: Bytes) {
        self.digest = self.digest.wrapping_sub(digest::of_configuration(&self.configuration));
        self.digest = self.digest.wrapping_add(digest::of_configuration(&configuration));
        self.unflushed.tables.push_back(TableChange::Configuration { configuration: configuration.clone() });
        self.configuration = configuration;
    }

    /// Adds a user, or changes one.
    pub(crate) fn set_user(&mut self, user: authpb::User) {
        let name = name_of(&user.name);
        self.digest = self.digest.wrapping_add(digest::of_user(&user));
        self.changed.users.insert(name.clone());
        if let Some(before) = self.auth.users.insert(name, user) {
            self.digest = self.digest.wrapping_sub(digest::of_user(&before));
        }
    }

    /// Takes a user out.
    pub(crate) fn remove_user(&mut self, name: &str) {
        if let Some(before) = self.auth.users.remove(name) {
            self.digest = self.digest.wrapping_sub(digest::of_user(&before));
            self.changed.users.insert(name.to_owned());
        }
    }

    /// Adds a role, or changes one.
    pub(crate) fn set_role(&mut self, role: authpb::Role) {
        let name = name_of(&role.name);
        self.digest = self.digest.wrapping_add(digest::of_role(&role));
        self.changed.roles.insert(name.clone());
        if let Some(before) = self.auth.roles.insert(name, role) {
            self.digest = self.digest.wrapping_sub(digest::of_role(&before));
        }
    }

    /// Takes a role out.
    pub(crate) fn remove_role(&mut self, name: &str) {
        if let Some(before) = self.auth.roles.remove(name) {
            self.digest = self.digest.wrapping_sub(digest::of_role(&before));
            self.changed.roles.insert(name.to_owned());
        }
    }

    /// Authentication is on or off from now on, at a revision.
    pub(crate) fn set_auth_switch(&mut self, switch: Switch) {
        self.digest = self.digest.wrapping_sub(digest::of_switch(&self.auth.switch));
        self.digest = self.digest.wrapping_add(digest::of_switch(&switch));
        self.unflushed.tables.push_back(TableChange::Auth { switch: switch.clone() });
        self.auth.switch = switch;
    }

    /// Remembers the digest at this entry.
    pub(crate) fn mark_digest(&mut self) -> u64 {
        if self.marks.len() == MARKS_MAX {
            self.marks.pop_front();
        }
        self.marks.push_back((self.applied.index, self.digest));
        self.digest
    }

    /// What is to be stored of the users and roles that were changed is as they are now.
    pub(crate) fn gather_changed(&mut self) {
        let ChangedNames { users, roles } = std::mem::take(&mut self.changed);
        for name in users {
            self.unflushed.tables.push_back(match self.auth.users.get(&name) {
                Some(user) => TableChange::User { user: user.clone() },
                None => TableChange::NoUser { name: name.into() },
            });
        }
        for name in roles {
            self.unflushed.tables.push_back(match self.auth.roles.get(&name) {
                Some(role) => TableChange::Role { role: role.clone() },
                None => TableChange::NoRole { name: name.into() },
            });
        }
    }

    /// Begins an entry.
    ///
    /// # Panics
    /// If it does not follow the last one, or that has not ended.
    pub(crate) fn begin_entry(&mut self, applied: Applied) {
        assert!(applied.index > self.applied.index, "entries are applied in order");
        assert!(self.open.is_none(), "entries are applied one after the other");
        self.applied = applied;
    }

    /// Ends the entry that is being applied.
    pub(crate) fn end_entry(&mut self) {
        self.gather_changed();
        self.ended = Ended { applied: self.applied, digest: self.digest };
        let unflushed = &mut self.unflushed;
        let (records, tables) = unflushed.ended;
        let changes = unflushed.tables.range(tables..);
        let table_bytes = changes.map(|change| change.bytes() + RECORD_BYTES).sum::<usize>();
        let mark = EntryMark {
            applied: self.applied,
            revision: self.revision,
            compact_revision: self.compact_revision,
            digest: self.digest,
            records: unflushed.records.len() - records,
            tables: unflushed.tables.len() - tables,
            bytes: std::mem::take(&mut unflushed.open_bytes) + table_bytes + ENTRY_BYTES,
        };
        unflushed.ended = (unflushed.records.len(), unflushed.tables.len());
        unflushed.bytes += mark.bytes;
        unflushed.entries.push_back(mark);
    }

    /// The digest computed from scratch; equals [`State::digest`] unless something is damaged.
    pub(crate) fn recompute_digest(&self) -> u64 {
        let versions = self.index.living().map(|(key, version)| digest::of_version(key, version));
        let leases = self.leases.iter().map(digest::of_lease);
        let alarms = self.alarms.iter().map(|(member, alarm)| digest::of_alarm(member, alarm));
        let configuration = std::iter::once(digest::of_configuration(&self.configuration));
        let users = self.auth.users.values().map(digest::of_user);
        let roles = self.auth.roles.values().map(digest::of_role);
        let auth = users.chain(roles).chain(std::iter::once(digest::of_switch(&self.auth.switch)));
        versions.chain(leases).chain(alarms).chain(configuration).chain(auth).fold(0, u64::wrapping_add)
    }
}

/// A name that came as a string of characters.
pub(crate) fn name_of(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}
