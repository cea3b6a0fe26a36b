//! Files: the disk seam, the write-ahead log, the engine and snapshots. The one place that knows files.

pub mod data_dir;
pub mod disk;
pub mod engine;
mod priority;
pub mod snapshot;
mod torn_tail;
pub mod wal;

pub use priority::give_way;
pub use torn_tail::TornTail;
