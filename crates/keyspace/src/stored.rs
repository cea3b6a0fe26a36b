//! A version as etcd has it in its backend.
//!
//! It is stored under its revision, `_`, the sub-revision, and `t` if it is a tombstone; what is stored is its marshalled `KeyValue`.

use bytes::{Buf, Bytes};
use hadron_proto::mvccpb::KeyValue;
use prost::Message;

use crate::digest;
use crate::mvcc::{Record, Version};

/// Revisions above this are nobody's: there must be room for what is to come.
pub(crate) const REVISION_MAX: i64 = i64::MAX / 2;

/// The key of a version.
pub(crate) fn stored_key(version: &Version) -> Vec<u8> {
    let mut key = Vec::with_capacity(18);
    key.extend_from_slice(&version.main.to_be_bytes());
    key.push(b'_');
    key.extend_from_slice(&i64::from(version.sub).to_be_bytes());
    if version.is_tombstone() {
        key.push(b't');
    }
    key
}

/// The value of a version, whose own value is `value`.
pub(crate) fn stored_value(record: &Record, value: Bytes) -> Vec<u8> {
    let version = &record.version;
    let mut stored = KeyValue { key: record.key.clone(), ..Default::default() };
    if !version.is_tombstone() {
        stored.create_revision = version.create;
        stored.mod_revision = version.main;
        stored.version = version.version;
        stored.lease = version.lease;
        stored.value = value;
    }
    stored.encode_to_vec()
}

/// Reads it back; `Ok(Err(revision))` for what etcd's tools leave that only says how far revisions are.
///
/// # Errors
/// What is wrong with it.
pub(crate) fn read_stored(key: &[u8], value: Bytes) -> Result<Result<Record, i64>, &'static str> {
    let (mut number, is_tombstone) = match key.split_at_checked(17) {
        Some((number, b"")) => (number, false),
        Some((number, b"t")) => (number, true),
        _ => return Err("a key that is no revision"),
    };
    let (main, separator, sub) = (number.get_i64(), number.get_u8(), number.get_i64());
    let sub =
        u32::try_from(sub).ok().filter(|sub| *sub < u32::MAX).ok_or("a revision of too many changes")?;
    if separator != b'_' || !(1..=REVISION_MAX).contains(&main) {
        return Err("a key that is no revision");
    }
    if value.is_empty() && !is_tombstone {
        return Ok(Err(main));
    }
    let stored = KeyValue::decode(value).map_err(|_| "a version that cannot be read")?;
    if stored.key.is_empty() {
        return Err("a version without a key");
    }
    let version = match is_tombstone {
        true => Version::tombstone(main, sub),
        false => living(main, sub, &stored)?,
    };
    Ok(Ok(Record { key: stored.key, version, value: if is_tombstone { Bytes::new() } else { stored.value } }))
}

fn living(main: i64, sub: u32, stored: &KeyValue) -> Result<Version, &'static str> {
    let fits = stored.mod_revision == main && (1..=main).contains(&stored.create_revision);
    if !fits || !(1..=REVISION_MAX).contains(&stored.version) {
        return Err("a version with revisions that cannot be");
    }
    let value_len = u32::try_from(stored.value.len()).map_err(|_| "a value that is too large")?;
    Ok(Version {
        main,
        sub,
        create: stored.create_revision,
        version: stored.version,
        lease: stored.lease,
        value_hash: digest::of_value(&stored.value),
        value_len,
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn what_was_stored_is_read() {
        let version = Version {
            main: 7,
            sub: 2,
            create: 3,
            version: 4,
            lease: 5,
            value_hash: digest::of_value(b"v"),
            value_len: 1,
        };
        let record = Record { key: "k".into(), version, value: "v".into() };
        let deleted = Record { key: "k".into(), version: Version::tombstone(8, 0), value: Bytes::new() };
        for record in [record, deleted] {
            let stored = stored_value(&record, record.value.clone());
            let read = read_stored(&stored_key(&record.version), stored.into()).unwrap().unwrap();
            assert_eq!((read.key, read.version, read.value), (record.key, record.version, record.value));
        }
        let bumped = [&9i64.to_be_bytes()[..], b"_", &[0; 8]].concat();
        assert_eq!(read_stored(&bumped, Bytes::new()).unwrap().unwrap_err(), 9);
    }

    proptest::proptest! {
        #[test]
        fn noise_is_refused_or_understood_and_never_a_panic(
            key in proptest::prelude::any::<Vec<u8>>(),
            sub in 0..3i64,
            main in proptest::prelude::any::<i64>(),
            value in proptest::prelude::any::<Vec<u8>>(),
        ) {
            let _ = read_stored(&key, value.clone().into());
            let key = [&main.to_be_bytes()[..], b"_", &sub.to_be_bytes()].concat();
            let _ = read_stored(&key, value.into());
        }
    }
}
