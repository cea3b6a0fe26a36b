//! Work that goes on whether or not whoever waits for it is polled.
//!
//! A client's call is not polled while too much that its connection does not take waits for it (`api::unsent`), which may be for as long as the client
//! likes. What others need as well, such as a turn, must not be handed to it meanwhile: it would not give that back before it is polled. So a
//! call waits for such a thing, and holds it, in a task of its own.

use std::future::Future;

use tokio::task::JoinSet;

/// Does some work in a task of its own, which ends when this is given up. `None` if the work panicked or the runtime is being shut down.
pub(crate) async fn run<T: Send + 'static>(work: impl Future<Output = T> + Send + 'static) -> Option<T> {
    // Aborts its task when it is dropped.
    let mut task = JoinSet::new();
    task.spawn(work);
    task.join_next().await?.ok()
}
