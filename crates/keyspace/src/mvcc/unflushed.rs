//! What was applied and is not in the engine yet: records in revision order, with the boundaries of their entries.

use std::collections::VecDeque;

use bytes::Bytes;
use hadron_proto::authpb;

use super::Version;
use crate::auth::{self, Switch};
use crate::lease::Lease;
use crate::state::Applied;

/// One version with its key and value.
#[derive(Clone, Debug)]
pub(crate) struct Record {
    pub(crate) key: Bytes,
    pub(crate) version: Version,
    /// A slice of the entry that brought it.
    pub(crate) value: Bytes,
}

impl Record {
    /// A copy that keeps nothing else alive: however long it waits for a slow client, it is no larger than it looks.
    pub(crate) fn detached(&self) -> Record {
        Record {
            key: Bytes::copy_from_slice(&self.key),
            version: self.version,
            value: Bytes::copy_from_slice(&self.value),
        }
    }
}

/// A change to the small tables.
#[derive(Clone, Debug)]
pub(crate) enum TableChange {
    /// The lease is as given: id, granted seconds, expiry on the group's clock.
    Lease { id: i64, ttl: i64, expiry_ms: u64 },
    /// The lease is gone.
    NoLease { id: i64 },
    /// The alarm is raised.
    Alarm { member: u64, alarm: i32 },
    /// The alarm is cleared.
    NoAlarm { member: u64, alarm: i32 },
    /// The group's members are these.
    Configuration { configuration: Bytes },
    /// Authentication is on or off, at a revision.
    Auth { switch: Switch },
    /// The user is so.
    User { user: authpb::User },
    /// The user is gone.
    NoUser { name: Bytes },
    /// The role is so.
    Role { role: authpb::Role },
    /// The role is gone.
    NoRole { name: Bytes },
}

impl TableChange {
    /// The lease as it is now.
    pub(crate) fn lease(lease: &Lease) -> TableChange {
        TableChange::Lease { id: lease.id, ttl: lease.ttl, expiry_ms: lease.expiry_ms }
    }

    /// What it occupies beside what every record does, about.
    pub(crate) fn bytes(&self) -> usize {
        match self {
            TableChange::Lease { .. }
            | TableChange::NoLease { .. }
            | TableChange::Alarm { .. }
            | TableChange::NoAlarm { .. } => 0,
            TableChange::Configuration { configuration } => configuration.len(),
            TableChange::Auth { switch } => switch.secret.len(),
            TableChange::User { user } => auth::bytes_of_user(user),
            TableChange::Role { role } => auth::bytes_of_role(role),
            TableChange::NoUser { name } | TableChange::NoRole { name } => name.len(),
        }
    }
}

/// The state at the end of an entry, and how much the entry added.
#[derive(Clone, Copy, Debug)]
pub(crate) struct EntryMark {
    pub(crate) applied: Applied,
    pub(crate) revision: i64,
    pub(crate) compact_revision: i64,
    pub(crate) digest: u64,
    pub(crate) records: usize,
    pub(crate) tables: usize,
    pub(crate) bytes: usize,
}

/// All that waits for a flush.
#[derive(Debug, Default)]
pub(crate) struct Unflushed {
    pub(crate) records: VecDeque<Record>,
    pub(crate) tables: VecDeque<TableChange>,
    pub(crate) entries: VecDeque<EntryMark>,
    /// Bytes of the entries, about.
    pub(crate) bytes: usize,
    /// How many of the records, and of the tables' changes, belong to these entries. The others are of the one that is being applied.
    pub(crate) ended: (usize, usize),
    /// Bytes of the records of the entry that is being applied, about.
    pub(crate) open_bytes: usize,
}

impl Unflushed {
    /// The record at a place in history, if it is here.
    pub(crate) fn find(&self, place: (i64, u32)) -> Option<&Record> {
        if self.records.front()?.version.place() > place {
            return None;
        }
        let found = self.records.binary_search_by(|record| record.version.place().cmp(&place)).ok()?;
        self.records.get(found)
    }

    /// The records of the entry that is being applied, without the first `skipped`.
    pub(crate) fn open_records(&self, skipped: usize) -> impl Iterator<Item = &Record> {
        self.records.range(self.ended.0 + skipped..)
    }

    /// The records from `revision` on.
    pub(crate) fn since(&self, revision: i64) -> impl Iterator<Item = &Record> {
        let first = self.records.partition_point(|record| record.version.main < revision);
        self.records.range(first..)
    }
}
