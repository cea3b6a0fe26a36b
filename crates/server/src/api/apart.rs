//! What takes long enough that nothing else should wait for it, minutes if there is much data, is done apart from all connections: on a
//! thread of its own.
//!
//! A node does one thing of each kind at a time. A keyspace waits for its own turn before it waits for one of the node, so that keyspaces
//! take turns however much each of them asks for. Who gives up while it waits leaves nothing behind; what has begun keeps its turns
//! until it ends, and can see that nobody waits for it any more.

use std::sync::Arc;
use std::thread;

use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};
use tonic::Status;

use super::error::EtcdError;
use crate::detached;

/// One kind of such work, of one keyspace.
pub(super) struct Apart {
    /// The keyspace's turn.
    own: Arc<Semaphore>,
    /// The node's.
    node: Arc<Semaphore>,
}

impl Apart {
    /// A kind of work that nobody does yet.
    pub(super) fn new() -> Apart {
        Apart { own: one_turn(), node: one_turn() }
    }

    /// The same kind of another keyspace.
    pub(super) fn for_another(&self) -> Apart {
        Apart { own: one_turn(), node: Arc::clone(&self.node) }
    }

    /// Does some work when it has its turn, whether or not the caller is polled by then. The work may ask whether it was given up.
    pub(super) async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce(&dyn Fn() -> bool) -> T + Send + 'static,
    ) -> Result<T, Status> {
        detached::run(run_in_turn(Arc::clone(&self.own), Arc::clone(&self.node), work))
            .await
            .ok_or(EtcdError::Stopped)?
    }
}

async fn run_in_turn<T: Send + 'static>(
    own: Arc<Semaphore>,
    node: Arc<Semaphore>,
    work: impl FnOnce(&dyn Fn() -> bool) -> T + Send + 'static,
) -> Result<T, Status> {
    let turns = (turn(own).await?, turn(node).await?);
    let (answer, answered) = oneshot::channel();
    let run = move || {
        let done = work(&|| answer.is_closed());
        // What nobody waits for is gone before the next one begins.
        drop(answer.send(done));
        drop(turns);
    };
    let spawned = thread::Builder::new().name("apart".into()).spawn(run);
    spawned.map_err(|error| Status::unavailable(format!("hadron: there is no thread for it: {error}")))?;
    // The work panicked.
    answered.await.map_err(|_| EtcdError::Stopped.into())
}

fn one_turn() -> Arc<Semaphore> {
    Arc::new(Semaphore::new(1))
}

async fn turn(turns: Arc<Semaphore>) -> Result<OwnedSemaphorePermit, EtcdError> {
    // They are never closed.
    turns.acquire_owned().await.map_err(|_| EtcdError::Stopped)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::pin::pin;
    use std::sync::mpsc;

    use futures::{FutureExt as _, poll};
    use tokio::task::yield_now;

    use super::*;

    /// A login that was given up left its turn to the next one while its password was still being compared.
    #[tokio::test]
    async fn what_has_begun_keeps_its_turns_when_it_is_given_up_and_can_see_that() {
        let (first, other) = (Apart::new(), Apart::new());
        let another = first.for_another();
        let (end, ended) = mpsc::channel::<()>();
        let (seen, mut sees) = tokio::sync::mpsc::channel(1);
        let work = move |is_given_up: &dyn Fn() -> bool| {
            let _ = ended.recv();
            seen.try_send(is_given_up()).unwrap();
        };
        {
            let given_up = pin!(first.run(work));
            assert!(poll!(given_up).is_pending());
            yield_now().await;
        }
        assert_eq!((first.own.available_permits(), first.node.available_permits()), (0, 0));
        let mut next = pin!(another.run(|is_given_up| is_given_up()));
        assert!(next.as_mut().now_or_never().is_none());
        // Another kind does not wait for it.
        other.run(|_| ()).await.unwrap();
        assert!(sees.try_recv().is_err() && next.as_mut().now_or_never().is_none());
        drop(end);
        assert!(!next.await.unwrap());
        assert_eq!(sees.recv().await, Some(true));
    }

    /// One client that took no answers was handed the turn of all logins and did not use it: nobody could log in any more.
    #[tokio::test]
    async fn whoever_is_not_polled_any_more_keeps_no_turn() {
        let first = Apart::new();
        let (own, another) = (first.for_another(), first.for_another());
        let (end, ended) = mpsc::channel::<()>();
        let mut begun = pin!(first.run(move |_| ended.recv().is_err()));
        let mut not_polled = (pin!(first.run(|_| ())), pin!(own.run(|_| ())));
        assert!(poll!(begun.as_mut()).is_pending());
        assert!(poll!(not_polled.0.as_mut()).is_pending() && poll!(not_polled.1.as_mut()).is_pending());
        yield_now().await;
        drop(end);
        assert!(begun.await.unwrap());
        another.run(|_| ()).await.unwrap();
        first.run(|_| ()).await.unwrap();
    }
}
