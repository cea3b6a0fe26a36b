//! Backups: files as etcd makes them, a bbolt file followed by its SHA-256.
//!
//! | module | is about |
//! |---|---|
//! | `build` | a file from a keyspace that runs: what the call `Snapshot` sends |
//! | `file` | opening a file that may be damaged, and checking its SHA-256 |
//! | `load` | a keyspace from a file |
//! | `status` | what is in a file: `utl snapshot status`, `utl hashkv` |
//!
//! The buckets: `key` has the history, each version under its revision; `lease`, `alarm`, `auth`, `authUsers` and `authRoles` what
//! their names say; `meta` how far the log and compaction were; `members` and `cluster` who the members were, which no restore
//! takes over.

mod build;
mod file;
mod load;
mod status;
#[cfg(test)]
mod tests;

pub(crate) use build::{Failure, Members, Progress, build};
pub(crate) use file::{BackupFile, FileError};
pub(crate) use load::{LoadError, Loaded, load};
pub(crate) use status::{HashKv, Status, hash_kv, status};

/// A lease as etcd stores it.
#[derive(Clone, PartialEq, prost::Message)]
struct StoredLease {
    #[prost(int64, tag = "1")]
    id: i64,
    #[prost(int64, tag = "2")]
    ttl: i64,
    #[prost(int64, tag = "3")]
    remaining_ttl: i64,
}
