//! The bytes of a keyspace in the engine. `docs/formats/keyspace.md` has the same, byte by byte.
//!
//! Keys begin with (group, generation); revisions are big-endian, so that the order of bytes is the order of history.
//! Every value begins with the number of its format.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use hadron_proto::authpb;
use hadron_storage::engine::{KEY_BYTES_MAX, Read, Space};
use prost::Message;

use crate::auth::Switch;
use crate::error::{NewerPart, OpenError};
use crate::mvcc::{TableChange, Version};
use crate::state::Applied;

/// The format of all records, and the newest that is read; a newer one is refused.
pub(crate) const FORMAT: u8 = 1;

/// Bytes of (group, generation).
pub(crate) const PREFIX_LEN: usize = 12;
/// Bytes of a user's or a role's name at most: it stands in the key of a record, behind the prefix and the table's number.
pub(crate) const NAME_BYTES_MAX: usize = KEY_BYTES_MAX - PREFIX_LEN - 1;
/// Bytes of a key in `Versions` and `Values`.
const VERSION_KEY_LEN: usize = PREFIX_LEN + 12;
/// Bytes of a version's metadata before the key.
const VERSION_LEN: usize = 38;
/// Bytes of a state record.
pub(crate) const STATE_LEN: usize = 61;

const STATE_RECORD: u8 = 0;
const GENERATIONS_RECORD: u8 = 1;
const OWNER_RECORD: u8 = 2;
// Tables are numbered without gaps: what is above the last one is of a newer version.
const TABLE_LEASE: u8 = 1;
const TABLE_ALARM: u8 = 2;
const TABLE_CONFIGURATION: u8 = 3;
const TABLE_AUTH: u8 = 4;
const TABLE_USER: u8 = 5;
const TABLE_ROLE: u8 = 6;

/// Why bytes are not a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RecordError {
    /// A newer version wrote it.
    Newer(NewerPart, u8, u8),
    /// No version wrote it.
    Malformed,
}

impl RecordError {
    /// As an answer to whoever opens the state of `group`; `what` it should have been.
    pub(crate) fn into_open_error(self, group: u64, what: &str) -> OpenError {
        match self {
            RecordError::Newer(what, found, supported) => OpenError::Newer { what, found, supported },
            RecordError::Malformed => {
                OpenError::Damaged { group, what: format!("{what} has no known shape") }
            }
        }
    }
}

/// What follows the format that a record begins with.
pub(crate) fn after_format(bytes: &[u8]) -> Result<&[u8], RecordError> {
    match bytes.split_first() {
        Some((1..=FORMAT, rest)) => Ok(rest),
        Some((0, _)) | None => Err(RecordError::Malformed),
        Some((newer, _)) => Err(RecordError::Newer(NewerPart::Format, *newer, FORMAT)),
    }
}

/// The state at a flush, beside its records.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct StateRecord {
    pub(crate) generation: u32,
    pub(crate) applied: Applied,
    pub(crate) revision: i64,
    pub(crate) compact_revision: i64,
    pub(crate) digest: u64,
}

/// The first bytes of every key of a generation.
pub(crate) fn prefix(group: u64, generation: u32) -> BytesMut {
    let mut key = BytesMut::with_capacity(VERSION_KEY_LEN);
    key.put_u64(group);
    key.put_u32(generation);
    key
}

/// The key of a version, and of its value.
pub(crate) fn version_key(group: u64, generation: u32, place: (i64, u32)) -> Bytes {
    let mut key = prefix(group, generation);
    key.put_i64(place.0);
    key.put_u32(place.1);
    key.freeze()
}

/// The place in history of a key of a version.
pub(crate) fn place_of(key: &[u8]) -> Option<(i64, u32)> {
    let mut place = key.get(PREFIX_LEN..).filter(|place| place.len() == 12)?;
    Some((place.get_i64(), place.get_u32()))
}

/// The bounds of all keys of generations `from..to` of a group.
pub(crate) fn generation_bounds(group: u64, from: u32, to: u32) -> (Bytes, Bytes) {
    (prefix(group, from).freeze(), prefix(group, to).freeze())
}

/// The metadata of a version, with its key.
pub(crate) fn encode_version(key: &[u8], version: &Version) -> Bytes {
    let mut out = BytesMut::with_capacity(VERSION_LEN + key.len());
    out.put_u8(FORMAT);
    out.put_u8(u8::from(version.is_tombstone()));
    out.put_i64(version.create);
    out.put_i64(version.version);
    out.put_i64(version.lease);
    out.put_u64(version.value_hash);
    out.put_u32(version.value_len);
    out.put_slice(key);
    out.freeze()
}

