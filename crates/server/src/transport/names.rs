//! Names of nodes are looked up a few at a time.
//!
//! A look-up occupies a thread of its runtime until the system's resolver answers, though nobody may wait for it any more: while DNS is dark for
//! many seconds. Without a bound they had all threads that are there for what calls do beside their connections.

use std::io;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs as _};
use std::sync::Arc;

use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio::task::spawn_blocking;

use crate::config::Url;
use crate::detached;

/// How many a thread of connections has under way.
pub(crate) const LOOK_UPS_MAX: usize = 8;

thread_local! {
    /// Those that this thread may begin: it is the only one of its runtime.
    static FREE: Arc<Semaphore> = Arc::new(Semaphore::new(LOOK_UPS_MAX));
}

/// Connects to what a URL names.
pub(super) async fn connect(url: &Url) -> io::Result<TcpStream> {
    if let Ok(ip) = url.host().parse::<IpAddr>() {
        return TcpStream::connect((ip, url.port())).await;
    }
    let authority = url.authority();
    let addresses = look_up(move || authority.to_socket_addrs().map(Vec::from_iter)).await?;
    TcpStream::connect(&addresses[..]).await
}

async fn look_up(
    resolve: impl FnOnce() -> io::Result<Vec<SocketAddr>> + Send + 'static,
) -> io::Result<Vec<SocketAddr>> {
    let free = FREE.with(Arc::clone);
    let looking_up = async move {
        let turn = free.acquire_owned().await.map_err(io::Error::other)?;
        let resolve = move || {
            let _turn = turn;
            resolve()
        };
        spawn_blocking(resolve).await?
    };
    let stopped = || Err(io::Error::other("the node is being stopped"));
    detached::run(looking_up).await.unwrap_or_else(stopped)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::pin::pin;
    use std::sync::mpsc;

    use futures::poll;
    use tokio::task::yield_now;

    use super::*;

    /// Whoever read something waited until all names had been looked up, those too that nobody wanted to know any more.
    #[test]
    fn names_that_nobody_can_tell_leave_threads_to_others() {
        let mut runtime = tokio::runtime::Builder::new_current_thread();
        runtime.max_blocking_threads(LOOK_UPS_MAX + 1).build().unwrap().block_on(async {
            let (end, ended) = mpsc::channel::<()>();
            let ended = Arc::new(parking_lot::Mutex::new(ended));
            for _ in 0..2 * LOOK_UPS_MAX {
                let ended = Arc::clone(&ended);
                let given_up = pin!(look_up(move || {
                    let _ = ended.lock().recv();
                    Ok(Vec::new())
                }));
                assert!(poll!(given_up).is_pending());
                yield_now().await;
            }
            let mut waits = pin!(look_up(|| Ok(vec![([127, 0, 0, 1], 1).into()])));
            assert!(poll!(waits.as_mut()).is_pending());
            spawn_blocking(|| ()).await.unwrap();
            drop(end);
            assert_eq!(waits.await.unwrap().len(), 1);
        });
    }
}
