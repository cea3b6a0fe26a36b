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
mod reclaim;
#[cfg(test)]
mod rot;

use std::ops::ControlFlow;

use bytes::Bytes;

pub use fjall::{FjallEngine, FjallOptions};
pub use model::ModelEngine;
pub use pieces::{clear_half_made, missing_piece};
pub use reclaim::Reclaimed;

/// Few engine keyspaces, shared by all groups of a node; keys inside begin with (group, generation).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Space {
    /// Up to three records per group: applied position, clock, digest and the like.
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

/// Bytes of a key at most: what fjall has 16 bits for. A key has one at least. Never change it: what the state machine takes follows from it.
pub const KEY_BYTES_MAX: usize = u16::MAX as usize;
/// Bytes of a value at most. fjall has 32 bits for the size of a block, which holds a value and more.
pub const VALUE_BYTES_MAX: usize = 1 << 31;

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
    /// What was to be written has a size that no engine takes. Nothing was written.
    #[error("engine: {0}")]
    Unfit(String),
}

/// Refuses a batch that fjall would panic at.
fn check_sizes(batch: &Batch) -> Result<(), EngineError> {
    for change in batch {
        let (space, key, value_bytes) = match change {
            Change::Put(space, key, value) => (space, key, value.len()),
            Change::Delete(space, key) => (space, key, 0),
        };
        if !(1..=KEY_BYTES_MAX).contains(&key.len()) || value_bytes > VALUE_BYTES_MAX {
            let key_bytes = key.len();
            return Err(EngineError::Unfit(format!(
                "a record of {space:?} has a key of {key_bytes} bytes and a value of {value_bytes}: a key may have 1 to \
                 {KEY_BYTES_MAX} and a value {VALUE_BYTES_MAX}"
            )));
        }
    }
    Ok(())
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
    /// nothing; it is durable after the next [`Engine::persist`]. One with a key or a value of a size that is not taken is refused as a whole.
    /// A crash keeps some prefix of the written batches, no shorter than the last persist.
    fn write(&self, batch: Batch) -> Result<(), EngineError>;

    /// Returns when everything written before the call is durable.
    fn persist(&self) -> Result<(), EngineError>;

    /// A view that later writes do not change.
    ///
    /// As long as it is open, however little was written before, the engine keeps **in memory** whatever is written, and on disk whatever is
    /// merged; nobody's budget counts that. So it is for what is read in one go, and never for as long as somebody else takes: a network, a client,
    /// a pause. What takes longer takes a new view for each bit, and pins what must not be swept meanwhile.
    fn snapshot(&self) -> Box<dyn Read>;

    /// Bytes on disk, for operators.
    fn disk_bytes(&self) -> u64;

    /// Gives back what deleted records take on disk, and rewrites for that what is kept: for those who know that there is about as much
    /// garbage as that. Takes long; others read and write meanwhile. An engine that gives it back by itself does nothing.
    fn reclaim(&self) -> Result<Reclaimed, EngineError> {
        Ok(Reclaimed::default())
    }

    /// Whether it has given up, which otherwise only the next write shows. Waits for no write of others.
    fn check(&self) -> Result<(), EngineError> {
        Ok(())
    }
}
