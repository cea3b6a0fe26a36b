//! Files: the disk seam, the write-ahead log, the engine and snapshots. The one place that knows files.

pub mod data_dir;
pub mod disk;
pub mod engine;
pub mod snapshot;
pub mod wal;
