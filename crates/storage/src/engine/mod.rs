//! The embedded engine behind the replicated state: ordered bytes on disk, written in atomic batches.
//!
//! The engine is never on the path of an acknowledged write: a flusher writes batches behind it, each with the applied
//! index it contains, and the write-ahead log is only cut below what [`Engine::persist`] made durable.

#[cfg(test)]
mod conformance;
#[cfg(test)]
mod crash_images;
mod fjall;
mod journal;
mod manifest;
mod model;
mod pieces;
#[cfg(test)]
mod rot;

use std::ops::ControlFlow;

use bytes::Bytes;

pub use fjall::{FjallEngine, FjallOptions};
pub use model::ModelEngine;
pub use pieces::missing_piece;

/// Few engine keyspaces, shared by all groups of a node; keys inside begin with (group, generation).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Space {
    /// One record per group: applied position, clock, digest and the like; node-wide facts.
    State,
    /// Version metadata in revision order: what a restart reads.
    Versions,
    /// Values in revision order: what a restart does not read.
    Values,
    /// Leases and other small tables.
    Tables,
}

impl Space {
    /// All of them, in the order of their numbers.
    pub const ALL: [Space; 4] = [Space::State, Space::Versions, Space::Values, Space::Tables];
}

/// One change of a batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// Set `key` to `value`.
    Put(Space, Bytes, Bytes),
    /// Remove `key`.
    Delete(Space, Bytes),
}

/// Changes that become visible, and durable, all or none.
pub type Batch = Vec<Change>;

/// What an engine could not do. Each is a local fault: the node stops rather than guess.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// The disk or the file system refused.
    #[error("engine: {0}")]
    Io(String),
    /// What was read is not what was written.
    #[error(
        "engine: damaged data: {0}; move the data directory and the write-ahead log away and rebuild this member from the \
         others"
    )]
    Damaged(String),
}

/// Called for each pair of a scan, in key order; break to stop early.
pub type Visit<'a> = &'a mut dyn FnMut(&[u8], &[u8]) -> ControlFlow<()>;

/// Reads, from the engine's present or from a fixed view of it.
pub trait Read: Send + Sync {
    /// The value of `key`, if it has one.
    fn get(&self, space: Space, key: &[u8]) -> Result<Option<Bytes>, EngineError>;

    /// Visits every pair with `from <= key < to`, in order.
    fn scan(&self, space: Space, from: &[u8], to: &[u8], visit: Visit<'_>) -> Result<(), EngineError>;
}

/// An embedded engine: the real one is fjall, the simulator's is a model.
///
/// Whoever opens one makes durable what it shows, before anybody relies on it: after a kill that need not be so.
pub trait Engine: Read + 'static {
    /// Writes a batch atomically. Readers see it at once, those that read the engine itself perhaps a part before the rest, views all of it or
    /// nothing; it is durable after the next [`Engine::persist`].
    /// A crash keeps some prefix of the written batches, no shorter than the last persist.
    fn write(&self, batch: Batch) -> Result<(), EngineError>;

    /// Returns when everything written before the call is durable.
    fn persist(&self) -> Result<(), EngineError>;

    /// A view that later writes do not change.
    fn snapshot(&self) -> Box<dyn Read>;

    /// Bytes on disk, for operators.
    fn disk_bytes(&self) -> u64;
}