/// Reads a version's metadata, whose place is in the engine's `key`, and its own key as a slice of `bytes`.
pub(crate) fn decode_version<'a>(key: &[u8], bytes: &'a [u8]) -> Result<(Version, &'a [u8]), RecordError> {
    let mut bytes = after_format(bytes)?;
    let place = place_of(key).filter(|_| bytes.len() >= VERSION_LEN);
    let place = place.ok_or(RecordError::Malformed)?;
    let kind = bytes.get_u8();
    let version = Version {
        main: place.0,
        sub: place.1,
        create: bytes.get_i64(),
        version: bytes.get_i64(),
        lease: bytes.get_i64(),
        value_hash: bytes.get_u64(),
        value_len: bytes.get_u32(),
    };
    match kind == u8::from(version.is_tombstone()) {
        true => Ok((version, bytes)),
        false => Err(RecordError::Malformed),
    }
}

/// The key of a group's state.
pub(crate) fn state_key(group: u64) -> Bytes {
    let mut key = BytesMut::with_capacity(9);
    key.put_u64(group);
    key.put_u8(STATE_RECORD);
    key.freeze()
}

/// The key of the highest generation that a group ever began.
pub(crate) fn generations_key(group: u64) -> Bytes {
    let mut key = BytesMut::with_capacity(9);
    key.put_u64(group);
    key.put_u8(GENERATIONS_RECORD);
    key.freeze()
}

/// The key of whose the records of a group are.
pub(crate) fn owner_key(group: u64) -> Bytes {
    let mut key = BytesMut::with_capacity(9);
    key.put_u64(group);
    key.put_u8(OWNER_RECORD);
    key.freeze()
}

/// The group of a key that [`owner_key`] made.
pub(crate) fn group_of_owner_key(key: &[u8]) -> Option<u64> {
    let (group, rest) = key.split_first_chunk()?;
    (rest == [OWNER_RECORD]).then(|| u64::from_be_bytes(*group))
}

impl StateRecord {
    /// That of a group, if anything was ever flushed of it.
    pub(crate) fn stored(view: &dyn Read, group: u64) -> Result<Option<StateRecord>, OpenError> {
        let bytes = view.get(Space::State, &state_key(group))?;
        bytes.map(|bytes| StateRecord::decode(group, &bytes)).transpose()
    }

    /// The same, if it is of this generation. Who reads on must ask: what is not there any more must not look like what was swept, or never was.
    pub(crate) fn of_generation(
        view: &dyn Read,
        group: u64,
        generation: u32,
    ) -> Result<Option<StateRecord>, OpenError> {
        Ok(StateRecord::stored(view, group)?.filter(|state| state.generation == generation))
    }

    /// Its bytes.
    pub(crate) fn encode(&self) -> Bytes {
        let mut out = BytesMut::with_capacity(STATE_LEN);
        out.put_u8(FORMAT);
        out.put_u32(self.generation);
        out.put_u64(self.applied.term);
        out.put_u64(self.applied.index);
        out.put_u64(self.applied.checksum);
        out.put_u64(self.applied.stamp_ms);
        out.put_i64(self.revision);
        out.put_i64(self.compact_revision);
        out.put_u64(self.digest);
        out.freeze()
    }

    /// Reads it back.
    pub(crate) fn decode(group: u64, mut bytes: &[u8]) -> Result<StateRecord, OpenError> {
        let whole = after_format(bytes).and_then(|rest| match bytes.len() == STATE_LEN {
            true => Ok(rest),
            false => Err(RecordError::Malformed),
        });
        bytes = whole.map_err(|error| error.into_open_error(group, "the state record"))?;
        Ok(StateRecord {
            generation: bytes.get_u32(),
            applied: Applied {
                term: bytes.get_u64(),
                index: bytes.get_u64(),
                checksum: bytes.get_u64(),
                stamp_ms: bytes.get_u64(),
            },
            revision: bytes.get_i64(),
            compact_revision: bytes.get_i64(),
            digest: bytes.get_u64(),
        })
    }
}

