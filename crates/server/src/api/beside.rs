//! What the connections of a worker would wait for is done beside them, on a few other threads of its runtime.
//!
//! A call waits for one of these threads in itself and not in a queue of the runtime's: nothing is left of it when it is given up. What has
//! begun goes on to its end, and nobody else has its thread until then. What takes minutes is done [`apart`](super::apart).

use std::sync::Arc;

use tokio::sync::Semaphore;
use tokio::task::spawn_blocking;
use tonic::Status;

use super::error::EtcdError;
use super::unsent::LONG_READS_MAX;
use crate::detached;

/// How many there are for each worker.
pub(super) const THREADS: usize = LONG_READS_MAX;

thread_local! {
    /// Those of this worker that are free: a worker is one thread.
    static FREE: Arc<Semaphore> = Arc::new(Semaphore::new(THREADS));
}

/// Does some work beside the connections of this thread, as soon as a thread is free and whether or not the caller is polled by then.
pub(super) async fn run<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, Status> {
    let free = FREE.with(Arc::clone);
    detached::run(run_when_free(free, work)).await.ok_or(EtcdError::Stopped)?
}

async fn run_when_free<T: Send + 'static>(
    free: Arc<Semaphore>,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Status> {
    // They are never closed; the runtime may be.
    let thread = free.acquire_owned().await.map_err(|_| EtcdError::Stopped)?;
    let work = move || {
        let _thread = thread;
        work()
    };
    // The runtime is being shut down, or the work panicked.
    spawn_blocking(work).await.map_err(|_| EtcdError::Stopped.into())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::pin::pin;
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::sync::mpsc;

    use futures::future::LocalBoxFuture;
    use futures::poll;
    use tokio::task::yield_now;

    use super::*;

    /// Calls that were given up while they waited were carried out all the same, before those that came later.
    #[test]
    fn what_is_given_up_before_it_begins_is_not_done() {
        let mut runtime = tokio::runtime::Builder::new_current_thread();
        runtime.max_blocking_threads(THREADS).build().unwrap().block_on(async {
            let (ends, mut first) = (0..THREADS).map(|_| blocked()).unzip::<_, _, Vec<_>, Vec<_>>();
            for read in &mut first {
                assert!(poll!(read.as_mut()).is_pending());
            }
            let is_done = Arc::new(AtomicBool::new(false));
            let does = Arc::clone(&is_done);
            {
                let given_up = pin!(run(move || does.store(true, Ordering::Relaxed)));
                assert!(poll!(given_up).is_pending());
                // It has its place in the queue now.
                yield_now().await;
            }
            let mut later = pin!(run(|| "later"));
            assert!(poll!(later.as_mut()).is_pending());
            drop(ends);
            for read in first {
                read.await.unwrap();
            }
            assert_eq!(later.await.unwrap(), "later");
            assert!(!is_done.load(Ordering::Relaxed));
        });
    }

    /// A client that took no answers was handed a free thread and did not use it: nobody else had it.
    #[test]
    fn whoever_is_not_polled_any_more_keeps_no_thread() {
        let mut runtime = tokio::runtime::Builder::new_current_thread();
        runtime.max_blocking_threads(THREADS).build().unwrap().block_on(async {
            let (ends, mut first) = (0..THREADS).map(|_| blocked()).unzip::<_, _, Vec<_>, Vec<_>>();
            for read in &mut first {
                assert!(poll!(read.as_mut()).is_pending());
            }
            let mut not_polled = (0..THREADS).map(|_| Box::pin(run(|| ()))).collect::<Vec<_>>();
            for read in &mut not_polled {
                assert!(poll!(read.as_mut()).is_pending());
            }
            yield_now().await;
            drop(ends);
            assert_eq!(run(|| "later").await.unwrap(), "later");
        });
    }

    /// Work that ends when the sender is dropped.
    fn blocked() -> (mpsc::Sender<()>, LocalBoxFuture<'static, Result<(), Status>>) {
        let (end, ended) = mpsc::channel();
        let work = move || {
            let _ = ended.recv();
        };
        (end, Box::pin(run(work)))
    }
}
