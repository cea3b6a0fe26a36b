//! What can go wrong, and whose fault it is.
//!
//! All of [`Error`] but [`Error::TooManyKeys`], [`Error::TooManyBytes`], [`Error::Storage`] and [`Error::Unreadable`] is deterministic: every replica refuses
//! the same command for the same reason, and the refusal is the reply. [`OpenError`] is a local fault.

use std::fmt;

use hadron_storage::engine::EngineError;

use crate::auth::AuthError;

/// Why a request was refused. Nothing was changed, but for [`Error::Unreadable`]. The texts are etcd's, without the `etcdserver: ` before them.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// A request named no key.
    #[error("key is not provided")]
    EmptyKey,
    /// A put asked to keep the value or lease of a key that does not exist; or an operation of a txn is empty.
    #[error("key not found")]
    KeyNotFound,
    /// A put asked to keep the value and brought one.
    #[error("value is provided")]
    ValueProvided,
    /// A put asked to keep the lease and brought one.
    #[error("lease is provided")]
    LeaseProvided,
    /// A txn has more operations than are allowed.
    #[error("too many operations in txn request")]
    TooManyOps,
    /// A txn may look at more keys than are allowed. Not deterministic: it is found before the txn is proposed.
    #[error("the txn may look at more than {0} keys: narrow its ranges, or make several of it")]
    TooManyKeys(usize),
    /// A txn may answer with more bytes than are allowed. Found as the one before.
    #[error("the txn may answer with more than {0} bytes: narrow its ranges, or make several of it")]
    TooManyBytes(usize),
    /// A txn writes a key twice.
    #[error("duplicate key given in txn request")]
    DuplicateKey,
    /// The order asked for does not exist.
    #[error("invalid sort option")]
    InvalidSort,
    /// The revision asked for is older than the last compaction.
    #[error("mvcc: required revision has been compacted")]
    Compacted,
    /// The revision asked for does not exist yet.
    #[error("mvcc: required revision is a future revision")]
    FutureRev,
    /// No such lease.
    #[error("requested lease not found")]
    LeaseNotFound,
    /// A lease with this id exists.
    #[error("lease already exists")]
    LeaseExists,
    /// The longest life of a lease is 9,000,000,000 seconds.
    #[error("too large lease TTL")]
    LeaseTtlTooLarge,
    /// The space alarm is raised.
    #[error("mvcc: database space exceeded")]
    NoSpace,
    /// The caller may not do it, or users and roles cannot be changed so.
    #[error(transparent)]
    Auth(#[from] AuthError),
    /// Not deterministic, and only in answers to reads: the engine failed or its data are damaged.
    #[error("local storage: {0}")]
    Storage(String),
    /// Not deterministic: the command was carried out, and what its answer should tell cannot be read on this node.
    #[error("it was done, and what was to be read with it cannot be read on this node: {0}")]
    Unreadable(String),
}

impl From<EngineError> for Error {
    fn from(error: EngineError) -> Error {
        Error::Storage(error.to_string())
    }
}

/// Why the state of a group could not be opened. The replica cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The engine failed.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// What was read does not fit together: rebuild the replica from its peers.
    #[error(
        "the stored state of group {group} is damaged: {what}; move the data directory and the write-ahead log away and \
         rebuild this member from the others"
    )]
    Damaged {
        /// Whose state.
        group: u64,
        /// What does not fit.
        what: String,
    },
    /// Written by a newer version.
    #[error(
        "the stored state has {what} {found}, this version knows up to {supported}: run the version that wrote it"
    )]
    Newer {
        /// What is newer.
        what: NewerPart,
        /// The number found.
        found: u8,
        /// The highest one that this version knows.
        supported: u8,
    },
}

/// What of a stored state a version may be too old for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NewerPart {
    /// A record's format.
    Format,
    /// A table.
    Table,
}

impl fmt::Display for NewerPart {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            NewerPart::Format => "a record of format",
            NewerPart::Table => "a record of table",
        })
    }
}

impl OpenError {
    /// Whether something that was written is not there as it was written.
    pub fn is_damage(&self) -> bool {
        matches!(self, OpenError::Damaged { .. } | OpenError::Engine(EngineError::Damaged(_)))
    }
}