/// The key of a table's record, and its value; without a value it is to be deleted.
pub(crate) fn encode_table(group: u64, generation: u32, change: &TableChange) -> (Bytes, Option<Bytes>) {
    let mut key = prefix(group, generation);
    let mut value = BytesMut::with_capacity(17);
    value.put_u8(FORMAT);
    let exists = match change {
        TableChange::Lease { id, ttl, expiry_ms } => {
            key.put_u8(TABLE_LEASE);
            key.put_i64(*id);
            value.put_i64(*ttl);
            value.put_u64(*expiry_ms);
            true
        }
        TableChange::NoLease { id } => {
            key.put_u8(TABLE_LEASE);
            key.put_i64(*id);
            false
        }
        TableChange::Alarm { member, alarm } | TableChange::NoAlarm { member, alarm } => {
            key.put_u8(TABLE_ALARM);
            key.put_u64(*member);
            key.put_i32(*alarm);
            matches!(change, TableChange::Alarm { .. })
        }
        TableChange::Configuration { configuration } => {
            key.put_u8(TABLE_CONFIGURATION);
            value.put_slice(configuration);
            true
        }
        TableChange::Auth { switch } => {
            key.put_u8(TABLE_AUTH);
            value.put_u8(u8::from(switch.enabled));
            value.put_u64(switch.revision);
            value.put_slice(&switch.secret);
            true
        }
        TableChange::User { user } => put_named(TABLE_USER, &user.name, Some(user), &mut key, &mut value),
        TableChange::Role { role } => put_named(TABLE_ROLE, &role.name, Some(role), &mut key, &mut value),
        TableChange::NoUser { name } => {
            put_named::<authpb::User>(TABLE_USER, name, None, &mut key, &mut value)
        }
        TableChange::NoRole { name } => {
            put_named::<authpb::Role>(TABLE_ROLE, name, None, &mut key, &mut value)
        }
    };
    (key.freeze(), exists.then(|| value.freeze()))
}

/// A user or a role under its name; false if it is gone.
fn put_named<M: Message>(
    table: u8,
    name: &[u8],
    message: Option<&M>,
    key: &mut BytesMut,
    value: &mut BytesMut,
) -> bool {
    key.put_u8(table);
    key.put_slice(name);
    if let Some(message) = message {
        value.put_slice(&message.encode_to_vec());
    }
    message.is_some()
}

/// Reads a table's record.
pub(crate) fn decode_table(key: &[u8], value: &[u8]) -> Result<TableChange, RecordError> {
    let value = after_format(value)?;
    let (table, key) = key.get(PREFIX_LEN..).and_then(<[u8]>::split_first).ok_or(RecordError::Malformed)?;
    if *table > TABLE_ROLE {
        return Err(RecordError::Newer(NewerPart::Table, *table, TABLE_ROLE));
    }
    decode_row(*table, key, value).ok_or(RecordError::Malformed)
}

/// Reads what a known table has under `key`.
fn decode_row(table: u8, mut key: &[u8], mut value: &[u8]) -> Option<TableChange> {
    match (table, key.len(), value.len()) {
        (TABLE_LEASE, 8, 16) => {
            Some(TableChange::Lease { id: key.get_i64(), ttl: value.get_i64(), expiry_ms: value.get_u64() })
        }
        (TABLE_CONFIGURATION, 0, _) => {
            Some(TableChange::Configuration { configuration: Bytes::copy_from_slice(value) })
        }
        (TABLE_AUTH, 0, 9..) => {
            let (enabled, revision) = (value.get_u8(), value.get_u64());
            let switch = Switch { enabled: enabled == 1, revision, secret: Bytes::copy_from_slice(value) };
            (enabled <= 1).then_some(TableChange::Auth { switch })
        }
        (TABLE_USER, 1.., _) => {
            let user = authpb::User::decode(value).ok()?;
            (user.name == key).then_some(TableChange::User { user })
        }
        (TABLE_ROLE, 1.., _) => {
            let role = authpb::Role::decode(value).ok()?;
            (role.name == key).then_some(TableChange::Role { role })
        }
        (TABLE_ALARM, 12, 0) => Some(TableChange::Alarm { member: key.get_u64(), alarm: key.get_i32() }),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    proptest::proptest! {
        #[test]
        fn noise_is_refused_or_understood_and_never_a_panic(
            key in proptest::prelude::any::<Vec<u8>>(),
            value in proptest::prelude::any::<Vec<u8>>(),
        ) {
            let _ = place_of(&key);
            let _ = decode_version(&key, &value);
            let _ = decode_version(&version_key(1, 0, (1, 0)), &value);
            let _ = StateRecord::decode(1, &value);
            let _ = decode_table(&key, &value);
        }
    }
}
