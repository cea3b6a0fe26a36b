//! The threads around a [`hadron_node::Node`], and the [`Handle`] through which the services ask it.
//!
//! ```text
//!  front-end runtimes ──Handle──▶ ┌───────┐ ── records ──▶ log thread ── fsync ──┐
//!                                 │ shard │ ── flushes ──▶ flush thread ─ engine ─┤
//!  peers runtime ── messages ───▶ │ loop  │ ── messages ─▶ peers runtime         │
//!                ◀─ snapshots ──▶ └───────┘ ◀──────────── completions ───────────┘
//! ```
//! - *shard* (one thread): the only one that touches the node. Never waits for disk or network. `shard.rs`
//! - *log* (one thread, and one that prepares segments): one write and one fsync for all that waits. `log.rs`
//! - *flush* (one thread): the engine's writes and fsyncs. `flush.rs`
//! - *scrub* (one thread): reads again what the engine holds. `scrub.rs`
//! - *reclaim* (one thread): has the engine give back what deleted values take on the disk. `reclaim.rs`
//! - *peers* (one thread, a tokio runtime): the transport, and the tasks of snapshots. `snapshots.rs`
//!
//! Nothing is decided here about groups: what the simulator does not see must not matter to safety. A local fault of log or
//! engine stops the process; nothing is retried.

mod balance;
mod clock;
mod data_dir;
mod discover;
mod error;
mod fatal;
mod flush;
mod force;
mod fork;
mod handle;
mod inputs;
mod join;
mod log;
mod observe;
mod opener;
mod peers;
mod pool_file;
mod reclaim;
mod restore;
mod room;
mod run;
mod scrub;
mod shard;
mod snapshots;
mod start;
#[cfg(test)]
mod tests;
mod waiters;
mod whole;

pub use error::RunError;
pub use handle::Handle;
pub(crate) use restore::{Made, Plan, RestoreFailure, restore};
pub use run::run;
pub use start::Running;
