//! What is in a file, as `etcdutl` tells it.

use std::collections::{HashMap, HashSet};

use hadron_proto::mvccpb::KeyValue;
use prost::Message as _;

use super::file::{BackupFile, FileError, ReadError};

/// What `snapshot status` tells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Status {
    /// CRC-32C of the names of all buckets and all that is in them.
    pub(crate) hash: u32,
    /// The newest revision.
    pub(crate) revision: i64,
    /// Keys that live.
    pub(crate) keys: usize,
    /// Bytes of the file, without the SHA-256.
    pub(crate) bytes: u64,
    /// The version of the form; empty before etcd 3.6.
    pub(crate) version: String,
}

/// What `hashkv` tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct HashKv {
    /// CRC-32C of the history, as the call `HashKV` has it.
    pub(crate) hash: u32,
    /// Up to this revision.
    pub(crate) revision: i64,
    /// What was compacted; -1 for nothing.
    pub(crate) compact_revision: i64,
}

/// Reads the whole file.
///
/// # Errors
/// What is wrong with it.
pub(crate) fn status(file: &mut BackupFile) -> Result<Status, FileError> {
    read_status(file).map_err(|error| blame(file, error))
}

/// The hash of the history up to `revision`, 0 for the newest.
///
/// # Errors
/// What is wrong with the file, or with the revision.
pub(crate) fn hash_kv(file: &mut BackupFile, revision: i64) -> Result<HashKv, FileError> {
    read_hash_kv(file, revision).map_err(|error| blame(file, error))
}

fn blame(file: &BackupFile, error: ReadError) -> FileError {
    match file.blame(error) {
        Ok(error) => error,
        Err(_) => unreachable!("nothing is restored"),
    }
}

fn read_status(file: &mut BackupFile) -> Result<Status, ReadError> {
    let mut status =
        Status { hash: 0, revision: 0, keys: 0, bytes: file.reader.bytes(), version: String::new() };
    let mut living = HashSet::new();
    for bucket in file.reader.buckets()? {
        let mut hash = crc32c::crc32c_append(status.hash, &bucket);
        file.visit(&bucket, |key, value| {
            hash = crc32c::crc32c_append(crc32c::crc32c_append(hash, key), value);
            match bucket.as_slice() {
                b"key" => {
                    let (main, is_tombstone, stored) = version(key, value)?;
                    status.revision = main;
                    if is_tombstone {
                        living.remove(&stored.key)
                    } else {
                        living.insert(stored.key)
                    };
                }
                b"meta" if key == b"storageVersion" => {
                    status.version = String::from_utf8_lossy(value).into_owned();
                }
                _ => {}
            }
            Ok(())
        })?;
        status.hash = hash;
    }
    status.keys = living.len();
    Ok(status)
}

fn read_hash_kv(file: &mut BackupFile, revision: i64) -> Result<HashKv, ReadError> {
    let compacted = super::load::compacted(file)?;
    let mut last = compacted;
    file.visit(b"key", |key, value| {
        last = last.max(version(key, value)?.0);
        Ok(())
    })?;
    let revision = if revision == 0 { last } else { revision };
    if revision > last {
        return Err(ReadError::Absent(format!("is a future revision: {last} is the newest")));
    }
    if revision < compacted {
        return Err(ReadError::Absent(format!("has been compacted: {compacted} is the oldest")));
    }
    // What compaction kept, and of that what one at the hashed revision would keep too, unless that is nothing at all.
    let (kept, living) = (living_at(file, compacted)?, living_at(file, revision)?);
    let survived = |key: &[u8]| kept.contains(key) && (living.is_empty() || living.contains(key));
    let mut hash = crc32c::crc32c(b"key");
    file.visit(b"key", |key, value| {
        let (main, ..) = version(key, value)?;
        if main <= revision && (main > compacted || survived(key)) {
            hash = crc32c::crc32c_append(crc32c::crc32c_append(hash, key), value);
        }
        Ok(())
    })?;
    let compact_revision = if compacted == 0 { -1 } else { compacted };
    Ok(HashKv { hash, revision, compact_revision })
}

/// Where the newest versions at a revision are, of all keys that live there.
fn living_at(file: &mut BackupFile, revision: i64) -> Result<HashSet<Vec<u8>>, ReadError> {
    let mut newest = HashMap::new();
    file.visit(b"key", |key, value| {
        let (main, is_tombstone, stored) = version(key, value)?;
        if main <= revision {
            if is_tombstone {
                newest.remove(&stored.key)
            } else {
                newest.insert(stored.key, key.to_vec())
            };
        }
        Ok(())
    })?;
    Ok(newest.into_values().collect())
}

/// The revision of a version, whether it deletes, and what is stored.
fn version(key: &[u8], value: &[u8]) -> Result<(i64, bool, KeyValue), ReadError> {
    let damaged = |what: &str| ReadError::Contents(format!("history: {what}"));
    let main = key.first_chunk().map(|main| i64::from_be_bytes(*main));
    let main =
        main.filter(|_| matches!(key.len(), 17 | 18)).ok_or_else(|| damaged("a key that is no revision"))?;
    let stored = KeyValue::decode(value).map_err(|_| damaged("a version that cannot be read"))?;
    Ok((main, key.len() == 18, stored))
}
