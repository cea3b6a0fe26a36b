//! Watches: every event of a range of keys, once and in the order of revisions, from any revision that is not compacted.
//!
//! ```text
//!   apply ──publish──▶ Hub ──matching──▶ Mailbox of each stream ──poll_next──▶ client
//!                       ▲                                            │
//!                       └──────── joins, once it has caught up ── lagging watcher reads history
//! ```
//! A watcher is *synced*, and then the hub puts every matching event into its stream's mailbox as it is applied; or it is
//! *lagging*, and then its stream reads history for it, a bounded piece per poll, from the unflushed set and the engine. A
//! synced watcher lags when its stream's mailbox is full: it leaves the hub at the first event that did not fit. A lagging
//! one joins the hub under the hub's lock, when its next revision is after the hub's.
//!
//! # Invariants (`watch_order`)
//! - A watcher's next revision only grows; an event at or after it was not delivered, an event before it was, or did
//!   not match.
//! - What the hub put into the mailbox is delivered before the stream reads history, so the two never mix.
//! - Apply never waits for a client: a full mailbox costs it one removal from the hub.
//!
//! Everything is driven by [`WatchStream::poll_next`] with the standard library's wakers; there is no thread or timer.

mod history;
mod hub;
mod matcher;
mod stream;

pub(crate) use hub::Hub;
pub use hub::WatcherCounts;
pub use stream::{WatchOptions, WatchStream};
