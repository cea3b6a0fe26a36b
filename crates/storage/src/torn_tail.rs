//! What a crash leaves behind the last thing that was synced.

use std::path::PathBuf;

/// The end of the write-ahead log, or of the engine's journal, that a crash tore. Nothing in it had been synced, unless the
/// file was damaged since.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TornTail {
    /// The segment, or the journal.
    pub file: PathBuf,
    /// Where it now ends.
    pub offset: u64,
    /// Bytes after that which are passed over; an upper bound, where the tail does not show its own length.
    pub bytes: u64,
}
